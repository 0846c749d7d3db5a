"""The orthogonal matrices: what they are, by their slow twin, and their bytes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlm.quantize.orthogonal import Orthogonal, factors

SIZES = [1, 2, 3, 8, 9, 40, 64, 96, 144]
Matrix = NDArray[np.float64]


def twin(matrix: Orthogonal) -> Matrix:
    """Q entry by entry, in float64."""
    size = matrix.size
    odd, power = factors(size)
    spread = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            angle = 2 * np.pi * (i // power) * (j // power) / odd
            sign = (-1) ** ((i % power) & (j % power)).bit_count()
            spread[i, j] = (np.cos(angle) + np.sin(angle)) * sign / np.sqrt(size)
    permuted = np.zeros((size, size))
    permuted[matrix.order, np.arange(size)] = matrix.signs
    return permuted @ spread


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_what_its_twin_says(size: int, signed: bool) -> None:
    """2e-7: a number of float32 near 1, rounded a few times."""
    matrix = Orthogonal(size, (3, 1), signed=signed)
    expected = twin(matrix)
    np.testing.assert_allclose(matrix.dense(), expected, rtol=0, atol=2e-7)
    np.testing.assert_allclose(expected @ expected.T, np.eye(size), rtol=0, atol=1e-12)
    assert np.abs(expected).max() <= np.sqrt(2 / size) + 1e-12


@pytest.mark.parametrize("size", SIZES)
def test_many_columns_in_blocks_are_multiplied_as_one_row_by_the_dense_matrix(size: int) -> None:
    matrix = Orthogonal(size, (0,))
    x = np.random.default_rng(0).standard_normal((2, size, 5)).astype(np.float32)
    before = x.copy()
    found = matrix.times(x)
    np.testing.assert_allclose(
        found, np.einsum("gic,ij->gjc", x, twin(matrix)), rtol=0, atol=1e-6 * np.sqrt(size)
    )
    assert np.array_equal(x, before)


@pytest.mark.parametrize("size", SIZES)
def test_the_mean_is_the_first_number_of_a_row_without_signs(size: int) -> None:
    found = np.ones(size) @ twin(Orthogonal(size, (5,), signed=False))
    np.testing.assert_allclose(found, np.sqrt(size) * np.eye(size)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [40, 64, 144])
def test_two_small_matrices_are_the_part_without_the_permutation(size: int) -> None:
    matrix = Orthogonal(size, (0,))
    x = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    right_size = min(8, factors(size)[1])
    left, right = matrix.spread(right_size)
    spread = (left @ x.reshape(-1, right_size) @ right).reshape(-1)
    behind = np.empty_like(x)
    behind[matrix.order] = x * matrix.signs  # x · Mᵀ
    np.testing.assert_allclose(spread, matrix.times(behind[:, None])[:, 0], rtol=0, atol=1e-5)


def test_the_bytes_follow_from_the_key_alone() -> None:
    """Literal numbers: folders that were written with another NumPy had them, too."""
    matrix = Orthogonal(24, (0, 1))
    assert matrix.order.tolist()[:8] == [7, 10, 18, 4, 11, 15, 12, 23]
    assert "".join("+" if sign > 0 else "-" for sign in matrix.signs) == "-++++--+--+++++-++++-+--"
    column = np.array([[1], [2], [3], [5], [8], [13]] * 4, np.float32)
    assert matrix.times(column).tobytes().hex() == (
        "72c41c41e605513fb4a382c0000080b3f005d13e8df5c3c00937f8c0413c16c1fb62f840b646a5be8241c9c0"
        "de678340fe82fdc09e4102c1decb16c00b6e10c125df7740c54507c153b9c2401e705a41d8778e4082d4b33f"
        "c49a2b41a80d41c0"
    )
    assert not np.array_equal(matrix.dense(), Orthogonal(24, (1, 1)).dense())
