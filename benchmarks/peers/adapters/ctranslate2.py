"""CTranslate2: its converter for Transformers -> model.bin in float32 or int8.

int8 quantizes activations as well, row by row. It has no 4-bit kernel for processors. Its converter
marks Llama 3's rotary scaling and leaves out two of its four numbers, so that the model rotates as
if there were none; they are added here.
Source: CTranslate2 4.8, ``converters/transformers.py``, ``specs/attention_spec.py`` and the page
"Text generation".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "CTranslate2"
PACKAGE = "ctranslate2"
PRECISIONS = {"float32": "fp32", "int8": "int8"}


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Writes model.bin and its vocabulary."""
    from ctranslate2.converters import TransformersConverter

    missing = missing_scaling(json.loads((checkpoint / "config.json").read_text()))

    class Converter(TransformersConverter):  # type: ignore[misc]
        def _load(self) -> Any:
            specification = super()._load()
            for layer in specification.decoder.layer:
                vars(layer.self_attention).update(missing)  # the class takes no new attributes
            return specification

    converter = Converter(str(checkpoint), low_cpu_mem_usage=True)
    converter.convert(str(out), quantization=precision, force=True)
    return "rotary scaling added, which its converter leaves out" if missing else ""


def missing_scaling(config: dict[str, Any]) -> dict[str, Any]:
    """What its converter does not say of Llama 3's rotary scaling, by the names of its files."""
    import numpy as np

    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return {}
    return {
        "rotary_scaling_factor": np.float32(scaling["factor"]),
        "original_max_position_embeddings": np.int32(scaling["original_max_position_embeddings"]),
    }


class Model:
    """A Generator; it takes tokens by name, so ids are looked up in its vocabulary."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import ctranslate2

        self._generator = ctranslate2.Generator(
            str(folder), compute_type=precision, inter_threads=1, intra_threads=threads
        )
        self.settings = f"compute type {self._generator.compute_type}"
        self._names: list[str] = json.loads((folder / "vocabulary.json").read_text())

    def generate(self, ids: list[int], count: int) -> list[int]:
        """One call; a minimal length as large as the maximal keeps the end token away."""
        return self.generate_many([ids], count)[0]

    def generate_many(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """Likewise, as one batch."""
        results = self._generator.generate_batch(
            [[self._names[i] for i in ids] for ids in prompts],
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [list(result.sequences_ids[0]) for result in results]

    def logits(self, ids: list[int]) -> Any:
        """All rows (S, V)."""
        import numpy as np

        names = [[self._names[i] for i in ids]]
        return np.array(self._generator.forward_batch(names, return_log_probs=False))[0]
