"""Names of tensors as the model has them, where a trainer's wrapper put its own before them.

_orig_mod.   torch.compile
module.      DataParallel, DistributedDataParallel, DeepSpeed
model.       a module that holds the model, as Lightning's: only where all names have it and the
             model's own names follow, since many models begin with it themselves
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import CheckpointError

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod\.|module\.)+")
_HELD = re.compile(r"model\.(?:model|transformer|gpt_neox|lm_head|embed_out)\.")


def without_prefixes(names: Iterable[str]) -> dict[str, str]:
    """The name that the model gives each of ``names``; CheckpointError where two have the same."""
    found = {name: _WRAPPERS.sub("", name) for name in names}
    while _is_held(found.values()):
        found = {name: known.removeprefix("model.") for name, known in found.items()}
    first: dict[str, str] = {}
    for name, known in found.items():
        if known in first:
            raise CheckpointError(
                f"tensors {first[known]!r} and {name!r} are both {known!r} without the prefixes of "
                "trainers, expected one; the file mixes two checkpoints"
            )
        first[known] = name
    return found


def _is_held(names: Iterable[str]) -> bool:
    names = list(names)
    return all(name.startswith("model.") for name in names) and any(map(_HELD.match, names))
