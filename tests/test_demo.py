"""The demo model in the package: small, described, and writing the same text as when frozen.

Level: golden. The frozen tokens were made with ``pocketlm.load(precision="fp32")``, greedy, and
onnxruntime 1.32; at every step the runner-up is at least 0.14 behind in logits, far beyond what
another processor's rounding moves them (about 1e-4).
"""

from __future__ import annotations

import math
import re

import pytest

import pocketlm
from pocketlm.exported import DEMO_CHECKPOINT

FROZEN = {
    "It was a dark and stormy night": (
        [12, 279, 263, 1224, 310, 779, 12, 279, 263, 1224]
        + [310, 779, 12, 279, 263, 1224, 310, 779, 12, 279],
        ", and the sun was still, and the sun was still, and the sun was still, and",
    ),
    " Once upon a time there": (
        [310, 259, 657, 1598, 282, 263, 869, 12, 279, 263]
        + [869, 310, 259, 657, 430, 12, 279, 263, 869, 310],
        " was a great deal of the world, and the world was a great man, and the world was",
    ),
}


@pytest.fixture(scope="module")
def demo() -> pocketlm.Model:
    return pocketlm.load(precision="fp32", threads=1)


def test_demo_is_small_and_complete() -> None:
    files = {file.name: file.stat().st_size for file in DEMO_CHECKPOINT.iterdir()}
    assert files.keys() == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert sum(files.values()) <= 16_000_000


def test_card_states_data_licence_and_perplexity() -> None:
    card = (DEMO_CHECKPOINT / "README.md").read_text("utf-8")
    for part in ("Training data", "public domain", "Held out", "Treasure Island", "Licence"):
        assert part in card
    perplexity, nats = re.findall(r"\d+\.\d+", card.split("Perplexity")[1].replace("\n", " "))[::3]
    assert math.exp(float(nats)) == pytest.approx(float(perplexity), rel=1e-3)


@pytest.mark.parametrize("prompt", FROZEN)
def test_greedy_text_is_frozen(demo: pocketlm.Model, prompt: str) -> None:
    token_ids, text = FROZEN[prompt]
    result = demo.generate(prompt, temperature=0, max_tokens=20)
    assert result.token_ids == token_ids
    assert result.text == text


def test_default_precision_writes_english() -> None:
    """What ``pocketlm run PROMPT`` does; int8 may differ from fp32, but not in kind."""
    text = pocketlm.load(threads=1).generate("It was a dark", max_tokens=60, seed=1).text
    words = re.findall(r"[a-z]+", text.lower())
    common = {"the", "and", "of", "to", "a", "was", "in", "he", "she", "it", "i", "that", "had"}
    assert len(words) >= 20 and len(common & set(words)) >= 4
