"""What ``Model`` takes from generation_config.json: begin, end, and how tokens are chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, write_checkpoint
from model_folders import with_files

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.observer import Observer
from pocketlm.export.writing import export_model, plan_export


def with_defaults(folder: ModelFolder, to: Path, defaults: Any) -> ModelFolder:
    """A copy with another generation_config.json and a manifest that agrees."""
    return with_files(folder, to, {"generation_config.json": json.dumps(defaults)})


@pytest.mark.parametrize(
    "defaults, end_ids, start_id",
    [
        ({}, set(), None),
        ({"eos_token_id": None, "bos_token_id": None}, set(), None),
        ({"eos_token_id": [], "bos_token_id": []}, set(), None),
        ({"eos_token_id": 5}, {5}, 5),
        ({"eos_token_id": 0}, {0}, 0),
        ({"eos_token_id": [7, 6]}, {6, 7}, 6),
        ({"eos_token_id": [7, 6], "bos_token_id": 3}, {6, 7}, 3),
        ({"bos_token_id": 3}, set(), 3),
        ({"eos_token_id": [7, -1], "bos_token_id": -1}, {7}, 7),
        ({"eos_token_id": -1, "bos_token_id": -1}, set(), None),
    ],
    ids=str,
)
def test_ids_of_begin_and_end(
    defaults: dict[str, Any],
    end_ids: set[int],
    start_id: int | None,
    tiny_folder: ModelFolder,
    tmp_path: Path,
) -> None:
    model = pocketlm.Model(with_defaults(tiny_folder, tmp_path / "copy", defaults), threads=1)
    assert model.end_ids == end_ids
    assert model.start_id == start_id


@pytest.mark.parametrize("value", ["x", 1.5, True, {}, [[1]], [None], ["x", 1]], ids=str)
@pytest.mark.parametrize("name", ["eos_token_id", "bos_token_id"])
def test_what_is_no_token_id_is_refused(
    name: str, value: Any, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = with_defaults(tiny_folder, tmp_path / "copy", {name: value})
    message = rf"generation_config\.json: {name} is .*, expected a token id"
    with pytest.raises(pocketlm.ModelFolderError, match=message):
        pocketlm.Model(folder, threads=1)


def test_an_end_outside_the_vocabulary_never_comes(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    """Published test models often keep GPT-2's 50256 with a smaller vocabulary."""
    folder = with_defaults(tiny_folder, tmp_path / "copy", {"eos_token_id": 50256})
    model = pocketlm.Model(folder, threads=1)
    assert model.generate("the", max_tokens=5, temperature=0).finish_reason == "length"
    assert model.end_ids == set() and model.start_id is None
    with pytest.raises(pocketlm.RequestError, match="the prompt is empty, expected"):
        model.generate("")


@pytest.mark.parametrize(
    "defaults, expected",
    [
        ({}, {"temperature": 0.8, "top_p": 0.95}),
        ({"temperature": None, "do_sample": True}, {"temperature": 0.8, "top_p": 0.95}),
        ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"top_k": 20}, {"temperature": 0.8, "top_p": 0.95, "top_k": 20}),
        ({"top_k": 0, "top_p": 1.0}, {"temperature": 0.8, "top_p": 1.0}),
        ({"no_repeat_ngram_size": 0, "top_p": 1.0}, {"temperature": 0.8, "top_p": 1.0}),
        (
            {"typical_p": 0.9, "no_repeat_ngram_size": 2},
            {"temperature": 0.8, "top_p": 0.95, "typical_p": 0.9, "no_repeat_ngram_size": 2},
        ),
        (
            {"min_p": 0.1, "repetition_penalty": 1.1, "max_length": 20},
            {"temperature": 0.8, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.1},
        ),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0, "top_p": 0.95}),
    ],
    ids=str,
)
def test_the_models_own_sampling_is_the_default(
    defaults: dict[str, Any], expected: dict[str, Any], tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    defaults = {"eos_token_id": 299, **defaults}
    model = pocketlm.Model(with_defaults(tiny_folder, tmp_path / "copy", defaults), threads=1)
    assert model.sampling_defaults == expected
    plain = pocketlm.Model(tiny_folder, threads=1)
    options: dict[str, Any] = {"max_tokens": 12, "seed": 1}
    # Its own defaults are what it takes when not told, and one option given replaces one of them.
    spelled_out = plain.generate("the", **expected, **options)
    assert model.generate("the", **options).token_ids == spelled_out.token_ids
    warmer = {**expected, "temperature": 1.3}
    found = model.generate("the", temperature=1.3, **options)
    assert found.token_ids == plain.generate("the", **warmer, **options).token_ids


@pytest.mark.parametrize(
    "name, value",
    [
        *(("temperature", -1), ("temperature", "hot"), ("top_p", 0), ("top_k", -3)),
        *(("top_k", 1.5), ("min_p", 2), ("repetition_penalty", [])),
    ],
)
def test_sampling_that_cannot_be_is_left_out(
    name: str, value: Any, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    defaults = {name: value, "min_p" if name != "min_p" else "top_k": 1}
    folder = with_defaults(tiny_folder, tmp_path / "copy", defaults)
    with pytest.warns(UserWarning, match=rf"generation_config\.json: {name} is .*; it is left out"):
        model = pocketlm.Model(folder, threads=1)
    assert model.sampling_defaults.get(name) != value
    assert 1 in model.sampling_defaults.values()
    assert model.generate("the", max_tokens=2, seed=1).token_ids


def test_an_export_leaves_out_and_tells_what_cannot_be(tmp_path: Path) -> None:
    config = gpt2_config(vocab_size=300, bos_token_id=[50256, -1], eos_token_id=[299, 50256])
    path = write_checkpoint(tmp_path / "checkpoint", config)
    wrong = {"top_k": -1, "top_p": 0, "temperature": 0.5, "do_sample": True, "eos_token_id": None}
    (path / "generation_config.json").write_text(json.dumps(wrong))
    told: list[str] = []
    folder = export_model(
        open_checkpoint(path), tmp_path / "out", observer=Observer(message=told.append)
    )
    assert told == [
        "generation_config.json: top_k is -1, expected an integer of at least 0; it is left out",
        "generation_config.json: top_p is 0, expected a finite number in (0, 1]; it is left out",
        "config.json: bos_token_id has 50256, -1, expected ids of the vocabulary, 0 to 299; "
        "ignored",
    ]
    assert plan_export(open_checkpoint(path), tmp_path / "other").notes == tuple(told)
    written = json.loads((folder.path / "generation_config.json").read_text())
    assert written == {
        **{"temperature": 0.5, "do_sample": True, "eos_token_id": None, "bos_token_id": None}
    }
    model = pocketlm.Model(folder, threads=1)
    assert model.sampling_defaults == {"temperature": 0.5, "top_p": 0.95}


def test_no_limit_can_be_asked_for(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    """0 of top_k and no_repeat_ngram_size switches the model's own off, as in transformers."""
    defaults = {"top_k": 1, "no_repeat_ngram_size": 1, "top_p": 1.0, "temperature": 1.0}
    model = pocketlm.Model(with_defaults(tiny_folder, tmp_path / "copy", defaults), threads=1)
    plain = pocketlm.Model(tiny_folder, threads=1)
    free: dict[str, Any] = {"top_k": 0, "no_repeat_ngram_size": 0, "max_tokens": 8}
    for seed in range(3):
        expected = plain.generate("the", seed=seed, top_p=1.0, temperature=1.0, max_tokens=8)
        assert model.generate("the", seed=seed, **free).token_ids == expected.token_ids
