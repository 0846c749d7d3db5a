"""Tokens that are added to a vocabulary, from the checkpoint to the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoint_files import gpt2_config, write_checkpoint
from model_folders import with_files

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model

IMAGE = "<image_soft_token>"


def test_a_token_beyond_the_embedding_is_refused_in_a_prompt_alone(tmp_path: Path) -> None:
    """As Gemma 3's placeholder of images, which has no row in 270M and 1B."""
    path = write_checkpoint(tmp_path / "in", gpt2_config(vocab_size=300))
    file = path / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    (known,) = content["added_tokens"]
    content["added_tokens"].append({**known, "id": 300, "content": IMAGE})
    file.write_text(json.dumps(content), "utf-8")
    model = pocketlm.Model(export_model(open_checkpoint(path), tmp_path / "out"), threads=1)
    assert model.tokenizer.id_of(IMAGE) == 300
    assert model.generate("the cat", max_tokens=2).token_ids
    for ask in (model.generate, model.logprobs):
        with pytest.raises(pocketlm.RequestError, match="300.*expected"):
            ask(f"see {IMAGE}")
    session = model.new_session()
    session.append("see")
    spelled = f"spells the token '{IMAGE}', .* id 300"
    with pytest.raises(pocketlm.RequestError, match=spelled):
        model.generate(f"see {IMAGE}")
    with pytest.raises(pocketlm.RequestError, match=spelled):
        session.append(f"see {IMAGE}")
    assert session.generate(max_tokens=2).token_ids  # as it was
    for context, continuation in ((f"see {IMAGE}", " it"), ("see", f" {IMAGE}")):
        with pytest.raises(pocketlm.RequestError, match="300, expected"):
            model.score(context, [continuation])


@pytest.mark.parametrize("decoder", ["ByteLevel", "BPEDecoder"])  # the latter looks at neighbours
def test_a_stop_string_may_be_a_special_token(
    decoder: str, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    """Special tokens have no text, so that it can appear in nothing but the token."""
    plain = pocketlm.Model(tiny_folder, threads=1)
    ids = plain.generate("the", temperature=0, max_tokens=8).token_ids
    spelling = plain.tokenizer.spelling(ids[4])
    assert spelling is not None and ids[4] not in ids[:4]
    content = json.loads((tiny_folder.path / "tokenizer.json").read_text("utf-8"))
    (known,) = content["added_tokens"]
    special = {**known, "id": ids[4], "content": spelling}
    if decoder != "ByteLevel":
        content["decoder"] = {"type": decoder, "suffix": "</w>"}
    content["added_tokens"] = sorted([special, known], key=lambda token: token["id"])
    files = {"tokenizer.json": json.dumps(content)}
    model = pocketlm.Model(with_files(tiny_folder, tmp_path / "copy", files), threads=1)
    expected = model.tokenizer.decode(ids[:4])
    before, after = expected[-1], model.tokenizer.decode(ids[5:6])
    for stop, text in (
        (spelling, expected),
        (before + spelling, expected[:-1]),
        (spelling + after, expected),
        (before + spelling + after, expected[:-1]),
    ):
        for result in (
            model.generate("the", temperature=0, max_tokens=8, stop=stop),
            next(model.generate_many(["the"], temperature=0, max_tokens=8, stop=[stop])),
        ):
            assert (result.finish_reason, result.text) == ("stop", text)
            if not stop.endswith(after):
                assert result.token_ids == ids[:5]
    assert model.generate("the", temperature=0, max_tokens=8, stop="zz").token_ids == ids
