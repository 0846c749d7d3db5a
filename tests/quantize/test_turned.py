"""Weights that have absorbed a matrix: lazy, in runs of rows, and in the memory they announce."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from pocketlm.export import graph as graph_module
from pocketlm.export.graph import WHOLE, Blob, Weight
from pocketlm.quantize import turned as turned_module
from pocketlm.quantize.orthogonal import Orthogonal
from pocketlm.quantize.turned import Turn, shifted, turned
from pocketlm.quantize.weights import Floats, LinearWeight


def weight_of(values: Floats, name: str = "w", step: int | None = None) -> Weight:
    """A weight that must not be written to."""
    values = values.copy()
    values.flags.writeable = False
    return Weight(name, values.shape, np.float32, Blob(lambda a, b: values[a:b], step))


def random(*shape: int) -> Floats:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


TURNS = {
    "all": Turn(Orthogonal(48, (0,))),
    "blocks": Turn(Orthogonal(8, (0,))),
    "blocks of a part": Turn(Orthogonal(8, (0,)), 16, 40),
    "with a gain": Turn(Orthogonal(48, (0,)), gain=weight_of(random(48))),
    "centred": Turn(Orthogonal(48, (0,), signed=False), centred=True),
}


def expected(values: Floats, turn: Turn) -> Floats:
    """The rows of ``values`` (r, 48) turned, by one whole matrix."""
    part = turn.part(48)
    blocks = (part.stop - part.start) // turn.matrix.size
    whole = np.eye(48)
    whole[part, part] = np.kron(np.eye(blocks), turn.matrix.dense())
    gain = turn.gain.read() if turn.gain is not None else np.float32(1)
    made = (values * gain) @ whole.astype(np.float32)
    if turn.centred:
        made[:, 0] = 0
    return made


@pytest.mark.parametrize("step", [None, WHOLE])
@pytest.mark.parametrize("turn", TURNS.values(), ids=list(TURNS))
def test_either_axis_is_turned_and_any_run_of_rows_is_the_same(
    turn: Turn, step: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turned_module, "CHUNK", 100)  # several chunks of every weight
    values = random(48, 48)
    for axis in (0, 1):
        weight = turned(weight_of(values, step=step), axis, turn)
        rows = values if axis else np.ascontiguousarray(values.T)
        found = weight.read()
        wanted = expected(rows, turn)
        np.testing.assert_allclose(found, wanted if axis else wanted.T, rtol=0, atol=1e-5)
        for start, stop in ((0, 48), (0, 1), (7, 9), (17, 47)):
            assert np.array_equal(weight.rows(start, stop), found[start:stop])


@pytest.mark.parametrize("turn", TURNS.values(), ids=list(TURNS))
def test_a_vector_is_turned_as_a_row(turn: Turn) -> None:
    values = random(48)
    found = turned(weight_of(values), 0, turn).read()
    np.testing.assert_allclose(found, expected(values[None], turn)[0], rtol=0, atol=1e-5)


def test_rows_stay_lazy_where_they_can() -> None:
    weight = weight_of(random(64, 64))
    heads, whole = Turn(Orthogonal(16, (0,))), Turn(Orthogonal(64, (0,)))
    for turn, axis, step in (
        (heads, 0, None),
        (heads, 1, None),
        (whole, 1, None),
        (whole, 0, WHOLE),
    ):
        assert turned(weight, axis, turn).blob.step == step


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("step", [None, WHOLE])
def test_a_shift_is_what_the_product_makes_of_it(transposed: bool, step: int | None) -> None:
    matrix, shift, bias = random(24, 40), random(40), random(24)
    stored = matrix if transposed else np.ascontiguousarray(matrix.T)
    product = LinearWeight(weight_of(stored, step=step), transposed)
    for given in (weight_of(bias, "bias"), "made"):
        made = shifted(given, product, weight_of(shift))
        wanted = matrix @ shift + (bias if isinstance(given, Weight) else 0)
        np.testing.assert_allclose(made.read(), wanted, rtol=0, atol=1e-5)
        assert made.learned == isinstance(given, Weight)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", [64, 512])
def test_no_more_memory_is_taken_than_announced(
    axis: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what a call brings back: pieces and chunks, here small ones; some kB for Python."""
    monkeypatch.setattr(graph_module, "PIECE_BYTES", 1 << 17)
    monkeypatch.setattr(turned_module, "CHUNK", 1 << 13)
    monkeypatch.setattr(turned_module, "CHUNK_SCRATCH", 16 << 13)
    values = random(512, 1024) if axis == 0 else random(1024, 512)
    source = Weight("w", values.shape, np.float32, Blob(lambda a, b: values[a:b].copy()))
    weight = turned(source, axis, Turn(Orthogonal(size, (0,))))
    stop = min(weight.step, weight.num_rows)
    tracemalloc.start()
    try:
        weight.rows(0, stop)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= stop * weight.row_bytes + weight.blob.scratch + 20_000
    assert weight.blob.scratch == 2 << 17
