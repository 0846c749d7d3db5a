"""Contexts of several threads overlap in any order, and leave the process as they found it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from pocketlm.export.blas import single_threaded_products


def threads() -> set[int]:
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return {library["num_threads"] for library in found}


@pytest.mark.skipif(not threads(), reason="NumPy's BLAS has no count of threads to set")
@given(st.lists(st.integers(0, 3), max_size=12))
def test_products_have_one_thread_while_any_context_is_open(order: list[int]) -> None:
    """Each number opens that context, or closes it where it is open."""
    with threadpool_limits(2, user_api="blas"):  # on a machine of one core, too
        opened: dict[int, AbstractContextManager[None]] = {}
        for number in order:
            if number in opened:
                opened.pop(number).__exit__(None, None, None)
            else:
                opened[number] = single_threaded_products()
                opened[number].__enter__()
            assert threads() == {1 if opened else 2}
        for context in opened.values():
            context.__exit__(None, None, None)
        assert threads() == {2}
