"""Numbers as a person reads them."""

from __future__ import annotations

REASONS = {
    "eos": "finished",
    "stop": "finished",
    "length": "as long as asked",
    "context": "the context is full",
    "cancelled": "stopped",
}


def figures(tokens_per_second: float, memory_bytes: int) -> str:
    """Speed and memory, as far as they are known."""
    parts = []
    if tokens_per_second:
        parts.append(f"{tokens_per_second:.{0 if tokens_per_second >= 10 else 1}f} tokens/s")
    if memory_bytes:
        parts.append(size(memory_bytes))
    return " · ".join(parts)


def size(num_bytes: int) -> str:
    """1.2 GB of 1,234,567,890."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    return f"{num_bytes / 1e6:.0f} MB"
