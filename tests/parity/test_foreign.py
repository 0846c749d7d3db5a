"""Others' model folders run here: the greedy tokens of the runtime that they were made for."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import write_checkpoint
from foreign_folders import genai_folder
from interop_models import DEMO, NEW_TOKENS, STORIES
from llama_checkpoints import llama_config, llama_tensors

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.writing import export_model
from pocketlm.models.local import demo_checkpoint
from pocketlm.quantize.run import precision_of

pytestmark = pytest.mark.optimum
IDS = [5, 40, 7, 7, 90, 12, 3]


def ours(folder: Path) -> list[int]:
    model = pocketlm.load(folder, allow_foreign=True, threads=1)
    return model.generate(IDS, max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True).token_ids


def packed(graph: Path, out: Path) -> None:
    """The graph as transformers.js' own script makes ``model_q4.onnx`` of it."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(graph), block_size=32, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    onnx.save(quantizer.model.model, out)


@pytest.mark.parametrize("source", [DEMO, STORIES])
@pytest.mark.parametrize("opset", [14, 18])
def test_optimums_and_transformers_js_folders(
    source: str, opset: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    optimum = pytest.importorskip("optimum.onnxruntime")
    import torch
    from optimum.exporters.onnx import main_export

    checkpoint = demo_checkpoint()
    if source == STORIES:
        checkpoint = request.getfixturevalue("test_data") / "models" / "stories260K_hf"
    out = tmp_path / "theirs"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = "text-generation-with-past"
        main_export(str(checkpoint), out, task=task, do_validation=False, opset=opset)
    shutil.copy(checkpoint / "tokenizer.json", out)
    (out / "onnx").mkdir()
    for file in out.glob("model.onnx*"):
        file.rename(out / "onnx" / file.name)
    packed(out / "onnx" / "model.onnx", out / "onnx" / "model_q4.onnx")
    for name in ("model.onnx", "model_q4.onnx"):
        theirs = optimum.ORTModelForCausalLM.from_pretrained(
            out, subfolder="onnx", file_name=name, local_files_only=True
        )
        length = {"max_new_tokens": NEW_TOKENS, "eos_token_id": 10**6, "pad_token_id": 0}
        found = theirs.generate(torch.tensor([IDS]), do_sample=False, **length)
        assert ours(out / "onnx" / name) == found[0].tolist()[len(IDS) :]


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_genais_folders(precision: str, tmp_path: Path) -> None:
    """Written as its builder does, which itself wants a newer transformers than Optimum."""
    genai: Any = pytest.importorskip("onnxruntime_genai")
    config = llama_config(hidden_size=64, num_attention_heads=4, head_dim=16)
    opened = open_checkpoint(write_checkpoint(tmp_path / "in", config, llama_tensors(config)))
    folder = export_model(opened, tmp_path / "out", precision_of(precision))
    theirs = genai_folder(folder, tmp_path / "theirs")
    model = genai.Model(str(theirs))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(IDS) + NEW_TOKENS, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(IDS)
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)][len(IDS) :]
    assert ours(theirs)[: len(found)] == found
