"""Where a text begins and ends: what ``Model`` takes from the folder's generation_config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import pocketlm
from pocketlm.export.folder import MANIFEST, ModelFolder, file_sha256


def with_defaults(folder: ModelFolder, to: Path, defaults: Any) -> ModelFolder:
    """A copy with another generation_config.json and a manifest that agrees."""
    name = "generation_config.json"
    shutil.copytree(folder.path, to)
    (to / name).write_text(json.dumps(defaults))
    manifest = json.loads((to / MANIFEST).read_text())
    manifest["files"][name] = {
        "bytes": (to / name).stat().st_size,
        "sha256": file_sha256(to / name),
    }
    (to / MANIFEST).write_text(json.dumps(manifest))
    return ModelFolder.open(to)


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


@pytest.mark.parametrize("value", ["x", -1, 1.5, True, {}, [[1]], [None], ["x", 1]], ids=str)
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
    with pytest.raises(pocketlm.RequestError, match="expected"):
        model.generate("")
