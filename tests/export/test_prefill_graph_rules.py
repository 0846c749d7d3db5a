"""The graphs for many tokens at a time are accepted, and refused by name once one thing differs.

Their weights lie in two files, and nowhere else; the one over an int8 cache has one form alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graph_folders import (
    Change,
    constant,
    folder_with,
    load,
    node,
    set_attribute,
    set_input,
    weight,
)
from model_folders import with_manifest
from onnx import ModelProto, numpy_helper

from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph_check.graph import check_graph
from pocketlm.export.manifest import (
    DECODER,
    INT8_KV_DECODER,
    INT8_KV_PREFILL,
    PREFILL_DATA_FILE,
    PREFILL_DECODER,
)

W8A8 = "h.0.attn.c_attn.weight.data"
SCALE = "cache.0.value.scale"


def placed(name: str = W8A8, **entries: str) -> Change:
    """Says of a weight that it lies elsewhere."""

    def change(model: ModelProto) -> None:
        for entry in weight(model, name).external_data:
            entry.value = entries.get(entry.key, entry.value)

    return change


def place(model: ModelProto, name: str) -> dict[str, str]:
    return {entry.key: entry.value for entry in weight(model, name).external_data}


def over_another(model: ModelProto) -> None:
    """A weight of as many bytes from the middle of the next one on."""
    there = int(place(model, "h.0.mlp.c_fc.weight.data")["offset"])
    placed(offset=str(there + 64))(model)


def check_changed(folder: ModelFolder, to: Path, name: str, change: Change, message: str) -> None:
    model = load(folder, name)
    change(model)
    changed = folder_with(folder, to, model.SerializeToString(), name=name)
    with pytest.raises(ModelFolderError, match=message):
        check_graph(changed, name)


def test_all_graphs_of_a_folder_are_accepted(prefill_folder: ModelFolder) -> None:
    for name in prefill_folder.manifest.graphs:
        check_graph(prefill_folder, name)


PLACES: dict[str, tuple[Change, str]] = {
    "another file": (
        placed(location="model.onnx_data_2"),
        "in the file 'model.onnx_data_2', expected model.onnx_data or model_prefill.onnx_data",
    ),
    "a file outside": (
        placed(location="../model_prefill.onnx_data"),
        "expected model.onnx_data or",
    ),
    "the graph itself": (placed(location="model_prefill.onnx"), "expected model.onnx_data or"),
    "the file of settings": (placed(location="config.json"), "expected model.onnx_data or"),
    "behind the second file": (
        placed(offset="40960000"),
        r"from 40960000 on .*, expected 3072 within the \d+ of model_prefill.onnx_data",
    ),
    "half behind it": (
        placed("h.1.mlp.c_proj.weight.data", length="4096000"),
        "4096000 bytes from .* within the .* of model_prefill.onnx_data",
    ),
    "before it": (placed(offset="-64"), "external_data"),
    "behind the first file": (
        placed(location="model.onnx_data", offset="40960000"),
        r"from 40960000 on .*, expected 3072 within the \d+ of model.onnx_data",
    ),
    "over another": (over_another, "a weight from byte .* on within another"),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("graph", [PREFILL_DECODER, INT8_KV_PREFILL])
def test_weights_lie_in_the_two_files_and_nowhere_else(
    graph: str, name: str, prefill_folder: ModelFolder, tmp_path: Path
) -> None:
    change, message = PLACES[name]
    check_changed(prefill_folder, tmp_path / "copy", graph, change, message)


@pytest.mark.parametrize("graph", [DECODER, INT8_KV_DECODER])
def test_the_decoder_has_none_in_the_second_file(
    graph: str, prefill_folder: ModelFolder, tmp_path: Path
) -> None:
    change = placed("wpe.weight", location=PREFILL_DATA_FILE)
    message = "in the file 'model_prefill.onnx_data', expected model.onnx_data;"
    check_changed(prefill_folder, tmp_path / "copy", graph, change, message)


def test_a_manifest_without_the_second_file_has_no_graph_over_it(
    prefill_folder: ModelFolder, tmp_path: Path
) -> None:
    graph = load(prefill_folder, PREFILL_DECODER).SerializeToString()
    copy = folder_with(prefill_folder, tmp_path / "copy", graph, name=PREFILL_DECODER)
    files = {name: entry for name, entry in copy.files.items() if name != PREFILL_DATA_FILE}
    changed = replace(copy.manifest, files=files)
    with pytest.raises(ModelFolderError, match="within the 0 of model_prefill.onnx_data"):
        check_graph(ModelFolder(copy.path, changed), PREFILL_DECODER)
    message = (
        "found no model_prefill.onnx_data in 'files', expected it where there is the graph pre"
    )
    with pytest.raises(ModelFolderError, match=message):
        with_manifest(copy.path, changed)


# Over an int8 cache ------------------------------------------------------------------------------


def scaled(number: float) -> Change:
    def change(model: ModelProto) -> None:
        tensor = weight(model, SCALE)
        tensor.raw_data = (numpy_helper.to_array(tensor) * np.float32(number)).tobytes()

    return change


def named(model: ModelProto, made: str) -> int:
    """The number of the node that makes a value."""
    return next(i for i, found in enumerate(model.graph.node) if made in found.output)


def changed_input(made: str, index: int, given: str) -> Change:
    """Connects an input of the node that makes ``made`` with another value."""
    return lambda m: m.graph.node[named(m, made)].input.__setitem__(index, given)


def a_later_past(model: ModelProto) -> None:
    """The past begins at its second token, so that the kernel reads one more than there are."""
    one = constant(model, "one_token", [1])
    model.graph.node[named(model, "cache.0.key.kept")].input[1] = one


def a_shorter_past(model: ModelProto) -> None:
    """Of it there are always three tokens."""
    three = constant(model, "three_tokens", [3])
    model.graph.node[named(model, "cache.1.value.kept")].input[2] = three


def swapped(model: ModelProto) -> None:
    """The new keys of the first layer come out as those of the second."""
    first, second = (named(model, f"new.{layer}.key") for layer in (0, 1))
    nodes = model.graph.node
    nodes[first].input[0], nodes[second].input[0] = nodes[second].input[0], nodes[first].input[0]
    moved = [found for i, found in enumerate(nodes) if i != first]
    moved.append(nodes[first])
    del model.graph.node[:]
    model.graph.node.extend(moved)


G = "GroupQueryAttention"
FORMS: dict[str, tuple[Change, str]] = {
    "a past from a later token on": (a_later_past, "the past 'cache.0.key.past', expected the key"),
    "a past of three tokens": (a_shorter_past, "the past 'cache.1.value.past', expected the value"),
    "another layer's past": (
        changed_input("cache.0.key.kept", 0, "past_key_values.1.key"),
        "the past 'cache.0.key.past', expected the keys that layer 0 has",
    ),
    "values for keys": (
        changed_input("cache.0.key.kept", 0, "past_key_values.0.value"),
        "expected the keys that layer 0 has",
    ),
    "another layer's rows": (swapped, "'new.0.key' of others, expected the new keys of layer 0"),
    "rows that are not new": (
        changed_input("cache.0.key.rows", 1, "ints.0"),
        "'new.0.key' of others",
    ),
    "one scale before and another behind": (
        changed_input("cache.0.key.steps", 1, "cache.1.key.scale"),
        "'new.0.key' of others",
    ),
    "a scale of 0": (scaled(0), "a scale of 0.0 in 'cache.0.value.scale'"),
    "an endless scale": (scaled(np.inf), "a scale of inf in 'cache.0.value.scale'"),
    "computed scales": (
        changed_input("cache.0.key.past", 1, "cache.past_length"),
        r"the scale 'cache.past_length' of a cache, expected float32 \(1, 4, 1, 8\)",
    ),
    "an attention over int8": (
        set_attribute(G, "kv_cache_bit_width", 8),
        "the attribute 'kv_cache_bit_width' in",
    ),
    "lengths of its own": (set_input(G, 5, "cache.own"), "that nothing has made"),
    "the whole length": (
        changed_input("cache.past_length", 1, "ints.0"),
        "the past 'cache.0.key.past'",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_one_change_to_the_graph_over_an_int8_cache_is_refused(
    name: str, prefill_folder: ModelFolder, tmp_path: Path
) -> None:
    change, message = FORMS[name]
    check_changed(prefill_folder, tmp_path / "copy", INT8_KV_PREFILL, change, message)


def test_no_graph_is_taken_for_another(prefill_folder: ModelFolder, tmp_path: Path) -> None:
    names = list(prefill_folder.manifest.graphs)
    pairs = [(name, other) for name in names for other in names if name != other]
    for number, (name, other) in enumerate(pairs):
        if (name, other) == (PREFILL_DECODER, DECODER):
            continue  # the same inputs and outputs, over weights that it may have
        graph = load(prefill_folder, other).SerializeToString()
        folder = folder_with(prefill_folder, tmp_path / str(number), graph, name=name)
        with pytest.raises(ModelFolderError, match=r"found .*, expected .*; foreign graphs"):
            check_graph(folder, name)
    assert node(load(prefill_folder, INT8_KV_PREFILL), G).input[3] == "cache.0.key.past"
