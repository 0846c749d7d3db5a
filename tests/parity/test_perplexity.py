"""Perplexity against transformers': the strided loop of its documentation, in torch, to 4 digits.

Source: "Perplexity of fixed-length models" in the documentation of transformers. Its loop counts a
window's labels less one as those that made the loss; here they are counted after the shift, which
is exact: only the first window loses a label to it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from source_tree import ROOT

from pocketlm.benchmarks.quality.measure import measure_quality
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.models.local import demo_checkpoint

pytestmark = pytest.mark.optimum


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return export_model(
        open_checkpoint(demo_checkpoint()), tmp_path_factory.mktemp("demo") / "fp32"
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes((ROOT / "README.md").read_bytes()[:5_000].decode(errors="ignore").encode())
    return path


def transformers_loss(text: Path, window: int, stride: int) -> tuple[float, int]:
    """Mean negative log-likelihood in nats, and of how many tokens."""
    torch = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(demo_checkpoint()).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(demo_checkpoint() / "tokenizer.json")
    )
    ids = tokenizer(text.read_bytes().decode(), verbose=False)["input_ids"]
    input_ids = torch.tensor([[model.config.bos_token_id, *ids]])
    nll_sum, num_tokens, previous_end = 0.0, 0, 0
    for begin in range(0, input_ids.size(1), stride):
        end = min(begin + window, input_ids.size(1))
        target_length = end - previous_end
        labels = input_ids[:, begin:end].clone()
        labels[:, :-target_length] = -100
        with torch.no_grad():
            loss = model(input_ids[:, begin:end], labels=labels).loss
        count = int((labels[:, 1:] != -100).sum())
        nll_sum += float(loss) * count
        num_tokens += count
        previous_end = end
        if end == input_ids.size(1):
            break
    return nll_sum / num_tokens, num_tokens


@pytest.mark.parametrize(("window", "stride"), [(512, 256), (128, 48), (64, 63)])
def test_perplexity_is_that_of_transformers(
    folder: ModelFolder, text: Path, window: int, stride: int
) -> None:
    found = measure_quality({"fp32": folder}, [text], window=window, stride=stride, threads=2)
    loss, num_tokens = transformers_loss(text, window, stride)
    assert found["tokens"] == num_tokens > 1000
    perplexity = found["models"][0]["perplexity"]["token"]["value"]
    assert perplexity == pytest.approx(math.exp(loss), rel=2e-5)
