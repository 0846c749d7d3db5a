"""torch through Transformers, eager: what a checkpoint runs with before anyone converts it.

int8 is torch's dynamic quantization of the linear layers, activations included; GPT-2's Conv1D
layers, which it would leave alone, are made linear ones first.
Source: ``torch.ao.quantization.quantize_dynamic``; Transformers ``pytorch_utils.Conv1D``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

NAME = "torch"
PACKAGE = "torch"
PRECISIONS = {"float32": "fp32", "dynamic int8": "int8"}


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Links the checkpoint: it is opened as it is."""
    for file in checkpoint.iterdir():
        os.symlink(file.resolve(), out / file.name)
    return "weights quantized while loading" if precision != "float32" else ""


class Model:
    """The model and a greedy loop over it, which costs less than ``model.generate``."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        if precision != "float32":
            self._model = quantized(self._model)

    def generate(self, ids: list[int], count: int) -> list[int]:
        """The prompt with the logits of its last token only, then token by token."""
        tokens: list[int] = []
        fed, cache = self._torch.tensor([ids]), None
        with self._torch.inference_mode():
            while len(tokens) < count:
                out = self._model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
                fed, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
                tokens.append(int(fed))
        return tokens

    def logits(self, ids: list[int]) -> Any:
        """All rows (S, V)."""
        with self._torch.inference_mode():
            return self._model(self._torch.tensor([ids])).logits[0].numpy()


def quantized(model: Any) -> Any:
    """The model with its linear layers in int8."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                setattr(module, name, linear(child))
    return torch.ao.quantization.quantize_dynamic(
        model, {torch.nn.Linear}, torch.qint8, inplace=True
    )


def linear(layer: Any) -> Any:
    """The linear layer, (out, in), that computes what a Conv1D, (in, out), does."""
    import torch

    size_in, size_out = layer.weight.shape
    made = torch.nn.Linear(size_in, size_out)
    made.weight = torch.nn.Parameter(layer.weight.T.contiguous())
    made.bias = layer.bias
    return made
