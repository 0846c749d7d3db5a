"""What the demo makes of a text, the same on every processor and in every precision.

Where a text has one continuation above all others, the likeliest token is a matter of no rounding:
at each of these places the runner-up is at least 1.8 behind in logits, in fp32, int8, int8-weight
and int4, also on an emulated Haswell (AVX2, no VNNI) and Nehalem (no AVX). So a fault has to be a
gross one to be seen: other weights, wrong kernels. int8 products that overflow on a Haswell change
none of these tokens: that is tried by itself, see ``runtime/int8_products.py``.

Made with onnxruntime 1.32, the first ``PROMPT`` tokens at once, then one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlm.runtime.session import Session

TEXT = (
    '"I do not know what you mean, sir," said the gentleman, shaking his head. "I have no doubt '
    "that, on the other hand, it would be very extraordinary; but at the same time I beg your "
    'pardon, and as for the rest, I have nothing more to say." The old gentleman took off his hat '
    'and shook hands with Elizabeth, who burst into tears. "I do not know what you mean, sir," '
    "said Elizabeth, from time to time, in the middle of the night."
)
PROMPT = 40
# Tokens before -> the likeliest one after them: pardon, to, his, z, eth, not, sir, …
GOLDEN = {
    46: 3365,
    57: 276,
    66: 327,
    74: 90,
    76: 1717,
    86: 346,
    92: 1043,
    95: 263,
    97: 90,
    98: 663,
    99: 1717,
    103: 276,
    104: 616,
    108: 1026,
    109: 282,
    110: 263,
    111: 841,
    113: 352,
}


def faults(session: Session, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(place, token found) where the likeliest token is another; ``ids`` are those of ``TEXT``."""
    cache = session.new_cache()
    logits = session.step(ids[:PROMPT], cache)
    for place in range(PROMPT, len(ids) + 1):
        token = int(logits.argmax())
        if token != GOLDEN.get(place, token):
            yield place, token
        if place < len(ids):
            logits = session.step([ids[place]], cache)
