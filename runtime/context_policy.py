"""What happens when a text outgrows the context length C, the most tokens a model can attend to.

                a longer prompt                  the context is full while generating
    "error"     is refused: RequestError         the text ends, with the reason "context"
    "stop"      ends at once, with "context"     the text ends, with the reason "context"
    "slide"     slides before it is computed     slides, is computed again, and goes on

To slide is to go on with the first ``keep`` tokens and the newest half of what else fits,
(C - keep) // 2 of them. Every position changes, so that all that is kept is computed again, as a
prompt is. The model does not see what lies between any more; penalties still do.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..export.errors import RequestError
from ..export.whole_number import brief, whole_number

ERROR, STOP, SLIDE = "error", "stop", "slide"
POLICIES = (ERROR, STOP, SLIDE)


def check_policy(context: object, keep: object) -> None:
    """Raises RequestError for another policy, or for tokens to keep that are no such number."""
    if context not in POLICIES:
        raise RequestError(
            f"context is {context!r:.40}, expected one of: {', '.join(POLICIES)}; leave it out for "
            "error"
        )
    number = whole_number(keep)
    if number is None or number < 0:
        raise RequestError(
            f"keep is {brief(keep)}, expected an integer from 0 up: how many of the first tokens "
            "stay when the context slides"
        )


def window(token_ids: Sequence[int], keep: int, context_length: int) -> list[int]:
    """The tokens that a text of more than ``context_length`` goes on with.

    Raises RequestError where ``keep`` leaves no room for one more.
    """
    newest = (context_length - keep) // 2
    if newest < 1:
        raise RequestError(
            f"keep is {keep}, expected at most {context_length - 2}: the context has "
            f"{context_length} tokens, and needs room for what follows; keep fewer"
        )
    return [*token_ids[:keep], *token_ids[len(token_ids) - newest :]]
