"""What is known of values holds in every run: dimensions, whole numbers, and their bounds.

Compared with the onnx package's own evaluator for each operator by itself, and with ONNX Runtime
for whole traced graphs, node by node, over texts of several lengths. Level: matches reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graph_folders import load, traced_folder
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from traced_graphs import STYLES, VOCAB

from pocketlm.export.folder import DecoderShape
from pocketlm.export.graph_check import facts
from pocketlm.export.graph_check.call import Call
from pocketlm.export.graph_check.facts import Fact, constant, fact
from pocketlm.export.graph_check.graph import Inspection
from pocketlm.export.graph_check.onnx_file import GraphRefused, read_graph
from pocketlm.export.graph_check.operators import DECLARED, TRACED

DECODER = DecoderShape(300, 64, 32, 2, 4, 4, 8)


def check_holds(found: Fact, array: NDArray[Any]) -> None:
    """Whether everything that is said of ``array`` is true."""
    assert helper.tensor_dtype_to_np_dtype(found.dtype) == array.dtype
    assert len(found.dims) == array.ndim
    for size, (low, high) in zip(array.shape, found.dims, strict=True):
        assert low <= size <= high
    assert array.size <= found.most
    if array.size and not np.isnan(array.astype(np.float64)).any():
        assert found.span[0] <= array.min() and array.max() <= found.span[1]
    if found.elements is not None:
        assert len(found.elements) == array.size
        for item, (low, high) in zip(array.reshape(-1).tolist(), found.elements, strict=True):
            assert low <= item <= high


# One operator at a time --------------------------------------------------------------------------

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7
SIZES = np.array([2, 3, 4, -1, 7])
FEW = np.array([5, -3, 2, 0])
BYTES = np.arange(6, dtype=np.uint8).reshape(2, 3)
CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *((name, [X], {}) for name in ("Abs", "Neg", "Relu", "Floor", "Softmax", "Transpose", "Not")),
    *((name, [FEW], {}) for name in ("Abs", "Neg", "NonZero", "Shape", "Size", "Identity")),
    *((name, [FEW, SIZES[:4]], {}) for name in "Add Sub Mul Equal Less Max Min".split()),
    *((name, [FEW, np.array([3])], {}) for name in ("Add", "Sub", "Mul", "Div", "Mod", "Pow")),
    *((name, [X, np.array([1])], {"keepdims": 0}) for name in ("ReduceMean", "ReduceL2")),
    *((name, [FEW], {}) for name in ("ReduceSum", "ReduceMax", "ReduceMin")),
    *((name, [SIZES], {"keepdims": 0}) for name in ("ReduceSum", "ReduceProd", "ReduceMax")),
    *((name, [X], {"axis": 1}) for name in ("ArgMax", "ArgMin", "LogSoftmax")),
    ("Add", [FEW[:0], np.array([3])], {}),
    ("Where", [np.array([True]), FEW[:0], np.array(3)], {}),
    ("Div", [X, X[0] + np.float32(0.5)], {}),
    ("Mod", [FEW, np.array([4])], {"fmod": 1}),
    ("Where", [np.array([True, False, True, False]), FEW, SIZES[:4]], {}),
    ("Where", [X > 0, X, np.float32(0)], {}),
    ("Where", [np.array([[True], [False]]), FEW, np.array(1)], {}),
    ("Cast", [np.array([2.5, -2.5], np.float32)], {"to": TensorProto.INT64}),
    ("Cast", [FEW], {"to": TensorProto.INT32}),
    ("Cast", [FEW], {"to": TensorProto.BOOL}),
    ("Cast", [X > 0], {"to": TensorProto.INT64}),
    ("Clip", [FEW, np.array(-1), np.array(3)], {}),
    ("Shape", [X], {"start": 1}),
    ("Shape", [X], {"start": -2, "end": 2}),
    ("Reshape", [X, np.array([0, -1])], {}),
    ("Reshape", [X, np.array([4, 0, -1])], {}),
    ("Reshape", [X, np.array([6, 4])], {}),
    ("Reshape", [np.zeros((0, 4), np.float32), np.array([0, 2])], {"allowzero": 1}),
    ("Flatten", [X], {"axis": 2}),
    ("Squeeze", [X[:1, :, :1], np.array([0, -1])], {}),
    ("Squeeze", [X[:1, :, :1]], {}),
    ("Unsqueeze", [X, np.array([0, -1])], {}),
    ("Transpose", [X], {"perm": [2, 0, 1]}),
    ("Concat", [X, X, X], {"axis": -1}),
    ("Concat", [FEW, SIZES], {"axis": 0}),
    ("Split", [X, np.array([1, 3])], {"axis": 2}),
    ("Split", [X], {"axis": 2, "num_outputs": 2}),
    ("Split", [SIZES, np.array([2, 3])], {"axis": 0}),
    ("Slice", [X, np.array([1]), np.array([1 << 40]), np.array([2])], {}),
    ("Slice", [X, np.array([-1]), np.array([-9]), np.array([1]), np.array([-1])], {}),
    ("Slice", [SIZES, np.array([1]), np.array([4])], {}),
    ("Slice", [SIZES, np.array([0]), np.array([5]), np.array([0]), np.array([2])], {}),
    ("Expand", [X[:, :1], np.array([2, 3, 1])], {}),
    ("Expand", [np.array([7]), np.array([3, 2])], {}),
    ("Tile", [X, np.array([1, 2, 3])], {}),
    ("ConstantOfShape", [np.array([2, 3])], {"value": numpy_helper.from_array(np.array([5]))}),
    ("ConstantOfShape", [np.array([2, 0])], {}),
    ("Range", [np.array(2), np.array(11), np.array(3)], {}),
    ("Range", [np.array(9), np.array(2), np.array(-2)], {}),
    ("Range", [np.float32(0), np.float32(1), np.float32(0.25)], {}),
    ("Gather", [X, np.array([[1, 0]])], {"axis": 2}),
    ("Gather", [SIZES, np.array([-1, 0])], {"axis": 0}),
    ("Gather", [SIZES, np.array(1)], {}),
    ("GatherElements", [X, np.zeros((2, 1, 4), np.int64)], {"axis": 1}),
    ("GatherND", [X, np.array([[0, 1], [1, 2]])], {}),
    ("GatherND", [X, np.array([[1], [2]])], {"batch_dims": 1}),
    ("ScatterElements", [X, np.zeros((1, 1, 1), np.int64), X[:1, :1, :1]], {"axis": 1}),
    ("ScatterND", [FEW, np.array([[1]]), np.array([9])], {}),
    ("ScatterND", [FEW, np.array([[1]]), np.array([9])], {"reduction": "add"}),
    ("TopK", [X, np.array([2])], {"axis": -1}),
    ("OneHot", [FEW, np.array(6), np.array([0, 1])], {"axis": 0}),
    ("Pad", [X, np.array([0, 1, 0, 0, 0, 2])], {}),
    ("Pad", [X, np.array([1, 2]), np.float32(0), np.array([2])], {}),
    ("CumSum", [FEW, np.array(0)], {}),
    ("Trilu", [X, np.array(0)], {"upper": 0}),
    ("MatMul", [X, X[0].T], {}),
    ("MatMul", [X[0, 0], X[0].T], {}),
    ("Gemm", [X[0], X[1], X[0, :, 0]], {"transB": 1}),
    ("LayerNormalization", [X, X[0, 0], X[0, 1]], {"axis": -1}),
    ("Gelu", [X], {}),
    ("DynamicQuantizeLinear", [X], {}),
    ("DequantizeLinear", [BYTES, np.float32(0.5), np.uint8(3)], {}),
    ("MatMulInteger", [BYTES, BYTES.T.astype(np.int8), np.uint8(3), np.int8(-2)], {}),
]  # fmt: skip


def case_name(case: tuple[str, list[Any], dict[str, Any]]) -> str:
    return f"{case[0]} {' '.join(map(str, case[2].values()))} {len(case[1])}"


@pytest.mark.parametrize("case", CASES, ids=map(case_name, CASES))
def test_what_is_known_of_a_result_is_true_of_it(
    case: tuple[str, list[Any], dict[str, Any]],
) -> None:
    operator, arrays, attributes = case
    if operator == "Not":
        arrays = [arrays[0] > 0]
    names = [f"x{number}" for number in range(len(arrays))]
    results = {"Split": 2, "TopK": 2, "DynamicQuantizeLinear": 3}.get(operator, 1)
    made = helper.make_node(operator, names, [f"y{i}" for i in range(results)], **attributes)
    initializers = [
        numpy_helper.from_array(np.asarray(array), name)
        for array, name in zip(arrays, names, strict=True)
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in made.output]
    graph = helper.make_graph([made], "one", [], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])

    read = read_graph(model.SerializeToString())
    given: list[Fact | None] = [constant(tensor) for tensor in read.initializers]
    rule = TRACED[("", operator)]
    rule.check(read.nodes[0])
    held = {tensor.name: tensor for tensor in read.initializers}
    found = rule.rule(Call(read.nodes[0], given, held, DECODER))
    expected = ReferenceEvaluator(model).run(None, {})
    for fact_found, array in zip(
        (found,) if isinstance(found, Fact) else found, expected, strict=True
    ):
        check_holds(fact_found, np.asarray(array))
        assert all(low == high for low, high in fact_found.dims) or operator == "NonZero"


def test_every_plain_operator_is_compared() -> None:
    """With its twin here, or as part of a whole graph below."""
    like_others = set(
        "And Ceil Cos Elu Erf Exp Greater GreaterOrEqual HardSwish IsNaN LeakyRelu LessOrEqual Log "
        "Or QuantizeLinear RMSNormalization Reciprocal ReduceSumSquare RotaryEmbedding Round "
        "Sigmoid Sign Sin Softplus Sqrt Tanh Xor".split()
    )
    plain = {operator for domain, operator in TRACED if not domain}
    assert plain - {case[0] for case in CASES} == like_others


# Whole graphs ------------------------------------------------------------------------------------


def run_all(path: Path, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What every node of the graph makes."""
    model = onnx.load(path, load_external_data=False)
    names = [name for node in model.graph.node for name in node.output if name]
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent)
    )
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("rewrite", [True, False])
@pytest.mark.parametrize("style", ["gpt2", "llama", "window", "bloom"])
def test_what_is_known_of_a_graph_holds_in_every_run(
    style: str, rewrite: bool, tmp_path: Path
) -> None:
    shape = STYLES[style]
    folder = traced_folder(tmp_path / "out", shape, rewrite=rewrite)
    path = folder.path / "model.onnx"
    inspection = Inspection(read_graph(path.read_bytes()), folder.shape, folder.graph())
    inspection.run(folder.data_bytes())
    random = np.random.default_rng(1)
    longest = min(int(facts.NEW[1]), shape.context // 2)
    for new, past in ((1, 0), (5, 0), (1, 7), (longest, shape.context - longest)):
        cache = (1, shape.kv_heads, past, shape.head_size)
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": random.integers(0, VOCAB, (1, new)),
            "attention_mask": np.ones((1, past + new), np.int64),
            "position_ids": np.arange(past, past + new)[None],
        }
        for value in load(folder).graph.input:
            if value.name.startswith("past"):
                feeds[value.name] = random.standard_normal(cache).astype(np.float32)
        results = run_all(path, feeds)
        assert len(results) > 40
        for name, array in results.items():
            if name in inspection.facts:
                check_holds(inspection.facts[name], array)


def test_bounds_are_tight_where_sizes_are_symbols() -> None:
    """A size keeps its identity: otherwise products of bounds would soon refuse honest graphs."""
    x = fact(TensorProto.FLOAT, (facts.ONE, facts.NEW, (4, 4), (8, 8)))
    batch, new, *_ = x.dims
    wanted = facts.vector(TensorProto.INT64, (batch, new, (-1, -1)))
    node = read_node(helper.make_node("Reshape", ["x", "s"], ["y"]))
    made = DECLARED[("", "Reshape")].rule(Call(node, [x, wanted], {}, DECODER))
    assert isinstance(made, Fact)
    assert made.dims == (facts.ONE, facts.NEW, (32, 32)) and made.dims[1] is facts.NEW
    assert facts.added(facts.PAST, facts.NEW) is facts.TOTAL
    assert facts.subtracted(facts.TOTAL, facts.NEW) is facts.PAST
    assert facts.subtracted(facts.TOTAL, facts.PAST) is facts.NEW
    # Of sizes that may be 1 it is not known which one is stretched to the other.
    assert facts.broadcast((facts.NEW,), ((1, facts.NEW[1]),))[0] is not facts.NEW
    # Equal bounds of two sizes that need not be the same say nothing of their quotient.
    other = facts.vector(TensorProto.INT64, (batch, (1, facts.NEW[1]), (-1, -1)))
    loose = DECLARED[("", "Reshape")].rule(Call(node, [x, other], {}, DECODER))
    assert isinstance(loose, Fact)
    assert loose.dims[2] == (0, facts.NEW[1] * 32)


def read_node(proto: onnx.NodeProto) -> Any:
    model = onnx.ModelProto(graph=onnx.GraphProto(node=[proto]))
    return read_graph(model.SerializeToString()).nodes[0]


def test_whole_numbers_that_wrap_around_may_be_any() -> None:
    large = constant_of(1 << 62)
    node = read_node(helper.make_node("Mul", ["x", "x"], ["y"]))
    made = DECLARED[("", "Mul")].rule(Call(node, [large, large], {}, DECODER))
    assert isinstance(made, Fact)
    assert made.span == facts.WHOLE[TensorProto.INT64]
    with pytest.raises(GraphRefused, match="divided by"):
        divisor = read_node(helper.make_node("Div", ["x", "y"], ["z"]))
        DECLARED[("", "Div")].rule(Call(divisor, [large, made], {}, DECODER))


def constant_of(number: int) -> Fact:
    return facts.vector(TensorProto.INT64, ((number, number),))
