"""Whatever stands in a checkpoint's JSON: it is exported, or refused in a line."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, write_checkpoint
from llama_checkpoints import llama_config, llama_tensors

from pocketlm.export.errors import CheckpointError
from pocketlm.export.plan import open_headers
from pocketlm.export.writing import plan_export

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 1e300, 2**70, 10**350, "", "x", "\0", [], {}),
    *([[]], [{}], [None], {"a": 1}, {"content": 1}, [1, 2, 3]),
]
BESIDE = {
    "generation_config.json": {"bos_token_id": 1, "eos_token_id": [1, 2], "temperature": 0.7},
    "tokenizer_config.json": {
        "bos_token": "a",
        "eos_token": {"content": "b"},
        "add_bos_token": True,
        "added_tokens_decoder": {"5": {"content": "<x>", "special": True}},
    },
}
SCALING = {"rope_type": "linear", "factor": 2.0}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A GPT-2 with vocab.json and merges.txt, and a Llama in shards with a tokenizer.json."""
    folder = tmp_path_factory.mktemp("foreign")
    gpt2 = write_checkpoint(folder / "gpt2", gpt2_config(vocab_size=300))
    tokenizer = gpt2 / "tokenizer.json"
    model = json.loads(tokenizer.read_text("utf-8"))["model"]
    (gpt2 / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (gpt2 / "merges.txt").write_text(merges, "utf-8")
    tokenizer.unlink()
    config = llama_config(rope_scaling=SCALING)
    llama = write_checkpoint(folder / "llama", config, llama_tensors(config), shards=2)
    for source in (gpt2, llama):
        for name, content in BESIDE.items():
            (source / name).write_text(json.dumps(content))
    return [gpt2, llama]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    keys: list[Any] = []
    if isinstance(value, dict | list):
        keys = list(value)[:40] if isinstance(value, dict) else list(range(len(value)))[:3]
    for key in keys:
        yield from places(value[key], (*place, key))


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    value[place[0]] = changed(value[place[0]], place[1:], new)
    return value


def test_json_of_any_kind_is_exported_or_refused_in_a_line(
    sources: list[Path], tmp_path: Path
) -> None:
    generator = random.Random(3)
    num_refused, rounds = 0, 45
    for round_ in range(rounds):
        source = sources[round_ % 2]
        file = generator.choice(sorted(source.glob("*.json")))
        whole = file.read_text("utf-8")
        content = json.loads(whole)
        place = generator.choice(list(places(content)))
        content = changed(content, place, copy.deepcopy(generator.choice(ODD)))
        file.write_text(json.dumps(content), "utf-8")
        try:
            plan_export(open_headers(source), tmp_path / "out", timed=False)
        except CheckpointError as error:
            num_refused += 1
            assert "\n" not in str(error) and "expected" in str(error), (file, place)
        finally:
            file.write_text(whole, "utf-8")
    assert rounds // 4 < num_refused < rounds
