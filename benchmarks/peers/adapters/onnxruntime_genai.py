"""onnxruntime-genai: its model builder, and its own loop over the graph.

The builder knows no GPT-2: such a checkpoint runs as the graph that pocketlm exported, which tells
the loops apart, not the graphs.
Source: onnxruntime-genai 0.18, ``models/builder.py``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

NAME = "onnxruntime-genai"
PACKAGE = "onnxruntime-genai"
PRECISIONS = {"fp32": "fp32", "int8": "int8", "int4": "int4"}
BUILT = {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text", "olmo2"}


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Writes model.onnx and genai_config.json."""
    config = json.loads((checkpoint / "config.json").read_text())
    if config["model_type"] not in BUILT:
        shutil.copytree(ours, out, dirs_exist_ok=True)
        return f"its builder does not know {config['model_type']}: pocketlm's graph"
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    arguments = ("", str(checkpoint), str(out), precision, "cpu", str(out / "cache"))
    create_model(*arguments, **parse_extra_options(*arguments, []))
    shutil.rmtree(out / "cache", ignore_errors=True)
    return ""


class Model:
    """Its Generator, one for each generation."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import onnxruntime_genai

        self._api = onnxruntime_genai
        config = onnxruntime_genai.Config(str(folder))
        session = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": session}}))
        self._model = onnxruntime_genai.Model(config)
        self._length = json.loads((folder / "genai_config.json").read_text())["model"][
            "context_length"
        ]

    def generate(self, ids: list[int], count: int) -> list[int]:
        """Greedy; a minimal length as large as the maximal keeps the end token away."""
        generator = self._after(ids, len(ids) + count)
        while not generator.is_done():
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)[len(ids) :]]

    def logits(self, ids: list[int]) -> Any:
        """All rows (S, V): the graph's output for the prompt."""
        return self._after(ids, len(ids) + 1).get_output("logits")[0]

    def _after(self, ids: list[int], length: int) -> Any:
        """A generator that has read ``ids`` and ends at ``length``."""
        options: dict[str, Any] = {"max_length": length, "min_length": length, "do_sample": False}
        parameters = self._api.GeneratorParams(self._model)
        parameters.set_search_options(**options)
        generator = self._api.Generator(self._model, parameters)
        generator.append_tokens([ids])
        return generator
