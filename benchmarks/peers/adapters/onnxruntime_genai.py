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
# What its builder is told beside the width; "int4" are its defaults, blocks of 32 and all 4 bits.
VARIANTS = {
    "int4 k_quant, int8 head": ["algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8"],
    "int4 b128": ["block_size=128"],
}
PRECISIONS = {"fp32": "fp32", "int8": "int8", "int4": "int4", **dict.fromkeys(VARIANTS, "int4")}
LAST_ROW = ["prune_lm_head=true"]  # of a prompt the head computes the last row only
BUILT = {"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text", "olmo2"}


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Writes model.onnx and genai_config.json."""
    config = json.loads((checkpoint / "config.json").read_text())
    if config["model_type"] not in BUILT:
        if precision in VARIANTS:
            raise ValueError(f"its builder does not know {config['model_type']}")
        shutil.copytree(ours, out, dirs_exist_ok=True)
        return f"its builder does not know {config['model_type']}: pocketlm's graph"
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    width = precision.split()[0]
    arguments = ("", str(checkpoint), str(out), width, "cpu", str(out / "cache"))
    options = [*LAST_ROW, *VARIANTS.get(precision, [])]
    create_model(*arguments, **parse_extra_options(*arguments, options))
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
        self.settings = "head for the last row of a prompt only, where its builder made the graph"
        self._length = json.loads((folder / "genai_config.json").read_text())["model"][
            "context_length"
        ]

    def generate(self, ids: list[int], count: int) -> list[int]:
        """Greedy; a minimal length as large as the maximal keeps the end token away."""
        return self.generate_many([ids], count)[0]

    def generate_many(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """Likewise of prompts of one length, as one batch."""
        length = len(prompts[0])
        generator = self._generator(len(prompts), length + count)
        generator.append_tokens(prompts)
        while not generator.is_done():
            generator.generate_next_token()
        return [
            [int(token) for token in generator.get_sequence(row)[length:]]
            for row in range(len(prompts))
        ]

    def logits(self, ids: list[int]) -> Any:
        """All rows (S, V), token by token: of a prompt its graph computes the last row only."""
        import numpy as np

        generator = self._generator(1, len(ids) + 1)
        rows = []
        for token in ids:
            generator.append_tokens([[token]])
            rows.append(np.array(generator.get_output("logits")[0, -1]))
        return np.stack(rows)

    def _generator(self, rows: int, length: int) -> Any:
        """One that ends at ``length``."""
        options: dict[str, Any] = {"max_length": length, "min_length": length, "do_sample": False}
        parameters = self._api.GeneratorParams(self._model)
        parameters.set_search_options(batch_size=rows, **options)
        return self._api.Generator(self._model, parameters)
