"""Real graphs are accepted, and refused by name once they are changed in one respect.

That all graphs of ours are accepted is held by every test that exports: nothing is published that
the check refuses. Who asks is tested in ``test_graph_check``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from graph_folders import (
    Change,
    constant,
    folder_with,
    insert,
    load,
    node,
    set_attribute,
    set_input,
    set_place,
    traced_folder,
    weight,
)
from llama_checkpoints import llama_config, llama_tensors
from onnx import ModelProto, TensorProto, helper, numpy_helper
from traced_graphs import GPT2, LLAMA

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph_check.graph import check_graph
from pocketlm.export.manifest import DECODER, INT8_KV_DECODER
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of


@pytest.fixture(scope="module")
def folders(
    tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ModelFolder]:
    """Real folders that have every operator of ours between them."""
    root = tmp_path_factory.mktemp("graphs")

    def llama(name: str, precision: str, head: str | None = None, **config: Any) -> ModelFolder:
        fields = llama_config("qwen3", vocab_size=300, **config)
        source = write_checkpoint(root / f"{name}-source", fields, llama_tensors(fields))
        return export_model(
            open_checkpoint(source), root / name, precision_of(precision, head=head)
        )

    return {
        "gpt2": tiny_folder,
        "int4": llama("int4", "int4", "int4"),
        "int8": llama("int8", "int8"),
        "lopsided": traced_folder(root / "lopsided", LLAMA, rewrite=True, precision="int8"),
        # 208 = 13 · 16: blocks of 128 take the fewest bits, the second one filled up.
        "odd": llama(
            "odd",
            "int4",
            "int4",
            hidden_size=208,
            intermediate_size=208,
            num_attention_heads=13,
            num_key_value_heads=13,
            head_dim=16,
        ),
        "small heads": llama("heads", "fp32", head_dim=24),
        "traced": traced_folder(root / "traced", LLAMA, rewrite=True),
        "growing": traced_folder(root / "growing", GPT2, rewrite=False),
    }


def test_the_folders_themselves_are_accepted(folders: dict[str, ModelFolder]) -> None:
    for folder in folders.values():
        check_graph(folder)


# What is changed ---------------------------------------------------------------------------------


def later(model: ModelProto) -> None:
    """A node takes what a later one makes: the only way to a cycle."""
    node(model, "MatMul").input[0] = model.graph.output[0].name


def local_function(model: ModelProto) -> None:
    body = [helper.make_node("Identity", ["x"], ["y"])]
    model.functions.append(helper.make_function("f", "F", ["x"], ["y"], body, model.opset_import))


def subgraph(operator: str, attribute: str) -> Change:
    body = helper.make_graph([], "body", [], [])

    def change(model: ModelProto) -> None:
        insert(model, operator, ["num_logits_to_keep"], **{attribute: body})

    return change


def sparse(model: ModelProto) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def sparse_constant(model: ModelProto) -> None:
    sparse(model)
    tensor = model.graph.sparse_initializer.pop()
    insert(model, "Constant", [], sparse_value=tensor)


def external_constant(model: ModelProto) -> None:
    """A tensor in an attribute that lies in another file."""
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    insert(model, "ConstantOfShape", [constant(model, "c", [1])], value=tensor)


def cache_of_another_layer(model: ModelProto) -> None:
    first, second = (node(model, "GroupQueryAttention", number) for number in (0, 1))
    first.input[3], second.input[3] = second.input[3], first.input[3]


def more_queries(model: ModelProto) -> None:
    nodes = list(model.graph.node)
    attention = node(model, G)
    inputs = [attention.input[0]] * 2
    insert(model, "Concat", inputs, nodes.index(attention), axis=1)
    node(model, G).input[0] = f"Concat.{len(nodes)}"


def past_for_others(model: ModelProto) -> None:
    insert(model, "Neg", ["past_key_values.0.key"])


def other_lengths(model: ModelProto) -> None:
    """seqlens_k that the caller chooses: the kernel would write where they say."""
    ids = insert(model, "ReduceMax", ["input_ids", "ints.1"], keepdims=0)
    lengths = insert(model, "Cast", [ids], into=1, to=TensorProto.INT32)
    node(model, "GroupQueryAttention").input[5] = lengths


def another_formula(model: ModelProto) -> None:
    """One more than there are."""
    constant(model, "two", 2)
    found = [item for item in model.graph.node if item.name == "mask.seqlens_k"]
    made = [item for item in model.graph.node if item.output[0] == found[0].input[0]]
    made[0].input[1] = "two"


def partly_over(model: ModelProto) -> None:
    """The first norm's weight in the midst of the embedding."""
    places = weight(model, "h.0.ln_1.weight").external_data
    next(entry for entry in places if entry.key == "offset").value = "64"


def as_dimensions(*dims: int) -> Change:
    def change(model: ModelProto) -> None:
        tensor = weight(model)
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return change


def retyped(name: str, dtype: int, *dims: int | str) -> Change:
    def change(model: ModelProto) -> None:
        values = [*model.graph.input, *model.graph.output]
        found = next(value for value in values if value.name == name)
        found.CopyFrom(helper.make_tensor_value_info(name, dtype, dims))

    return change


def doubled(model: ModelProto) -> None:
    """What a node makes is twice as long forty times over."""
    name = "input_ids"
    for number in range(40):
        name = insert(model, "Concat", [name, name], into=number, axis=1)


def products(model: ModelProto) -> None:
    """Matrices that have as many rows as the last had elements."""
    shape = constant(model, "shape", [-1, 1])
    rows = insert(model, "Reshape", [insert(model, "Cast", ["attention_mask"], to=FLOAT), shape], 1)
    for number in range(3):
        turned = insert(model, "Transpose", [rows], 3 * number + 2, perm=[1, 0])
        square = insert(model, "MatMul", [rows, turned], 3 * number + 3)
        rows = insert(model, "Reshape", [square, shape], 3 * number + 4)


def chained(operator: str, size: int, count: int, *, of_constants: bool) -> Change:
    """That many matrices, each made of the one before, and all needed to the end."""

    def change(model: ModelProto) -> None:
        number = constant(model, "given.1", [1.0], np.float32)
        if not of_constants:
            number = insert(model, "Cast", ["position_ids"], to=TensorProto.FLOAT)
            number = insert(model, "ReduceMax", [number], 1, keepdims=0)
        place = 0 if of_constants else 2
        last = insert(model, "Expand", [number, constant(model, "size", [size, size])], place)
        made = [last]
        for step in range(count):
            inputs = [last, last] if operator == "MatMul" else [last]
            last = insert(model, operator, inputs, place + 1 + step)
            made.append(last)
        for step, other in enumerate(reversed(made[:-1])):
            last = insert(model, "Add", [last, other], place + 1 + count + step)

    return change


def divided_by(make: Callable[[ModelProto], str]) -> Change:
    """Whole numbers divided by what a few nodes in front make, as a whole number."""

    def change(model: ModelProto) -> None:
        before = len(model.graph.node)
        divisor = make(model)
        place = len(model.graph.node) - before
        divisor = insert(model, "Cast", [divisor], place, to=TensorProto.INT64)
        insert(model, "Div", ["position_ids", divisor], place + 1)

    return change


def rounded_away(model: ModelProto) -> str:
    """2^24 + 1 - 2^24, which is 0 in float32."""
    large = constant(model, "large", [2.0**24], np.float32)
    total = insert(model, "Add", [large, constant(model, "given.1", [1.0], np.float32)], 0)
    return insert(model, "Sub", [total, large], 1)


def no_number(model: ModelProto) -> str:
    """0 / 0, between 1 and 5."""
    zero = insert(model, "Cast", ["position_ids"], 0, to=TensorProto.FLOAT)
    zero = insert(model, "Sub", [zero, zero], 1)
    none = insert(model, "Div", [zero, zero], 2)
    least = insert(model, "Max", [none, constant(model, "1", [1.0], np.float32)], 3)
    return insert(model, "Min", [least, constant(model, "5", [5.0], np.float32)], 4)


def made_of(operator: str, *inputs: Any, **attributes: Any) -> Change:
    """One more node; inputs that are numbers become constants."""

    def change(model: ModelProto) -> None:
        names = [
            item if isinstance(item, str) else constant(model, f"given.{number}", item)
            for number, item in enumerate(inputs)
        ]
        insert(model, operator, names, **attributes)

    return change


def rows_of_a_table(model: ModelProto) -> None:
    tensor = weight(model, "rope.cos")
    tensor.dims[0] //= 2
    next(entry for entry in tensor.external_data if entry.key == "length").value = str(
        4 * tensor.dims[0] * tensor.dims[1]
    )


def both_lie(folder: str, heads: int) -> tuple[str, Change, str]:
    return folder, set_attribute("GroupQueryAttention", "num_heads", heads), "heads"


G = "GroupQueryAttention"
FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
KEY = "past_key_values.0.key"
REFUSED: dict[str, tuple[str, Change, str]] = {
    # The file as a whole.
    "old format": ("gpt2", lambda m: setattr(m, "ir_version", 3), "IR version 3"),
    "old operators": (
        "gpt2",
        lambda m: setattr(m.opset_import[0], "version", 9),
        "opsets {'': 9",
    ),
    "other operators": (
        "gpt2",
        lambda m: m.opset_import.append(helper.make_opsetid("evil", 1)),
        "operators of 'evil'",
    ),
    "functions": ("gpt2", local_function, "found local functions, expected one flat graph"),
    "a loop": ("gpt2", subgraph("Loop", "body"), "found a subgraph, expected one flat graph"),
    "a branch": ("traced", subgraph("If", "then_branch"), "found a subgraph"),
    "training": ("gpt2", lambda m: m.training_info.add(), "found training_info"),
    "a sparse weight": ("gpt2", sparse, "found sparse_initializer"),
    "a sparse constant": ("growing", sparse_constant, "found a sparse tensor"),
    # Inputs and outputs.
    "one more input": (
        "gpt2",
        lambda m: m.graph.input.append(helper.make_tensor_value_info("x", FLOAT, [])),
        "differ from the manifest in 'x'",
    ),
    "an input twice": ("gpt2", lambda m: m.graph.input.append(m.graph.input[0]), "a name twice"),
    "no position_ids": ("gpt2", lambda m: m.graph.input.remove(m.graph.input[2]), "'position_ids'"),
    "no logits": ("gpt2", lambda m: m.graph.output.remove(m.graph.output[0]), "'logits'"),
    "logits of nothing": (
        "gpt2",
        lambda m: node(m, "FusedMatMul").output.__setitem__(0, "x"),
        "no node that makes logits",
    ),
    "an int32 mask": (
        "gpt2",
        retyped("attention_mask", TensorProto.INT32, "b", "t"),
        r"attention_mask of int32 \('b', 't'\), expected 2 dimensions of int64 with no fixed size",
    ),
    "a fixed batch": (
        "gpt2",
        retyped("input_ids", INT64, 1, "s"),
        r"input_ids of int64 \(1, 's'\)",
    ),
    "another head size": (
        "gpt2",
        retyped(KEY, FLOAT, "b", 4, "p", 16),
        "expected 4 dimensions .* 8 in dimension 3",
    ),
    "an open head size": ("gpt2", retyped(KEY, FLOAT, "b", 4, "p", "e"), f"{KEY} of float32"),
    "another vocabulary": ("gpt2", retyped("logits", FLOAT, "b", "s", 301), "logits of float32"),
    "another default": (
        "gpt2",
        lambda m: setattr(weight(m, "num_logits_to_keep"), "raw_data", b"\1" + bytes(7)),
        "another default of num_logits_to_keep, expected 0",
    ),
    # Where weights lie.
    "another file": (
        "gpt2",
        set_place(location="other"),
        "in the file 'other', expected model.onnx_data",
    ),
    "a file above": ("gpt2", set_place(location="../model.onnx_data"), r"in the file '\.\./model"),
    "a file of the system": (
        "gpt2",
        set_place(location="/etc/passwd"),
        "in the file '/etc/passwd'",
    ),
    "a negative offset": ("gpt2", set_place(offset="-4"), r"external_data .*'-4'"),
    "an offset with a sign": ("gpt2", set_place(offset="+4"), r"external_data .*'\+4'"),
    "an offset with a zero": ("gpt2", set_place(offset="00"), r"external_data .*'00'"),
    "an offset in other digits": ("gpt2", set_place(offset="١"), "external_data"),
    "an offset behind the end": (
        "gpt2",
        set_place(offset="999999999"),
        "from 999999999 on .* within the .* of model.onnx_data",
    ),
    "another length": ("gpt2", set_place(length="8"), "found 8 bytes from 0 on"),
    "one more entry": ("gpt2", set_place(checksum="0"), "location, offset and length once each"),
    "weights partly over each other": ("gpt2", partly_over, "within another"),
    "a constant elsewhere": (
        "growing",
        external_constant,
        "etc/hostname.* expected one number in the graph",
    ),
    "a weight of text": ("gpt2", lambda m: setattr(weight(m), "data_type", STRING), "the type 8"),
    "a negative size": ("gpt2", as_dimensions(-1, -1), r"\(-1, -1\), expected numbers"),
    "nine dimensions": ("gpt2", as_dimensions(*[1] * 9), "in up to 8 dimensions"),
    "a weight that is larger": ("gpt2", as_dimensions(1 << 40, 1 << 40), "bytes from 0 on"),
    "a constant cut short": (
        "gpt2",
        lambda m: setattr(weight(m, "one"), "raw_data", b"1234"),
        "4 bytes of the weight 'one'",
    ),
    "a constant without bytes": (
        "gpt2",
        lambda m: weight(m, "one").ClearField("raw_data"),
        "0 bytes of the weight 'one'",
    ),
    "a weight twice": (
        "gpt2",
        lambda m: m.graph.initializer.append(weight(m)),
        "'wte.weight' twice",
    ),
    "a default for an input": ("gpt2", lambda m: constant(m, "input_ids", [[0]]), "over an input"),
    # Nodes.
    "an unknown operator": ("traced", made_of("Loop"), "the operator 'Loop' .* traced decoders"),
    "an operator of others": (
        "gpt2",
        made_of("Neg", "input_ids", domain="evil"),
        "the operator 'evil::Neg'",
    ),
    "an operator of traces alone": (
        "gpt2",
        made_of("Round", "input_ids"),
        "the operator 'Round' .* one of declared decoders",
    ),
    "attention in a growing graph": (
        "growing",
        made_of(G, "input_ids", domain="com.microsoft"),
        f"::{G}'",
    ),
    "an unknown attribute": ("gpt2", set_attribute("Neg", "evil", 1), "the attribute 'evil'"),
    "an attribute of another type": ("gpt2", set_attribute("Concat", "axis", 0.0), "axis 0.0"),
    "an axis far out": (
        "gpt2",
        set_attribute("Concat", "axis", 1 << 62),
        "axis 4611686018427387904",
    ),
    "an axis there is not": ("gpt2", set_attribute("Concat", "axis", 3), "axis 3 of 1 dimensions"),
    "too few inputs": ("gpt2", lambda m: node(m, "Add").input.pop(), "found 1 inputs"),
    "an input of nowhere": (
        "gpt2",
        set_input("MatMul", 0, "x"),
        "the input 'x' that nothing has made",
    ),
    "a cycle": ("gpt2", later, "the input 'logits' that nothing has made"),
    "an input left out": ("gpt2", set_input("Add", 1, ""), "input 1 left out"),
    "an output twice": (
        "gpt2",
        lambda m: node(m, "Neg").output.__setitem__(0, "mask.ones"),
        "the output 'mask.ones' twice",
    ),
    "an output over an input": (
        "gpt2",
        lambda m: node(m, "Neg").output.__setitem__(0, "input_ids"),
        "the output 'input_ids' twice",
    ),
    "an output without a name": (
        "gpt2",
        lambda m: node(m, "Neg").output.__setitem__(0, ""),
        "the output '' twice or without a name",
    ),
    "a type there is not": ("gpt2", set_attribute("Cast", "to", 8), "a Cast to the type 8"),
    "a permutation of others": (
        "growing",
        set_attribute("Transpose", "perm", [0, 0, 1, 2]),
        "perm",
    ),
    "a permutation of fractions": (
        "growing",
        set_attribute("Transpose", "perm", [0.0, 1.0]),
        "perm",
    ),
    "sizes that do not fit": ("gpt2", set_input("MatMul", 1, "wte.weight"), "of a product"),
    # Attention.
    "heads": ("gpt2", set_attribute(G, "num_heads", 8), "num_heads 8 .*, expected 4"),
    "heads of 2^32": ("gpt2", set_attribute(G, "num_heads", 1 << 32), "num_heads 4294967296"),
    "key heads of 2^62": ("int4", set_attribute(G, "kv_num_heads", 1 << 62), "kv_num_heads 4611"),
    "no key heads": ("int4", set_attribute(G, "kv_num_heads", 0), "kv_num_heads 0"),
    "no number": ("gpt2", set_attribute(G, "scale", float("nan")), "scale nan"),
    "a soft cap below 0": ("gpt2", set_attribute(G, "softcap", -1.0), "softcap -1.0"),
    "a window of none": ("gpt2", set_attribute(G, "local_window_size", 0), "local_window_size 0"),
    "rotation without tables": ("gpt2", set_attribute(G, "do_rotary", 1), "do_rotary 1"),
    "tables without rotation": ("int4", set_attribute(G, "do_rotary", 0), "do_rotary 0"),
    "a table too short": (
        "int4",
        rows_of_a_table,
        "32 rotations in 'rope.cos' .* one for each of 64",
    ),
    "queries of another width": (
        "gpt2",
        set_input(G, 0, "h.0.ln_1.layer_norm"),
        "the last of them 96",
    ),
    "values without keys": ("int4", set_input(G, 1, ""), "no input 1"),
    "keys without values": ("int4", set_input(G, 2, ""), "no input 2"),
    "more queries than tokens": ("traced", more_queries, "rows of 'Concat.* for each new token"),
    "the cache of another layer": ("gpt2", cache_of_another_layer, "expected its own past"),
    "positions": ("gpt2", set_input(G, 9, "position_ids"), "an attention with position_ids"),
    "lengths of another type": (
        "gpt2",
        set_input(G, 5, "mask.ones"),
        "of int64 in 1 .* as a length",
    ),
    "lengths from the tokens": ("gpt2", other_lengths, "expected the formula over attention_mask"),
    "lengths by another formula": ("int4", another_formula, "the length 'mask.seqlens_k'"),
    "a bias of two dimensions": ("gpt2", set_input(G, 10, "wte.weight"), "an attention bias"),
    "a past with another use": ("traced", past_for_others, f"{KEY} used by others"),
    "other rotated numbers": (
        "small heads",
        set_attribute("RotaryEmbedding", "rotary_embedding_dim", 26),
        "expected 24",
    ),
    "other rotated heads": (
        "small heads",
        set_attribute("RotaryEmbedding", "num_heads", 3),
        "num_heads 3",
    ),
    "rotated by tokens": (
        "small heads",
        set_input("RotaryEmbedding", 1, "input_ids"),
        "by position_ids",
    ),
    # Packed weights.
    "no input features": ("int4", set_attribute("MatMulNBits", "K", 0), "K 0"),
    "other input features": ("int4", set_attribute("MatMulNBits", "K", 128), "uint8"),
    "other output features": ("int4", set_attribute("MatMulNBits", "N", 1 << 30), "uint8"),
    "three bits": ("int4", set_attribute("MatMulNBits", "bits", 3), "numbers of 3 bits"),
    "blocks of none": ("int4", set_attribute("MatMulNBits", "block_size", 0), "block_size 0"),
    "blocks of 48": ("int4", set_attribute("MatMulNBits", "block_size", 48), "blocks of 48"),
    "another accuracy": (
        "int4",
        set_attribute("MatMulNBits", "accuracy_level", 5),
        "accuracy_level 5",
    ),
    "packed weights that are computed": (
        "int4",
        set_input("MatMulNBits", 1, "mask.ones"),
        "which is computed",
    ),
    "zero points that are computed": (
        "int4",
        lambda m: node(m, "MatMulNBits").input.append("mask.ones"),
        "which is computed",
    ),
    "zero points for fewer blocks": (
        "odd",
        lambda m: zero_points(m, "MatMulNBits", 0),
        r"expected uint8 \(208, 1\)",
    ),
    "zero points of other rows": (
        "odd",
        lambda m: zero_points(m, "GatherBlockQuantized", 2),
        r"expected uint8 \(300, 1\)",
    ),
    "a last block that is missing": (
        "odd",
        set_attribute("MatMulNBits", "K", 300),
        r"expected uint8 \(208, 3, 64\)",
    ),
    "rows of other blocks": (
        "int4",
        set_attribute("GatherBlockQuantized", "block_size", 16),
        r"expected float32 \(300, 4\)",
    ),
    "another axis": (
        "int4",
        set_attribute("GatherBlockQuantized", "gather_axis", 1),
        "gather_axis 1",
    ),
    "integers as floats": (
        "int8",
        set_input("MatMulIntegerToFloat", 0, "embed_tokens.weight.scales"),
        "uint8",
    ),
    "scales of another product": (
        "int8",
        set_input("MatMulIntegerToFloat", 3, "layers.0.mlp.up_proj.weight.scales"),
        r"expected float32 \(96,\)",
    ),
    "a vector for a zero point": (
        "int8",
        lambda m: node(m, "MatMulIntegerToFloat").input.__setitem__(
            4, constant(m, "z", [0], np.uint8)
        ),
        r"uint8 \(1,\) .* expected uint8 in 0 dimensions",
    ),
    "a step of 0": (
        "int8",
        lambda m: node(m, "QuantizeLinear").input.__setitem__(1, constant(m, "s", 0, np.float32)),
        "a scale of 0",
    ),
    # Norms and activations.
    "a norm of another width": (
        "gpt2",
        set_input("LayerNormalization", 1, "h.0.mlp.c_fc.bias"),
        "sizes 128 and 32 of",
    ),
    "a bias of another width": (
        "gpt2",
        set_input("FastGelu", 1, "h.0.ln_1.weight"),
        "sizes 32 and 128 of",
    ),
    "an epsilon below 0": (
        "int4",
        set_attribute("RMSNormalization", "epsilon", -1.0),
        "epsilon -1.0",
    ),
    # What becomes too large, or cannot be computed.
    "a range without end": (
        "growing",
        made_of("Range", 0, 1 << 40, 1),
        "up to 1099511627776 numbers",
    ),
    "a range of no step": ("growing", made_of("Range", 0, 9, 0), "steps of 0"),
    "zeros without end": (
        "growing",
        made_of("ConstantOfShape", [1 << 20, 1 << 20]),
        "up to 1099511627776",
    ),
    "stretched without end": ("growing", made_of("Expand", "input_ids", [1 << 40, 1]), "up to"),
    "stretched by tokens": (
        "gpt2",
        made_of("Expand", "input_ids", "position_ids"),
        "sizes that are not known",
    ),
    "repeated without end": ("growing", made_of("Tile", "input_ids", [1, 1 << 40]), "up to"),
    "padded without end": ("growing", made_of("Pad", "input_ids", [0, 0, 0, 1 << 40]), "up to"),
    "one of very many": ("growing", made_of("OneHot", "input_ids", [1 << 40], [0, 1]), "up to"),
    "doubled over and over": ("growing", doubled, "numbers .* for 64 new tokens"),
    "products of products": ("growing", products, "numbers .* for 64 new tokens"),
    "products of constants": (
        "gpt2",
        chained("MatMul", 4096, 2, of_constants=True),
        r"work for 6.9e\+10 operations up to here .*, expected at most",
    ),
    "products of a token": (
        "int4",
        chained("MatMul", 4096, 2, of_constants=False),
        r"work for 6.9e\+10 operations",
    ),
    "many that are needed at once": (
        "gpt2",
        chained("Neg", 14_000, 3, of_constants=False),
        r"bytes of values that are needed at once .*, expected at most 2.1e\+09",
    ),
    "constants that stay": (
        "gpt2",
        chained("Neg", 14_000, 3, of_constants=True),
        "needed at once",
    ),
    "divided by what rounds to 0": ("gpt2", divided_by(rounded_away), "divided by 0"),
    "divided by what may be no number": ("growing", divided_by(no_number), "divided by -"),
    "divided by 0": ("growing", made_of("Div", "input_ids", [0]), "whole numbers divided by 0"),
    "divided by tokens": (
        "growing",
        made_of("Div", "input_ids", "input_ids"),
        "divided by 0 to 299",
    ),
    "modulo a negative": ("growing", made_of("Mod", "input_ids", [-1]), "divided by -1"),
    "a shape of more elements": ("growing", made_of("Reshape", [1, 2], [3]), "2 elements in 3"),
    "a tensor for a list": (
        "growing",
        set_attribute("Transpose", "perm", numpy_helper.from_array(np.zeros(2))),
        "perm a tensor .*, expected a list",
    ),
    "many dimensions": ("growing", made_of("Reshape", "input_ids", [1] * 17), "17 dimensions"),
}


def zero_points(model: ModelProto, operator: str, width: int) -> None:
    """Gives the first such node zero points of so many bytes a row."""
    found = node(model, operator)
    data = found.input[1 if operator == "MatMulNBits" else 0]
    rows = next(each.dims[0] for each in model.graph.initializer if each.name == data)
    found.input.append(constant(model, "zeros", np.zeros((rows, width)), np.uint8))


@pytest.mark.parametrize("operator", ["MatMulNBits", "GatherBlockQuantized"])
def test_packed_zero_points_are_accepted(
    operator: str, folders: dict[str, ModelFolder], tmp_path: Path
) -> None:
    model = load(folders["odd"])
    zero_points(model, operator, 1)
    check_graph(folder_with(folders["odd"], tmp_path / "copy", model.SerializeToString()))


@pytest.mark.parametrize("name", REFUSED)
def test_one_change_to_a_real_graph_is_refused_by_name(
    name: str, folders: dict[str, ModelFolder], tmp_path: Path
) -> None:
    base, change, message = REFUSED[name]
    model = load(folders[base])
    change(model)
    folder = folder_with(folders[base], tmp_path / "copy", model.SerializeToString())
    with pytest.raises(ModelFolderError, match=message) as caught:
        check_graph(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder.path / 'model.onnx'}: found ") and "\n" not in text
    assert text.endswith("export the checkpoint again with: pocketlm export CHECKPOINT OUT")


def scaled(name: str, value: float) -> Change:
    """One channel gets another scale."""

    def change(model: ModelProto) -> None:
        tensor = weight(model, name)
        values = numpy_helper.to_array(tensor).copy()
        values[0, 2, 0, 5] = value
        tensor.raw_data = values.tobytes()

    return change


def scales_elsewhere(model: ModelProto) -> None:
    """In the file of the weights, where a norm of as many numbers lies."""
    tensor, other = weight(model, SCALE), weight(model, "h.0.ln_1.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = other.data_location
    tensor.external_data.extend(other.external_data)


def without_scales(model: ModelProto) -> None:
    del node(model, G).input[12:]


def one_in_float32(model: ModelProto) -> None:
    """A float32 cache in the midst of those of int8."""
    retyped(KEY, FLOAT, "b", 4, "p", 8)(model)


SCALE = "cache.0.value.scale"
# What an attention over int8 may look like: in one form alone.
REFUSED_INT8: dict[str, tuple[Change, str]] = {
    "a scale for all channels": (
        set_attribute(G, "k_quant_type", "PER_TENSOR"),
        "k_quant_type 'PER_TENSOR' in .*, expected PER_CHANNEL",
    ),
    "four bits": (
        set_attribute(G, "kv_cache_bit_width", 4),
        "kv_cache_bit_width 4 in .*, expected 8",
    ),
    "no type of the values": (
        lambda m: node(m, G).attribute.remove(
            next(a for a in node(m, G).attribute if a.name == "v_quant_type")
        ),
        "a cache of int8 with .* expected .*v_quant_type",
    ),
    "no scales": (without_scales, "and 12 inputs in .*, expected .* and 14"),
    "a scale of 0": (scaled(SCALE, 0.0), "a scale of 0.0 in 'cache.0.value.scale'"),
    "a scale that is no number": (scaled(SCALE, np.nan), "a scale of nan"),
    "an endless scale": (scaled(SCALE, np.inf), "a scale of inf"),
    "scales elsewhere": (scales_elsewhere, "expected positive ones in the graph's own file"),
    "scales of another size": (
        set_input(G, 13, "h.0.ln_1.weight"),
        r"expected float32 \(1, 4, 1, 8\)",
    ),
    "computed scales": (set_input(G, 12, "mask.ones"), "'mask.ones', which is computed"),
    "a sink": (set_input(G, 11, "h.0.ln_1.weight"), "an input 11 in .*, expected none"),
    "float32 among int8": (one_in_float32, f"{KEY} of float32"),
}


@pytest.mark.parametrize("name", REFUSED_INT8)
def test_one_change_to_a_graph_with_an_int8_cache_is_refused(
    name: str, int8_kv_folder: ModelFolder, tmp_path: Path
) -> None:
    change, message = REFUSED_INT8[name]
    model = load(int8_kv_folder, INT8_KV_DECODER)
    change(model)
    graph = model.SerializeToString()
    folder = folder_with(int8_kv_folder, tmp_path / "copy", graph, name=INT8_KV_DECODER)
    check_graph(folder)
    with pytest.raises(ModelFolderError, match=message):
        check_graph(folder, INT8_KV_DECODER)


def test_neither_graph_is_taken_for_the_other(int8_kv_folder: ModelFolder, tmp_path: Path) -> None:
    for name, other in ((DECODER, INT8_KV_DECODER), (INT8_KV_DECODER, DECODER)):
        graph = load(int8_kv_folder, other).SerializeToString()
        folder = folder_with(int8_kv_folder, tmp_path / name, graph, name=name)
        with pytest.raises(ModelFolderError, match=r"past_key_values.0.key of (int8|float32)"):
            check_graph(folder, name)


LIES: dict[str, tuple[str, dict[str, int], dict[str, int], str]] = {
    "heads": (
        "gpt2",
        {"num_heads": 1 << 30},
        {"num_heads": 1 << 30},
        "num_heads 1073741824 in the",
    ),
    "key heads": ("int4", {"kv_heads": 4}, {"kv_num_heads": 4}, "6 heads for 4 key/value heads"),
    "more key heads": ("int4", {"kv_heads": 12}, {"kv_num_heads": 12}, "12 key/value heads of 16"),
    "width": (
        "gpt2",
        {"num_heads": 1 << 16, "kv_heads": 1 << 16, "head_size": 1 << 16},
        {"num_heads": 1 << 16, "kv_num_heads": 1 << 16},
        "65536 heads and 65536 key/value heads of 65536",
    ),
    "fewer heads": ("int4", {"num_heads": 2}, {"num_heads": 2}, "the last of them 32"),
    "layers": ("gpt2", {"num_layers": (1 << 31) - 1}, {}, "num_layers 2147483647 in the manifest"),
    "vocabulary": ("gpt2", {"vocab_size": 299}, {}, "logits of 1 × 0 to 64 × 300"),
    "hidden size": ("gpt2", {"hidden_size": 16}, {}, "an embedding of 300 × 32, expected 300 × 16"),
    "context": ("int4", {"context_length": 65}, {}, "64 rotations"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_manifest_that_lies_with_its_graph_is_refused(
    name: str, folders: dict[str, ModelFolder], tmp_path: Path
) -> None:
    base, sizes, attributes, message = LIES[name]
    model = load(folders[base])
    for found in model.graph.node:
        for attribute in found.attribute:
            if attribute.name in attributes:
                attribute.i = attributes[attribute.name]
    folder = folder_with(folders[base], tmp_path / "copy", model.SerializeToString(), sizes)
    with pytest.raises(ModelFolderError, match=message):
        check_graph(folder)
