"""What a person can ask for by name; lean, so that a command line can list it at no cost.

    precision      linear layers               head and embedding (tied: stored once)
    int8           W8A8 per token              8-bit blocks of 128
    int8-weight    8-bit blocks of 64          8-bit blocks of 64
    int4           4-bit blocks of 128         8-bit blocks of 128

The head is one matrix-vector product per token even in prefill, so it wants the smallest bytes, not
the fastest matrix product; and it carries a large part of what 4 bits lose, so it stays at 8.
Position embeddings and norms stay in float32: they are under 1 % of the weights. Measured choices:
docs/quality.md and benchmarks/NOTES.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FULL = "fp32"
PREFILL = "int8"  # what a second set of weights, for many tokens at a time, is called
MIXED = "mixed"  # of a plan that is no precision by name
BLOCK_SIZES = (32, 64, 128)
# Formats of head and embedding by the name of the option; {} is the block size, here and below.
HEADS = {FULL: FULL, "int8": "int8-block{}", "int4": "int4-block{}"}


@dataclass(frozen=True)
class Precision:
    """A row of ``PRECISIONS``: what a name stands for where no option says otherwise."""

    name: str
    linear: str  # format of the linear layers
    head: str  # of ``HEADS``
    block_size: int | None = None  # of what has blocks; None: nothing has
    rotated: bool = False  # the weights are rotated first
    calibrated: bool = False  # an export calibrates unless told otherwise, if that takes not long


PRECISIONS = {
    row.name: row
    for row in (
        Precision(FULL, FULL, FULL),
        Precision("int8", "int8-channel", "int8", 128, rotated=True),
        Precision("int8-weight", "int8-block{}", "int8", 64, rotated=True),
        Precision("int4", "int4-block{}", "int8", 128, rotated=True, calibrated=True),
    )
}

CALIBRATION_TOKENS = 16384
UNSEEN = 4096  # tokens beside them that the finished model is compared on
AUTOMATIC_SECONDS = 600.0  # that a calibration nobody asked for may take


@dataclass(frozen=True)
class Calibration:
    """What to calibrate on; without ``files`` it is what the model dreams."""

    files: tuple[Path, ...] = ()
    tokens: int = CALIBRATION_TOKENS
    seed: int = 0
    folder: Path | None = None  # keeps the statistics; None: in the cache until they were used
    most_seconds: float | None = None  # predicted; None: it may take any time


AUTOMATIC = Calibration(most_seconds=AUTOMATIC_SECONDS)


@dataclass(frozen=True)
class Budget:
    """A promise to keep: the one of the two that is not None."""

    max_kl: float | None = None  # nats per token against full precision
    max_bytes: int | None = None  # of the weights
