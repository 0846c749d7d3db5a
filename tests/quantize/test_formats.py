"""Number formats: pack and unpack are inverses, bytes are literal, kernels equal their NumPy twins.

Levels: round-trip bounds (hypothesis), literal bytes, ONNX Runtime against the plain twin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pocketlm.export.external_data import weights_of, write_weights
from pocketlm.export.graph import Graph, Weight
from pocketlm.export.manifest import DATA_FILE
from pocketlm.quantize.formats.block import Block
from pocketlm.quantize.formats.int8_channel import Int8Channel
from pocketlm.quantize.formats.int8_channel_asym import Int8ChannelAsym
from pocketlm.quantize.report import Report
from pocketlm.quantize.rewrite import pack_lazily
from pocketlm.quantize.weights import LinearWeight

Floats = NDArray[np.float32]
BLOCKS = [Block(bits, size) for bits in (4, 8) for size in (16, 32, 64, 128)]
ZERO_POINTS = [Block(4, 32, zero_points=True), Block(4, 128, True), Block(8, 64, True)]
CHANNELS = [Int8Channel(), Int8ChannelAsym()]
each_block = pytest.mark.parametrize("b", [*BLOCKS, *ZERO_POINTS], ids=lambda b: b.name)
each_channel = pytest.mark.parametrize("c", CHANNELS, ids=lambda c: c.name)


def linear_weight(values: Floats, *, transposed: bool) -> LinearWeight:
    g = Graph("weight")
    value = g.weight("w", values.shape, lambda start, stop: values[start:stop])
    assert isinstance(value.const_value, Weight)
    return LinearWeight(value.const_value, transposed)


def run_linear(
    format_: Block | Int8Channel, weight: LinearWeight, x: Floats, tmp_path: Any
) -> tuple[Floats, Report]:
    """``format_.linear`` as a one-layer graph on ONNX Runtime."""
    g, report = Graph("linear"), Report()
    value = g.input("x", np.float32, ["rows", weight.in_features])
    y = format_.linear(g, value, weight, pack_lazily(format_, weight, report))
    g.output(y, "y", np.float32, ["rows", weight.out_features])
    model = g.model()
    write_weights({DATA_FILE: model}, tmp_path)
    ir.save(model, tmp_path / "linear.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "linear.onnx", providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0]), report


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Round trips --------------------------------------------------------------------------------------

finite = st.floats(-1e3, 1e3, width=32)


@settings(deadline=None)
@given(hnp.arrays(np.float32, (3, 64), elements=finite), st.sampled_from(BLOCKS[:3] + BLOCKS[4:7]))
def test_blocks_restore_within_half_a_step_or_the_clipped_extreme(w: Floats, b: Block) -> None:
    data, scales = b.pack(w)
    restored = b.unpack(data, scales)
    steps = np.repeat(np.abs(scales), b.size, axis=1)
    # The scale is at most 25 % below the one that holds the extreme, which then is clipped.
    clipped = np.abs(w).reshape(3, -1, b.size).max(-1, keepdims=True) * 0.26
    # The side without the extra step clips at 2**(bits - 1) - 1.
    bound = np.maximum(steps * 0.5001, np.repeat(clipped[..., 0], b.size, axis=1) + steps)
    assert np.all(np.abs(restored - w) <= bound + 1e-6)
    assert np.isfinite(restored).all() and np.isfinite(scales).all() and np.all(scales != 0)


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (3, 64), elements=finite), st.sampled_from(ZERO_POINTS), st.booleans()
)
def test_blocks_with_zero_points_restore_what_lies_between_their_ends(
    w: Floats, b: Block, positive: bool
) -> None:
    w = np.abs(w) if positive else w
    data, scales, zeros = b.pack(w)
    restored = b.unpack(data, scales, zeros)[:, :64].reshape(3, -1, min(b.size, 64))
    blocks = w.reshape(restored.shape)
    spread = np.maximum(blocks.max(-1), 0) - np.minimum(blocks.min(-1), 0)
    # At most a quarter of the range is cut off, half of it at each end, or where the zero point
    # cannot move further all at one; the zero point is rounded, which costs half a step more.
    bound = 0.26 * spread + 1.01 * np.abs(scales)
    assert np.all(np.abs(restored - blocks) <= bound[..., None] + 1e-6)
    assert np.isfinite(scales).all() and np.all(scales > 0)


@each_channel
@given(w=hnp.arrays(np.float32, (16, 5), elements=finite))
def test_int8_channel_restores_within_half_a_step(c: Int8Channel, w: Floats) -> None:
    data, scales = c.pack(w)
    restored = c.unpack(data, scales)
    assert np.all(np.abs(restored - w) <= np.abs(w).max(axis=0) / 127 * 0.5001 + 1e-6)
    assert np.abs(data.astype(int)).max(initial=0) <= 127
    if isinstance(c, Int8ChannelAsym):
        found = c.sums(data, scales)
        np.testing.assert_allclose(found, restored.sum(axis=0), rtol=1e-4, atol=1e-2)


@each_block
def test_packing_what_was_unpacked_changes_nothing(b: Block) -> None:
    data, scales, *zeros = b.pack(random(7, 256))
    restored = b.unpack(data, scales, *zeros)
    again = b.unpack(*b.pack(restored))
    np.testing.assert_allclose(again, restored, rtol=0, atol=float(scales.max()))


@each_block
@pytest.mark.parametrize("value", [0.0, 1e-42, -1e-42, 3.0, -3.0, 1e30])
def test_blocks_of_one_value_stay_finite_and_close(b: Block, value: float) -> None:
    w = np.full((2, b.size), value, np.float32)
    restored = b.unpack(*b.pack(w))
    np.testing.assert_allclose(restored, w, rtol=1e-5, atol=1e-30)


def test_search_loses_less_than_the_plain_scale() -> None:
    w, b = random(64, 256), Block(4, 64)
    plain = np.abs(w).reshape(64, -1, 64).max(-1) / 7
    q = np.clip(np.rint(w.reshape(64, -1, 64) / plain[..., None]), -8, 7) * plain[..., None]
    searched = b.unpack(*b.pack(w))
    assert np.square(searched - w).sum() < 0.9 * np.square(q.reshape(64, 256) - w).sum()


# Literal bytes ------------------------------------------------------------------------------------


def test_int4_bytes_have_the_even_element_in_the_low_nibble() -> None:
    w = np.zeros((1, 16), np.float32)
    w[0, :4] = [-8, 7, 1, -1]
    data, scales = Block(4, 16).pack(w)
    # The extreme -8 is the end with one step more: scale 1, zero point 8.
    assert scales.tolist() == [[1.0]]
    assert data[0, 0].tolist() == [0xF0, 0x79, *[0x88] * 6]


def test_int8_block_bytes_are_offset_by_128() -> None:
    w = np.zeros((1, 16), np.float32)
    w[0, :3] = [-128, 127, 1]
    data, scales = Block(8, 16).pack(w)
    assert scales.tolist() == [[1.0]]
    assert data[0, 0, :4].tolist() == [0, 255, 129, 128]


def test_zero_points_are_packed_as_the_data_is() -> None:
    w = np.zeros((1, 48), np.float32)
    w[0, :2] = [-3, 12]  # scale 1, zero point 3
    w[0, 16:18] = [0, 15]  # 0
    w[0, 32:34] = [-15, 0]  # 15, and a 0 that fills the byte
    data, scales, zeros = Block(4, 16, zero_points=True).pack(w)
    assert scales.tolist() == [[1.0, 1.0, 1.0]]
    assert zeros.tolist() == [[0x03, 0x0F]]
    assert data[0, :, 0].tolist() == [0xF0, 0xF0, 0xF0]
    assert data[0, :, 1].tolist() == [0x33, 0x00, 0xFF]


@pytest.mark.parametrize("zero_points, filling", [(False, 0x88), (True, 0x33)])
def test_a_last_block_is_filled_with_zero_points(zero_points: bool, filling: int) -> None:
    w = np.zeros((1, 18), np.float32)
    w[0, :2] = w[0, 16:] = [-3, 12] if zero_points else [-8, 7]
    data, scales, *_ = Block(4, 16, zero_points).pack(w)
    assert scales.tolist() == [[1.0, 1.0]]
    assert data[0].tolist() == [[0xF0, *[filling] * 7]] * 2


def test_int8_channel_bytes_are_signed_and_within_127() -> None:
    w = np.array([[127.0, -1.0], [-63.5, 0.25]], np.float32)
    data, scales = Int8Channel().pack(w)
    assert data.tolist() == [[127, -127], [-64, 32]]  # halves round to even
    np.testing.assert_allclose(scales * 127, [1.0, 1 / 127], rtol=1e-6)
    other, scales = Int8ChannelAsym().pack(w)
    assert np.array_equal(other, data)
    np.testing.assert_allclose(scales * 255, [1.0, 1 / 127], rtol=1e-6)
    np.testing.assert_allclose(Int8ChannelAsym().sums(data, scales), [63, -95 / 127], rtol=1e-6)


# Kernels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@each_block
def test_block_kernel_equals_its_twin(b: Block, transposed: bool, tmp_path: Any) -> None:
    w, x = random(48, 256), random(5, 256, seed=1)
    weight = linear_weight(w if transposed else np.ascontiguousarray(w.T), transposed=transposed)
    y, report = run_linear(b, weight, x, tmp_path)
    exact = x @ b.unpack(*b.pack(w)).T
    # Processors without an int8 kernel compute in float32: either is right, nothing between is.
    twin = b.matmul(x, *b.pack(w))
    near = min(np.abs(y - twin).max(), np.abs(y - exact).max())
    assert near <= 2e-3 * np.abs(exact).max()
    assert report.tensors["w"].bits_per_weight == pytest.approx(b.bits_per_weight)


@pytest.mark.parametrize("transposed", [False, True])
@each_channel
def test_int8_channel_nodes_equal_their_twin(
    c: Int8Channel, transposed: bool, tmp_path: Any
) -> None:
    w, x = random(256, 48), random(5, 256, seed=1)
    weight = linear_weight(np.ascontiguousarray(w.T) if transposed else w, transposed=transposed)
    y, _ = run_linear(c, weight, x, tmp_path)
    twin = c.matmul(x, *c.pack(w))
    np.testing.assert_allclose(y, twin, rtol=0, atol=1e-5 * float(np.abs(twin).max()))


@each_channel
def test_int8_channel_survives_large_activations_on_every_processor(
    c: Int8Channel, tmp_path: Any
) -> None:
    """All products at their largest: 16 bits between would saturate without the option."""
    w = np.ones((256, 8), np.float32)
    x = np.ones((3, 256), np.float32)
    x[:, 0] = 0
    y, _ = run_linear(c, linear_weight(w, transposed=False), x, tmp_path)
    np.testing.assert_allclose(y, 255.0, rtol=1e-5)


@each_channel
def test_int8_channel_rows_do_not_depend_on_each_other(c: Int8Channel, tmp_path: Any) -> None:
    w, x = random(256, 96), random(9, 256, seed=2)
    x[4] *= 50  # with one scale for the tensor, this row would spoil the others
    weight = linear_weight(w, transposed=False)
    together, _ = run_linear(c, weight, x, tmp_path)
    for i in range(len(x)):
        (tmp_path / str(i)).mkdir()
        alone, _ = run_linear(c, weight, x[i : i + 1], tmp_path / str(i))
        assert np.array_equal(alone[0], together[i])


@each_channel
def test_int8_channel_handles_rows_of_equal_values(c: Int8Channel, tmp_path: Any) -> None:
    w = random(64, 8)
    x = np.repeat(np.array([[0.0], [2.5], [-1e-3]], np.float32), 64, axis=1)
    y, _ = run_linear(c, linear_weight(w, transposed=False), x, tmp_path)
    restored = c.unpack(*c.pack(w))
    np.testing.assert_allclose(y, x @ restored, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [128, 200])
@pytest.mark.parametrize(
    "b",
    [Block(4, 32), Block(8, 128), Block(4, 128, zero_points=True), Block(8, 16, True)],
    ids=lambda b: b.name,
)
def test_embedding_and_head_share_their_bytes(b: Block, width: int, tmp_path: Any) -> None:
    table = random(40, width)
    weight = linear_weight(table, transposed=True)
    parts = pack_lazily(b, weight, Report())
    g = Graph("tied")
    ids = g.input("ids", np.int64, ["n"])
    rows = b.embedding(g, ids, weight, parts)
    g.output(b.linear(g, rows, weight, parts), "y", np.float32, ["n", 40])
    g.output(rows, "rows", np.float32, ["n", width])
    model = g.model()
    assert len({w.blob for w in weights_of(model)}) == len(b.pack(table))  # each part once
    write_weights({DATA_FILE: model}, tmp_path)
    ir.save(model, tmp_path / "tied.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "tied.onnx")
    numbers = np.array([0, 39, 7, 7], np.int64)
    found = np.asarray(session.run(["rows"], {"ids": numbers})[0])
    assert np.array_equal(found, b.lookup(numbers, *b.pack(table))[:, :width])
    size = (tmp_path / "model.onnx_data").stat().st_size
    assert size < sum(part.nbytes for part in b.pack(table)) + 3 * 4096


@pytest.mark.parametrize("b", [Block(4, 64), Block(8, 32), Block(4, 128, True)], ids=str)
@pytest.mark.parametrize("features", [40, 208])
def test_kernel_reads_no_further_than_the_last_input(
    b: Block, features: int, tmp_path: Any
) -> None:
    w, x = random(24, features), random(5, features, seed=1)
    y, report = run_linear(b, linear_weight(w, transposed=True), x, tmp_path)
    exact = x @ b.unpack(*b.pack(w))[:, :features].T
    near = min(np.abs(y - b.matmul(x, *b.pack(w))).max(), np.abs(y - exact).max())
    assert near <= 2e-3 * np.abs(exact).max()
    found = report.tensors["w"].bits_per_weight
    assert found == pytest.approx(b.bits_of(features), abs=4 / features + 1e-6)  # whole bytes


@pytest.mark.parametrize(
    "features, asked, size",
    [(64, 128, 64), (96, 128, 32), (48, 128, 16), (160, 128, 32), (40, 128, 16)]
    + [(576, 128, 64), (960, 128, 64), (1600, 128, 128), (1600, 64, 64), (1056, 128, 64)],
)
def test_block_takes_the_size_of_fewest_bits(features: int, asked: int, size: int) -> None:
    weight = linear_weight(np.zeros((2, features), np.float32), transposed=True)
    fitted = Block(4, asked).fitted(weight)
    assert fitted == Block(4, size)
    bits = {s: Block(4, s).bits_of(features) for s in (16, 32, 64, 128) if s <= asked}
    assert fitted.bits_of(features) == min(bits.values())
    assert bool(fitted.note) == (size != asked)


def test_block_says_why_it_has_another_size() -> None:
    weight = linear_weight(np.zeros((2, 576), np.float32), transposed=True)
    assert Block(4, 128, zero_points=True).fitted(weight).note == (
        "576 input features take 4.56 bits per weight in blocks of 64, 4.76 in blocks of 128"
    )


@pytest.mark.parametrize(
    "format_", [Block(4, 32), Block(8, 64), Block(4, 64, True), *CHANNELS], ids=lambda f: f.name
)
def test_report_states_the_error_of_the_weights(
    format_: Block | Int8Channel, tmp_path: Any
) -> None:
    w = random(64, 64)
    weight = linear_weight(w, transposed=False)
    _, report = run_linear(format_, weight, random(1, 64), tmp_path)
    unpack: Callable[..., Floats] = format_.unpack
    packed = format_.pack(w.T if isinstance(format_, Block) else w)
    restored = unpack(*packed)
    difference = (w.T if isinstance(format_, Block) else w) - restored
    found = report.tensors["w"]
    relative = np.linalg.norm(difference) / np.linalg.norm(w)
    assert found.relative_error == pytest.approx(relative, rel=1e-3)
    assert found.maximum_error == pytest.approx(np.abs(difference).max(), rel=1e-3)
    sums = 4 * 64 if isinstance(format_, Int8ChannelAsym) else 0
    assert found.bytes_after == sum(part.nbytes for part in packed) + sums
