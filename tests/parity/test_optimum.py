"""Our float graph against the one Optimum exports, and our folder opened by Optimum.

Same checkpoint, same tokens: a prompt at once, then token by token through both caches.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from interop_models import MODELS, Expected, InteropModels
from numpy.typing import NDArray

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.models.local import demo_checkpoint
from pocketlm.quantize.precisions import PRECISIONS
from pocketlm.runtime.session import Session

pytestmark = pytest.mark.optimum

# Of the largest logit; measured 3e-6. Wide enough for other kernels, and still too narrow for the
# tanh form of GELU in place of the exact one.
TOLERANCE = 1e-4
CASES: dict[str, dict[str, Any]] = {
    f"{activation}, {'tied' if tied else 'untied'}": {
        "activation_function": activation,
        "tie_word_embeddings": tied,
    }
    for activation in ("gelu_new", "gelu", "relu")
    for tied in (True, False)
}
DEMO = "demo"

Logits = NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def offline() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def optimum() -> Any:
    return pytest.importorskip("optimum.onnxruntime")


@pytest.fixture(scope="module", params=[DEMO, *CASES])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint as transformers reads it."""
    place = tmp_path_factory.mktemp("checkpoint")
    if request.param == DEMO:
        return Path(shutil.copytree(demo_checkpoint(), place / DEMO))
    config = gpt2_config(vocab_size=300, **CASES[request.param])
    # Five times the usual scale, so that greedy tokens are not all the same.
    tensors = {
        name: values * 5 if values.ndim == 2 else values
        for name, values in gpt2_tensors(config, seed=2).items()
    }
    return write_checkpoint(place / "tiny", config, tensors)


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> ModelFolder:
    return export_model(open_checkpoint(checkpoint), checkpoint.parent / "ours")


@pytest.fixture(scope="module")
def theirs(optimum: Any, checkpoint: Path) -> Any:
    """The checkpoint as Optimum exports it with torch."""
    from optimum.exporters.onnx import main_export

    out = checkpoint.parent / "theirs"
    # The torch of today deprecates the exporter that Optimum uses, and warns of much in it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main_export(
            str(checkpoint),
            out,
            task="text-generation-with-past",
            do_validation=False,
            dtype="fp32",
        )
    return optimum.ORTModelForCausalLM.from_pretrained(out, local_files_only=True)


def random_ids(folder: ModelFolder, count: int) -> list[int]:
    rows = np.random.default_rng(5).integers(0, folder.shape.vocab_size, count)
    return [int(number) for number in rows]


def their_logits(model: Any, ids: list[int], cached: int) -> Logits:
    """Logits after every token; the last ``cached`` ones are fed one by one."""
    import torch

    start = len(ids) - cached
    rows, past = [], None
    for begin, end in [(0, start), *((i, i + 1) for i in range(start, len(ids)))]:
        out = model(
            input_ids=torch.tensor([ids[begin:end]]),
            attention_mask=torch.ones((1, end), dtype=torch.int64),
            past_key_values=past,
            use_cache=True,
        )
        rows.append(out.logits[0].numpy())
        past = out.past_key_values
    return np.concatenate(rows)


def our_logits(session: Session, ids: list[int], cached: int) -> Logits:
    cache = session.new_cache()
    start = len(ids) - cached
    rows = [session.all_logits(ids[:start], cache)]
    rows += [session.all_logits([token], cache) for token in ids[start:]]
    return np.concatenate(rows)


def check_close(found: Logits, expected: Logits) -> None:
    assert found.shape == expected.shape
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(f"largest difference {difference:.1e} of the largest logit")
    assert difference < TOLERANCE


@pytest.mark.parametrize("cached", [0, 16])
def test_logits_equal_those_of_optimums_export(
    cached: int, theirs: Any, folder: ModelFolder
) -> None:
    ids = random_ids(folder, 40)
    found = our_logits(Session(folder, threads=1), ids, cached)
    check_close(found, their_logits(theirs, ids, cached))


def test_optimum_runs_our_folder(optimum: Any, folder: ModelFolder) -> None:
    """The same logits and the same greedy tokens as our own loop."""
    import torch

    opened = optimum.ORTModelForCausalLM.from_pretrained(
        folder.path, file_name="model.onnx", local_files_only=True
    )
    ids = random_ids(folder, 12)
    check_close(their_logits(opened, ids, 4), our_logits(Session(folder, threads=1), ids, 4))
    count = 24
    end = folder.shape.vocab_size  # no such token: neither side stops early
    found = opened.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=count, eos_token_id=end, pad_token_id=0
    )
    ours = pocketlm.Model(folder, threads=1).generate(
        ids, max_tokens=count, temperature=0, ignore_eos=True
    )
    assert found[0].tolist()[len(ids) :] == ours.token_ids
    assert len(set(ours.token_ids)) > 3


def check_greedy(optimum: Any, folder: ModelFolder, expected: Expected) -> None:
    """As docs/interop.md says to call it; without file_name it takes one of several graphs."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    opened = optimum.ORTModelForCausalLM.from_pretrained(
        folder.path, file_name="model.onnx", session_options=options, local_files_only=True
    )
    end = folder.shape.vocab_size  # no such token
    found = opened.generate(
        torch.tensor([expected.prompt]),
        do_sample=False,
        max_new_tokens=len(expected.tokens),
        eos_token_id=end,
        pad_token_id=0,
    )
    assert found[0].tolist()[len(expected.prompt) :] == expected.tokens


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_optimum_prefers_the_same_tokens(
    name: str, precision: str, optimum: Any, interop_models: InteropModels
) -> None:
    folder = interop_models.folder(name, precision)
    check_greedy(optimum, folder, interop_models.expected(folder))


def test_optimum_leaves_other_graphs_alone(
    optimum: Any, interop_models: InteropModels, prefill_folder: ModelFolder
) -> None:
    check_greedy(optimum, prefill_folder, interop_models.expected(prefill_folder))
