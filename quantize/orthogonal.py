"""Orthogonal matrices that spread outliers evenly, and products with them to the last bit.

    Q = M · K                  (n × n); a row x becomes x · Q
    M  signed permutation      (x · M)[j] = signs[j] · x[order[j]]
    K = C ⊗ H                  n = m · 2**k, m odd
    C  Hartley (m × m)         C[i, j] = (cos + sin)(2π · i · j / m) / √m
    H  Hadamard (2**k × 2**k)  H[i, j] = (-1)**popcount(i & j) / √2**k, Sylvester's

C and H are symmetric and their own inverses, and so is K; no entry of K is larger than √(2 / n), so
that no number of x reaches one of the results with more than its share. The first column of K is
constant: without signs the mean of x goes to the first number of x · Q, and nowhere else.

M comes from the raw 64-bit numbers of PCG64, whose stream is the same in every version of NumPy;
rows are multiplied by additions and products of single elements, never by a BLAS, whose order of
summation depends on the processor. So the same seed gives the same bytes everywhere.

Letters: n size, m its odd factor, c columns that are multiplied at once. Sources: Sylvester 1867;
Bracewell 1983 (the discrete Hartley transform); Ashkboos et al. 2024 (arXiv 2404.00456, QuaRot).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Of C every row takes m passes over the numbers; widths of published models have odd factors up
# to 25 (GPT-2 XL: 1600 = 25 · 64).
LARGEST_ODD_FACTOR = 64


def factors(size: int) -> tuple[int, int]:
    """(m, 2**k) with m odd and m · 2**k = ``size``."""
    power = size & -size
    return size // power, power


class Orthogonal:
    """The matrix Q of ``size`` that belongs to ``key``, some whole numbers from 0 up."""

    def __init__(self, size: int, key: tuple[int, ...], *, signed: bool = True) -> None:
        self.size = size
        raw = np.random.PCG64(list(key)).random_raw(2 * size)
        self.order: NDArray[np.int64] = np.argsort(raw[:size], kind="stable")
        minus = (raw[size:] >> np.uint64(63)).astype(bool) & signed
        self.signs: Floats = np.where(minus, np.float32(-1), np.float32(1))

    def times(self, x: Floats) -> Floats:
        """(…, n, c) -> (…, n, c), a new array: every column v of x, as a row, becomes v · Q."""
        z = np.take(x, self.order, axis=-2)  # a turned x is first copied: faster than picking
        z *= (self.signs * np.float32(self.size**-0.5))[:, None]
        odd, power = factors(self.size)
        z = _sums_and_differences(z.reshape(-1, power, x.shape[-1]))
        if odd > 1:
            z = _combined(z.reshape(-1, odd, power * x.shape[-1]), cosines_and_sines(odd))
        return z.reshape(x.shape)

    def dense(self) -> Floats:
        """Q itself."""
        return np.ascontiguousarray(self.times(np.eye(self.size, dtype=np.float32)).T)

    def spread(self, right: int) -> tuple[Floats, Floats]:
        """K as two symmetric matrices, K = left ⊗ right; ``right`` is a power of 2 that divides n.

        A row of n numbers as a matrix X (n / right, right) is multiplied by left · X · right.
        """
        odd, power = factors(self.size)
        left = np.kron(cosines_and_sines(odd) / odd**0.5, _hadamard(power // right))
        return left.astype(np.float32), _hadamard(right).astype(np.float32)


def cosines_and_sines(size: int) -> NDArray[np.float64]:
    """C · √m."""
    indices = np.arange(size)
    angles = 2 * np.pi * (np.outer(indices, indices) % size) / size
    table: NDArray[np.float64] = np.cos(angles) + np.sin(angles)
    return table


def _hadamard(size: int) -> NDArray[np.float64]:
    """H."""
    matrix: NDArray[np.float64] = np.full((1, 1), size**-0.5)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _sums_and_differences(z: Floats) -> Floats:
    """(g, 2**k, c) -> H · √2**k times it, in k passes; ``z`` is written to."""
    groups, size, columns = z.shape
    other = np.empty_like(z)
    step = 1
    while step < size:
        pairs = z.reshape(groups * size // (2 * step), 2, step * columns)
        made = other.reshape(pairs.shape)
        np.add(pairs[:, 0], pairs[:, 1], out=made[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=made[:, 1])
        z, other = other, z
        step *= 2
    return z


def _combined(z: Floats, table: NDArray[np.float64]) -> Floats:
    """(g, m, c) -> table · z for every g."""
    made = np.empty_like(z)
    product = np.empty_like(z[:, 0])
    for row, numbers in enumerate(table.astype(np.float32)):
        made[:, row] = z[:, 0]  # the first number of every row is 1
        for column, number in enumerate(numbers[1:], 1):
            np.multiply(z[:, column], number, out=product)
            made[:, row] += product
    return made
