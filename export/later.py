"""Types that annotations name, imported when somebody asks what they are, and not before.

A module that must start soon imports under TYPE_CHECKING what only its annotations name. For
``typing.get_type_hints``, and what stands on it, the same names are to be there all the same.
"""

from __future__ import annotations

from typing import ForwardRef


def later(path: str) -> ForwardRef:
    """What ``typing.get_type_hints`` takes for the type at ``path``: modules and name, dotted."""
    module, _, name = path.rpartition(".")
    return ForwardRef(f"__import__({module!r}, fromlist=[{name!r}]).{name}")
