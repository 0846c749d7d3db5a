"""OpenVINO GenAI: Optimum Intel's export with weights in float32, int8 or int4 -> LLMPipeline.

Weights are compressed by NNCF: int8 and int4 with the defaults of ``optimum-cli export openvino``
(int4: groups of 128 with zero points, smaller ones where 128 does not divide a row, and an 8-bit
head), "sym" without zero points; "data" adds AWQ and scale estimation on text that the model says
itself. The pipeline runs for latency, with keys and values as its precision has them; a prompt seen
before is computed again, and in fp32 the half-precision shortcuts are switched off. The pipeline
gives no logits: they are OpenVINO's own of the same file, with the same options.
Source: optimum-intel ``exporters/openvino/__main__.py``; OpenVINO's "CPU device" page.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

NAME = "OpenVINO GenAI"
PACKAGE = "openvino-genai"
INT4 = ["--weight-format", "int4", "--group-size-fallback", "adjust"]
GROUPS = ["--group-size", "64"]
DATA = ["--awq", "--scale-estimation", "--dataset", "auto", "--num-samples", "32"]
# Options of the export by the name of a precision.
OPTIONS = {
    "fp32": ["--weight-format", "fp32"],
    "int8": ["--weight-format", "int8"],
    "int4": INT4,
    "int4 sym": [*INT4, "--sym"],
    "int4 g64": [*INT4, *GROUPS],
    "int4 data": [*INT4, *DATA],
}
COARSE = " dq128"  # runs with activations quantized in groups of 128 instead of 32
SAME = {f"{name}{COARSE}": name for name in ("int8", "int4", "int4 sym")}
SAME |= {f"int4{COARSE} data": "int4 data"}
CALIBRATED = dict.fromkeys(("int4 g64", "int4 data", f"int4{COARSE} data"), "int4")
PRECISIONS = {name: name.split()[0] for name in (*OPTIONS, *SAME) if name not in CALIBRATED}
CACHE_GIGABYTES = 1  # as the pipeline itself would take


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Writes openvino_model.xml and .bin, and tokenizers that are not used here."""
    from optimum.commands.optimum_cli import main

    options = ["--task", "text-generation-with-past", *OPTIONS[precision]]
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        source = _with_tokenizer_class(checkpoint, Path(folder))
        sys.argv = ["optimum-cli", "export", "openvino", "--model", str(source), *options, str(out)]
        main()
    return ""


def _with_tokenizer_class(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint by links, and a class for its tokenizer where it names none.

    Transformers 5.5 would take that of Code Llama for any Llama, which cannot read a byte-level
    vocabulary.
    """
    for file in checkpoint.iterdir():
        os.symlink(file.resolve(), folder / file.name)
    config = folder / "tokenizer_config.json"
    known = json.loads(config.read_text()) if config.is_file() else {}
    config.unlink(missing_ok=True)
    config.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **known}))
    return folder


class Model:
    """An LLMPipeline that is fed ids."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import openvino
        import openvino_genai

        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if COARSE in precision:
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = COARSE.removeprefix(" dq")
        if precision == "fp32":
            options |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = CACHE_GIGABYTES
        self._pipeline = openvino_genai.LLMPipeline(
            str(folder), "CPU", scheduler_config=scheduler, **options
        )
        core = openvino.Core()
        names = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION")
        inference, kv = (options.get(name) or _type_name(core, name) for name in names)
        self.settings = f"LATENCY, inference in {inference}, KV in {kv}"
        if precision != "fp32":
            name = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
            group = options.get(name) or core.get_property("CPU", name)
            self.settings += f", activations in groups of {group}"
        self._file, self._options = folder / "openvino_model.xml", options
        self._request: Any = None  # made when logits are asked for
        self._tensor, self._inputs = openvino.Tensor, openvino_genai.TokenizedInputs

    def generate(self, ids: list[int], count: int) -> list[int]:
        """One call, past end tokens."""
        return self.generate_many([ids], count)[0]

    def generate_many(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """Likewise of prompts of one length, which its scheduler batches."""
        import numpy as np

        ids = np.array(prompts, np.int64)
        mask = self._tensor(np.ones_like(ids))
        result = self._pipeline.generate(
            self._inputs(self._tensor(ids), mask),
            max_new_tokens=count,
            ignore_eos=True,
            do_sample=False,
        )
        return [list(tokens) for tokens in result.tokens]

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


def _type_name(core: Any, name: str) -> str:
    """What a processor of this kind takes by default."""
    return str(core.get_property("CPU", name).get_type_name())
