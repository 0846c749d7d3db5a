"""What ``Model`` and ``load`` give a caller: a folder in place, a checkpoint exported once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, write_checkpoint

import pocketlm
from pocketlm.export.folder import ModelFolder

Model = pocketlm.Model


def counting() -> tuple[list[Path], Callable[[Path], dict[str, Any]]]:
    """A list that grows with every export, and the ``on_export`` that makes it grow."""
    exports: list[Path] = []

    def on_export(out: Path) -> dict[str, Any]:
        exports.append(out)
        return {}

    return exports, on_export


# ---- generate and stream ----


def test_generate_is_the_stream_joined(tiny_model: Model) -> None:
    stream = tiny_model.stream("the", temperature=0, max_tokens=20)
    text = "".join(piece.text for piece in stream)
    result = tiny_model.generate("the", temperature=0, max_tokens=20)
    assert (result.text, result.token_ids) == (text, stream.token_ids)
    assert result.finish_reason == stream.finish_reason == "length"
    assert result.timings.new_tokens == 20
    assert result.logprobs is None


def test_logprobs_come_when_asked_for(tiny_model: Model) -> None:
    result = tiny_model.generate("the", max_tokens=8, seed=1, logprobs=True)
    assert result.logprobs is not None and len(result.logprobs) == 8
    assert all(-20 < logprob < 0 for logprob in result.logprobs)


def test_seed_decides_the_tokens(tiny_model: Model) -> None:
    def ids(seed: int | None) -> tuple[int, ...]:
        return tuple(tiny_model.generate("the", max_tokens=20, seed=seed).token_ids)

    assert ids(1) == ids(1)
    assert len({ids(seed) for seed in (1, 2, 3)}) == 3
    assert ids(None) != ids(None)


def test_an_empty_prompt_starts_from_end_of_text(tiny_model: Model) -> None:
    found = tiny_model.generate(temperature=0, max_tokens=5)
    assert found.token_ids == tiny_model.generate([299], temperature=0, max_tokens=5).token_ids
    assert found.timings.prompt_tokens == 1


def test_a_model_without_end_of_text_needs_a_prompt(tiny_folder: ModelFolder) -> None:
    model = Model(tiny_folder, threads=1)
    model.start_id = None
    with pytest.raises(pocketlm.RequestError, match="the prompt is empty, expected at least one"):
        model.stream("")
    assert model.generate("a", max_tokens=2).token_ids


# ---- load ----


def test_a_model_folder_is_opened_in_place(tiny_folder: ModelFolder) -> None:
    exports, on_export = counting()
    model = pocketlm.load(tiny_folder.path, threads=1, on_export=on_export)
    assert (model.folder.path, exports) == (tiny_folder.path, [])
    assert pocketlm.load(str(tiny_folder.path), precision="fp32").folder.path == tiny_folder.path


def test_another_precision_than_the_folders_is_refused(tiny_folder: ModelFolder) -> None:
    message = "found a model folder in fp32, expected int4; .* pocketlm quantize"
    with pytest.raises(pocketlm.ModelFolderError, match=message):
        pocketlm.load(tiny_folder.path, precision="int4")


def test_a_checkpoint_is_exported_once_for_each_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    checkpoint = write_checkpoint(tmp_path / "source", gpt2_config())
    exports, on_export = counting()
    for precision in ("fp32", "int8", "fp32", None):
        model = pocketlm.load(checkpoint, precision=precision, threads=1, on_export=on_export)
        assert model.folder.manifest["precision"]["name"] == (precision or "int8")
        assert model.generate("a", max_tokens=2).token_ids
    assert len(exports) == len(set(exports)) == 2
    assert all(out.is_relative_to(tmp_path / "cache") for out in exports)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(pocketlm.PocketLMError, match="nowhere"):
        pocketlm.load(tmp_path / "nowhere")
