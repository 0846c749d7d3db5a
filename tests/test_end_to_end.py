"""A checkpoint on disk to text: greedy tokens are those of the NumPy twin, whatever the source.

Level: end to end. A model and its twin share nothing but the files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import (
    gpt2_config,
    gpt2_tensors,
    write_checkpoint,
    write_llmc,
    write_tokenizer,
)
from reference.gpt2 import forward

import pocketlm

PROMPT = "the rest of it"
CONFIG = gpt2_config(vocab_size=300, n_positions=48)
# Large weights, so that the text does not repeat itself at once.
TENSORS = {
    name: values * 5 if values.ndim == 2 else values
    for name, values in gpt2_tensors(CONFIG, seed=4).items()
}


@pytest.fixture(params=["safetensors", "shards", "llm.c"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> pocketlm.Model:
    """The same weights in each form a checkpoint may have."""
    if request.param == "llm.c":
        write_tokenizer(tmp_path, 300)
        source = write_llmc(tmp_path / "model.bin", CONFIG, TENSORS)
        return pocketlm.load(source, precision="fp32", tokenizer=tmp_path, threads=1)
    shards = 3 if request.param == "shards" else 1
    source = write_checkpoint(tmp_path / "in", CONFIG, TENSORS, shards=shards)
    return pocketlm.load(source, precision="fp32", threads=1)


def test_greedy_text_is_that_of_the_twin_to_the_end_of_the_context(model: pocketlm.Model) -> None:
    prompt = model.tokenizer.encode(PROMPT)
    ids = list(prompt)
    while len(ids) <= CONFIG["n_positions"]:
        ids.append(int(forward(CONFIG, TENSORS, ids)[-1].argmax()))
    expected = ids[len(prompt) :]
    assert len(set(expected)) > 10
    found = model.generate(PROMPT, temperature=0, ignore_eos=True, logprobs=True)
    assert found.token_ids == expected
    assert found.text == model.tokenizer.decode(expected)
    assert found.finish_reason == "context"

    logits = forward(CONFIG, TENSORS, ids[:-1])[len(prompt) - 1 :]
    logprobs = logits.max(axis=1) - np.log(np.exp(logits).sum(axis=1))
    assert found.logprobs is not None
    np.testing.assert_allclose(found.logprobs, logprobs, rtol=0, atol=1e-3)
