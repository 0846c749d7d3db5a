"""Which layers see all tokens and which a window of them: ``layer_types`` of config.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .config_fields import require

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_kinds(
    config: dict[str, Any], count: int, is_windowed: Callable[[int], bool]
) -> tuple[str, ...]:
    """FULL or SLIDING for each of ``count`` layers; as ``is_windowed`` says where none are listed.

    CheckpointError for a list of another length or with another kind.
    """
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple(SLIDING if is_windowed(i) else FULL for i in range(count))
    whole = isinstance(kinds, list) and len(kinds) == count
    known = whole and all(kind in (FULL, SLIDING) for kind in kinds)
    require(known, "layer_types", kinds, [f"{count} times {FULL} or {SLIDING}"])
    return tuple(kinds)


def used_window(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` without the window where ``use_sliding_window`` says that it means nothing."""
    if config.get("use_sliding_window") in (False, None):
        return config | {"use_sliding_window": False, "sliding_window": None}
    return config


def check_window(kinds: tuple[str, ...], window: int | None) -> None:
    """Raises CheckpointError for layers with a window that there is no size of."""
    fits = window is not None or SLIDING not in kinds
    require(fits, "sliding_window", window, [f"one, as there are layers of {SLIDING}"])
