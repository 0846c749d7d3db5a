"""stories260K, a small trained Llama: its published loss and text (skipped without the model)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pocketlm import Model
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.writing import export_model


def test_stories260k_has_the_loss_its_readme_states(test_data: Path, tmp_path: Path) -> None:
    """12 stories of TinyStories in one window each, in nats per token; see the model's README."""
    source = test_data / "models" / "stories260K_hf"
    model = Model(export_model(open_checkpoint(source), tmp_path / "out"), threads=2)
    text = (test_data / "texts" / "tinystories-sample.txt").read_text(encoding="utf-8")
    stories = [story.strip() for story in text.split("<|endoftext|>")]
    chosen = [story[:1200] for story in stories if len(story) > 200][:12]
    losses: list[float] = []
    for story in chosen:
        ids = model.tokenizer.encode(story)
        logits = model.session.all_logits(ids[:-1], model.session.new_cache()).astype(np.float64)
        largest = logits.max(axis=-1, keepdims=True)
        total = np.log(np.exp(logits - largest).sum(axis=-1)) + largest[:, 0]
        losses += list(total - logits[np.arange(len(ids) - 1), ids[1:]])
    assert len(losses) == 3956
    assert np.mean(losses) == pytest.approx(1.3327, abs=5e-5)
    greedy = model.generate("Once upon a time", temperature=0, max_tokens=60)
    assert greedy.text.startswith(", there was a little girl named Lily. She loved to play outside")
