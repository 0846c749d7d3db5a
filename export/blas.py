"""Products of NumPy on one thread each, while threads of our own take all cores.

Several threads that each start a product on all cores wait for one another most of the time: error
feedback rounds many small ones, and took ten times as long.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from threadpoolctl import threadpool_limits


def single_threaded_products() -> AbstractContextManager[object]:
    """While the context is open, a product takes one thread, in the whole process."""
    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits
