"""Which tensor gets which number format: the precisions a person can ask for, by name.

    precision      linear layers               head and embedding (tied: stored once)
    int8           W8A8 per token              8-bit blocks of 128
    int8-weight    8-bit blocks of 64          8-bit blocks of 64
    int4           4-bit blocks of 128         8-bit blocks of 128

The head is one matrix-vector product per token even in prefill, so it wants the smallest bytes, not
the fastest matrix product; and it carries a large part of what 4 bits lose, so it stays at 8.
Position embeddings and norms stay in float32: they are under 1 % of the weights. Measured choices:
README and benchmarks/NOTES.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..export.errors import RequestError
from .formats.block import Block
from .formats.int8_channel import Int8Channel
from .formats.int8_channel_asym import Int8ChannelAsym
from .precisions import BLOCK_SIZES, DEFAULT_BLOCK, FULL, HEADS, PRECISIONS

Format = Block | Int8Channel


@dataclass(frozen=True)
class Choice:
    """A precision with its options filled in."""

    name: str
    block_size: int
    head: str  # format of head and embedding: fp32, int8 or int4, the last two in blocks

    @property
    def linear_format(self) -> Format:
        if self.name == "int8":
            return Int8ChannelAsym()
        return Block(4 if self.name == "int4" else 8, self.block_size)

    @property
    def head_format(self) -> Block | None:
        """The format of head and embedding, None for float32."""
        if self.head == FULL:
            return None
        return Block(4 if self.head == "int4" else 8, self.block_size)


def choose(precision: str, block_size: int | None = None, head: str | None = None) -> Choice | None:
    """The choice for a precision by name, None for fp32; RequestError lists what is known."""
    for name, value, known in (
        ("precision", precision, PRECISIONS),
        ("block_size", block_size, (None, *BLOCK_SIZES)),
        ("head", head, (None, *HEADS)),
    ):
        if value not in known:
            listed = ", ".join(str(item) for item in known if item is not None)
            raise RequestError(f"{name} is {value!r}, expected one of {listed}")
    if precision == FULL:
        options = {"block_size": block_size, "head": head}
        if given := [name for name, value in options.items() if value is not None]:
            are, neither, them = (
                ("is", "it not", "it") if len(given) == 1 else ("are", "neither", "them")
            )
            raise RequestError(
                f"{' and '.join(given)} {are} given, expected {neither} with fp32; "
                f"choose int8, int8-weight or int4, or leave {them} out"
            )
        return None
    if block_size is not None and precision == "int8" and head == FULL:
        raise RequestError(
            f"block_size is {block_size}, expected none for int8 with an fp32 head, which has no "
            "blocks; leave it out, or choose another head"
        )
    return Choice(precision, block_size or DEFAULT_BLOCK[precision], head or "int8")
