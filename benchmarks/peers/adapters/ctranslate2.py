"""CTranslate2: its converter for Transformers -> model.bin in float32 or int8.

int8 quantizes activations as well, row by row. It has no 4-bit kernel for processors.
Source: CTranslate2 4.8, ``converters/transformers.py`` and the page "Text generation".
"""

from __future__ import annotations

import json
from pathlib import Path

NAME = "CTranslate2"
PACKAGE = "ctranslate2"
PRECISIONS = {"float32": "fp32", "int8": "int8"}


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Writes model.bin and its vocabulary."""
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(checkpoint), low_cpu_mem_usage=True)
    converter.convert(str(out), quantization=precision, force=True)
    return ""


class Model:
    """A Generator; it takes tokens by name, so ids are looked up in its vocabulary."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import ctranslate2

        self._generator = ctranslate2.Generator(
            str(folder), compute_type=precision, inter_threads=1, intra_threads=threads
        )
        self._names: list[str] = json.loads((folder / "vocabulary.json").read_text())

    def generate(self, ids: list[int], count: int) -> list[int]:
        """One call; a minimal length as large as the maximal keeps the end token away."""
        results = self._generator.generate_batch(
            [[self._names[i] for i in ids]],
            max_length=count,
            min_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return list(results[0].sequences_ids[0])
