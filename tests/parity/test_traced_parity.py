"""Checkpoints that Optimum traces, against transformers: logits of the model folder and of torch.

Tiny random models of several architectures, made by transformers itself; the tracing is the real
one, in its child process.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_tokenizer
from model_folders import report_of

import pocketlm
from pocketlm.export.errors import CheckpointError
from pocketlm.export.folder import GROWING, IN_PLACE, ModelFolder
from pocketlm.export.via_optimum import export_via_optimum
from pocketlm.quantize.run import export_traced
from pocketlm.runtime.session import Session

pytestmark = pytest.mark.optimum

# Of the largest logit; measured up to 5e-6.
TOLERANCE = 1e-4
VOCAB = 300
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4}
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
NEOX = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("gpt2", GPT | {"n_positions": 128}, IN_PLACE),
    "llama": ("llama", LLAMA, IN_PLACE),
    "llama, scaled": ("llama", LLAMA | {"rope_scaling": LLAMA3}, IN_PLACE),
    "mistral, window": ("mistral", LLAMA | {"sliding_window": 16}, IN_PLACE),
    "gemma2": ("gemma2", LLAMA | {"head_dim": 16, "sliding_window": 16}, IN_PLACE),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 2, "n_head": 4}, IN_PLACE),
    "opt": ("opt", NEOX | {"ffn_dim": 96, "word_embed_proj_dim": 64}, IN_PLACE),
    "gpt_neox": ("gpt_neox", NEOX, IN_PLACE),
    "helium": ("helium", LLAMA | {"head_dim": 16}, GROWING),
}


@pytest.fixture(scope="module", autouse=True)
def offline() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def make(kind: str, config: dict[str, Any], folder: Path) -> Any:
    """Saves a random model with a tokenizer, and returns it; weights are wide enough to matter."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("optimum.exporters.onnx")
    import torch

    torch.manual_seed(0)
    ids = {"vocab_size": VOCAB, "bos_token_id": 299, "eos_token_id": 299, "pad_token_id": 0}
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **ids, **config), attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    write_tokenizer(folder, VOCAB)
    return model


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_torch(name: str, tmp_path: Path) -> None:
    import torch

    kind, config, cache_kind = CASES[name]
    model = make(kind, config, tmp_path / "source")
    folder = export_via_optimum(tmp_path / "source", tmp_path / "out")
    assert folder.graph().cache.layout == cache_kind
    assert folder.manifest.architecture == kind
    ids = np.random.default_rng(3).integers(0, VOCAB, 100)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
    session = Session(folder, threads=1)
    for sizes in ([100], [7, 1, 1, 20, 71], [50] + [1] * 50):
        cache, start, rows = session.new_cache(), 0, []
        for size in sizes:
            rows.append(session.all_logits(ids[start : start + size], cache))
            start += size
        difference = np.abs(np.concatenate(rows) - expected).max() / np.abs(expected).max()
        assert difference < TOLERANCE


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bloom")
    make("bloom", CASES["bloom"][1], folder)
    return folder


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_an_undeclared_architecture_is_quantized_and_generates(
    precision: str, bloom: Path, tmp_path: Path
) -> None:
    folder = export_traced(bloom, tmp_path / "out", precision)
    report = report_of(folder)
    assert report.share_quantized > 0.9
    assert not report.skipped
    model = pocketlm.load(folder.path, threads=1)
    assert len(model.generate("abc", max_tokens=8, ignore_eos=True).token_ids) == 8


def torch_copy(bloom: Path, folder: Path, content: Any = None, shards: int = 1) -> Path:
    """The checkpoint with its weights, or ``content``, in torch's own files."""
    import torch
    from safetensors.torch import load_file

    folder.mkdir()
    for file in bloom.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(bloom / "model.safetensors") if content is None else content
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        part = dict(list(tensors.items())[shard::shards])
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_torch_files_give_the_same_weights(shards: int, bloom: Path, tmp_path: Path) -> None:
    whole = export_via_optimum(bloom, tmp_path / "whole")
    folder = export_via_optimum(torch_copy(bloom, tmp_path / "bin", shards=shards), tmp_path / "o")
    assert folder.manifest.source.format == "torch"
    assert folder.files["model.onnx_data"] == whole.files["model.onnx_data"]


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.command = f"touch '{canary}'"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["torch", "plain pickle"])
def test_a_pickle_that_runs_code_does_not_run_it(form: str, bloom: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content = {"transformer.word_embeddings.weight": Harmful(canary)}
    source = torch_copy(bloom, tmp_path / "bin", content)
    if form == "plain pickle":
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="more than weights, so they are not loaded"):
        export_via_optimum(source, tmp_path / "out")
    assert not canary.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(content))  # the canary works
    assert canary.exists()


def test_code_beside_the_weights_is_not_run(bloom: Path, tmp_path: Path) -> None:
    source = torch_copy(bloom, tmp_path / "bin")
    canary = tmp_path / "canary"
    (source / "configuration_evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Config"}}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="Optimum cannot export it"):
        export_via_optimum(source, tmp_path / "out")
    assert not canary.exists()


def test_an_architecture_that_optimum_lacks_lists_the_others(tmp_path: Path) -> None:
    make("starcoder2", LLAMA, tmp_path / "source")
    with pytest.raises(CheckpointError, match="'starcoder2', expected one .*bloom, .*gpt2, "):
        export_via_optimum(tmp_path / "source", tmp_path / "out")


def test_quantized_traces_keep_their_kind_of_cache(tmp_path: Path) -> None:
    make(*CASES["helium"][:2], tmp_path / "source")
    folder = export_traced(tmp_path / "source", tmp_path / "out", "int4")
    assert ModelFolder.open(folder.path).graph().cache.layout == GROWING
    session = Session(folder, threads=1)
    assert np.isfinite(session.step([1, 2, 3], session.new_cache())).all()
