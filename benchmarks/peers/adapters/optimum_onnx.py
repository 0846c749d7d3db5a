"""optimum-onnx: Transformers' graph traced to ONNX, and its dynamic int8 quantization.

Source: optimum-onnx 0.1, ``onnxruntime/quantization.py`` and its page "Quantization".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAME = "optimum-onnx"
PACKAGE = "optimum-onnx"
PRECISIONS = {"fp32": "fp32", "int8": "int8"}


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Traces and, for int8, quantizes for AVX512-VNNI, weights by channel."""
    from optimum.onnxruntime import ORTModelForCausalLM, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    full = out if precision == "fp32" else out / "full"
    ORTModelForCausalLM.from_pretrained(checkpoint, export=True).save_pretrained(full)
    if precision == "fp32":
        return ""
    import shutil

    quantizer = ORTQuantizer.from_pretrained(full, file_name="model.onnx")
    choice = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    large = any(full.glob("model.onnx?data"))
    quantizer.quantize(choice, save_dir=out, use_external_data_format=large)
    shutil.rmtree(full)
    return ""


class Model:
    """ORTModelForCausalLM and a greedy loop over it, which costs less than ``model.generate``."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM

        torch.set_num_threads(threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        file = next(path.name for path in folder.glob("model*.onnx"))
        self._model = ORTModelForCausalLM.from_pretrained(
            folder, file_name=file, session_options=options, use_io_binding=True
        )
        self._torch = torch

    def generate(self, ids: list[int], count: int) -> list[int]:
        """The prompt, then token by token; the graph gives the logits of all prompt tokens."""
        tokens: list[int] = []
        fed, cache = self._torch.tensor([ids]), None
        while len(tokens) < count:
            mask = self._torch.ones((1, len(ids) + len(tokens)), dtype=self._torch.int64)
            out = self._model(fed, attention_mask=mask, past_key_values=cache, use_cache=True)
            fed, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            tokens.append(int(fed))
        return tokens

    def logits(self, ids: list[int]) -> Any:
        """All rows (S, V)."""
        mask = self._torch.ones((1, len(ids)), dtype=self._torch.int64)
        fed = self._torch.tensor([ids])
        return self._model(fed, attention_mask=mask, use_cache=True).logits[0].numpy()
