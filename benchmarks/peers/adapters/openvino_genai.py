"""OpenVINO GenAI: Optimum Intel's export with weights in float32, int8 or int4 -> LLMPipeline.

Weights are compressed by NNCF with the defaults of ``optimum-cli export openvino``; the pipeline
runs with its own defaults too, but for two: a prompt seen before is computed again, and in fp32 the
half-precision shortcuts are switched off. The pipeline gives no logits: they are OpenVINO's own of
the same file, with the same options.
Source: optimum-intel ``exporters/openvino/__main__.py``; OpenVINO's "CPU device" page.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

NAME = "OpenVINO GenAI"
PACKAGE = "openvino-genai"
PRECISIONS = {"fp32": "fp32", "int8": "int8", "int4": "int4"}
CACHE_GIGABYTES = 1  # as the pipeline itself would take


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Writes openvino_model.xml and .bin, and tokenizers that are not used here."""
    from optimum.commands.optimum_cli import main

    options = ["--task", "text-generation-with-past", "--weight-format", precision]
    sys.argv = ["optimum-cli", "export", "openvino", "--model", str(checkpoint), *options, str(out)]
    main()
    return ""


class Model:
    """An LLMPipeline that is fed ids."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import openvino
        import openvino_genai

        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        if precision == "fp32":
            options |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = CACHE_GIGABYTES
        self._pipeline = openvino_genai.LLMPipeline(
            str(folder), "CPU", scheduler_config=scheduler, **options
        )
        self._file, self._options = folder / "openvino_model.xml", options
        self._request: Any = None  # made when logits are asked for
        self._tensor = openvino.Tensor

    def generate(self, ids: list[int], count: int) -> list[int]:
        """One call, past end tokens."""
        import numpy as np

        result = self._pipeline.generate(
            self._tensor(np.array([ids], np.int64)),
            max_new_tokens=count,
            ignore_eos=True,
            do_sample=False,
        )
        return list(result.tokens[0])

    def logits(self, ids: list[int]) -> Any:
        """All rows (S, V)."""
        import numpy as np

        if self._request is None:
            self._request = self._compiled()
        count = len(ids)
        known = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = [value.get_any_name() for value in self._request.model_inputs]
        self._request.reset_state()
        return self._request.infer({name: known[name] for name in names})["logits"][0]

    def _compiled(self) -> Any:
        import openvino

        core = openvino.Core()
        model = core.compile_model(core.read_model(self._file), "CPU", self._options)
        return model.create_infer_request()
