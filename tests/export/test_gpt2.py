"""GPT-2's graph: builds (contract, files) and matches the NumPy twin, over many configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoint_files import NUMPY_DTYPES, gpt2_config, write_checkpoint
from gpt2_checkpoints import CASES, Case, stored_tensors
from numpy.typing import NDArray
from reference import gpt2 as twin

from pocketlm.export.architectures.gpt2 import Config
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.runtime.concatenating import ConcatenatingCache
from pocketlm.runtime.session import Session

PAGE = 4096
IDS = [(7 * i + 3) % 97 for i in range(20)]


@dataclass(frozen=True)
class Exported:
    """A case on disk: what the twin gets, and the model folder made from the same files."""

    config: dict[str, Any]
    tensors: dict[str, NDArray[Any]]  # rounded as they are stored
    folder: ModelFolder


def rounded(tensors: dict[str, NDArray[Any]], dtype: str) -> dict[str, NDArray[Any]]:
    return {
        name: values.astype(NUMPY_DTYPES[dtype]).astype(np.float32)
        for name, values in tensors.items()
    }


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    """Every case once, for all tests of this module that ask for it."""
    case: Case = request.param
    config = gpt2_config(**case.config)
    tensors = stored_tensors(case, config)
    root = tmp_path_factory.mktemp("gpt2")
    source = write_checkpoint(
        root / "source", config, tensors, dtype=case.dtype, shards=case.shards
    )
    folder = export_model(open_checkpoint(source), root / "out")
    yield Exported(config, rounded(tensors, case.dtype), folder)


# Matches reference ------------------------------------------------------------------------------


def test_every_field_of_the_config_is_varied_by_a_case() -> None:
    configs = [gpt2_config(**case.config) for case in CASES.values()]
    for field_ in dataclasses.fields(Config):
        values = {repr(config.get(field_.name)) for config in configs}
        assert len(values) > 1, f"no case varies {field_.name}"


def test_logits_match_the_twin_however_the_prompt_is_split(exported: Exported) -> None:
    """Float32 kernels against float64: 1e-4 of the largest logit is some ten times the rounding."""
    expected = twin.forward(exported.config, exported.tensors, IDS)
    tolerance = 1e-4 * np.abs(expected).max()
    session = Session(exported.folder, threads=1)
    for size in (len(IDS), 1, 3):
        for cache in (session.new_cache(), ConcatenatingCache(session.shape)):
            parts = [IDS[start : start + size] for start in range(0, len(IDS), size)]
            found = np.concatenate([session.all_logits(part, cache) for part in parts])
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


# Builds -----------------------------------------------------------------------------------------


def graph_of(folder: ModelFolder) -> onnx.GraphProto:
    return onnx.load(folder.path / "model.onnx", load_external_data=False).graph


def is_buffer(name: str) -> bool:
    return name.endswith((".attn.bias", ".attn.masked_bias"))


def declared(value: onnx.ValueInfoProto) -> tuple[str, list[int | str]]:
    tensor = value.type.tensor_type
    dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return onnx.TensorProto.DataType.Name(tensor.elem_type), dims


def test_graph_passes_the_full_check_of_onnx(exported: Exported) -> None:
    onnx.checker.check_model(exported.folder.path / "model.onnx", full_check=True)


def test_inputs_and_outputs_are_the_contract(exported: Exported) -> None:
    graph = graph_of(exported.folder)
    heads = exported.config["n_head"]
    head_size = exported.config["n_embd"] // heads
    past = ["batch_size", heads, "past_sequence_length", head_size]
    present = ["batch_size", heads, "total_sequence_length", head_size]
    layers = [f"{i}.{kind}" for i in range(exported.config["n_layer"]) for kind in ("key", "value")]
    tokens = ["batch_size", "sequence_length"]
    assert {value.name: declared(value) for value in graph.input} == {
        "input_ids": ("INT64", tokens),
        "attention_mask": ("INT64", ["batch_size", "total_sequence_length"]),
        "position_ids": ("INT64", tokens),
        "num_logits_to_keep": ("INT64", []),
        **{f"past_key_values.{layer}": ("FLOAT", past) for layer in layers},
    }
    assert {value.name: declared(value) for value in graph.output} == {
        "logits": ("FLOAT", [*tokens, exported.config["vocab_size"]]),
        **{f"present.{layer}": ("FLOAT", present) for layer in layers},
    }


def test_weights_keep_bare_names_and_large_ones_lie_on_pages(exported: Exported) -> None:
    weights = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph_of(exported.folder).initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    assert weights.keys() == {
        name.removeprefix("transformer.") for name in exported.tensors if not is_buffer(name)
    }
    spans = sorted(
        (int(entry["offset"]), int(entry["offset"]) + int(entry["length"]))
        for entry in weights.values()
    )
    assert all(start % PAGE == 0 for start, end in spans if end - start >= PAGE)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert spans[-1][1] == exported.folder.weights_bytes
    assert {entry["location"] for entry in weights.values()} == {"model.onnx_data"}


def test_data_file_holds_the_rounded_weights(exported: Exported) -> None:
    data = (exported.folder.path / "model.onnx_data").read_bytes()
    for name, values in exported.tensors.items():
        if not is_buffer(name):
            assert data.count(values.astype("<f4").tobytes()) == 1, name
