"""What a model folder's generation_config.json says: that of the checkpoint, as far as it can hold.

Begin and end are taken from config.json where it is silent. What cannot be is left out, and told:
a default that nobody asked for must not keep a model from being opened.
"""

from __future__ import annotations

from typing import Any

from .checkpoint import Checkpoint
from .errors import CheckpointError
from .sampling_ranges import FIELDS, sampling_defaults
from .strict_json import shown
from .whole_number import brief

FILE = "generation_config.json"


def generation_defaults(
    checkpoint: Checkpoint, vocab_size: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields, and a line for each that was left out.

    Left out are ids that the vocabulary has not (GPT-2's 50256 stays behind in many a smaller
    model, and -1 means none to some), and sampling that no call could take. Raises CheckpointError
    for an id that is no integer.
    """
    defaults = dict(checkpoint.generation_config)
    usable, wrong = sampling_defaults(defaults)
    notes = [f"{FILE}: {problem}" for problem in wrong]
    for name in FIELDS:
        if name not in usable:
            defaults.pop(name, None)
    text = checkpoint.config.get("text_config")  # of a text model inside another
    inner = text if isinstance(text, dict) else {}
    for name in ("bos_token_id", "eos_token_id"):
        file = FILE if name in defaults else "config.json"
        value = defaults.setdefault(name, checkpoint.config.get(name, inner.get(name)))
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(number) is int for number in listed):
            raise CheckpointError(
                f"{file}: {name} is {shown(value)}, expected a token id, a list of them or "
                "null; the file is damaged or belongs to another model"
            )
        kept = [number for number in listed if 0 <= number < vocab_size]
        if kept != listed:
            defaults[name] = kept or None
            beyond = ", ".join(brief(number) for number in listed if number not in kept)
            notes.append(
                f"{file}: {name} has {beyond}, expected ids of the vocabulary, 0 to "
                f"{vocab_size - 1}; ignored"
            )
    return defaults, tuple(notes)


def is_id(value: object) -> bool:
    """Whether ``value`` can be a token id."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
