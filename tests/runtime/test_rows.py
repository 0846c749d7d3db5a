"""Sequences in rows of one arena, stepped together in whatever company: what each gets alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketlm.export.errors import RequestError
from pocketlm.runtime.arena import Arena, Cache, KVCache
from pocketlm.runtime.cancellation import Cancellation, Cancelled
from pocketlm.runtime.concatenating import ConcatenatingCache
from pocketlm.runtime.device_arena import DeviceArena
from pocketlm.runtime.session import Session

IDS = [int(number) for number in np.random.default_rng(3).integers(0, 300, 400)]
ACTIONS = ("join", "step", "step", "step", "feed", "copy", "truncate", "leave")


@pytest.mark.parametrize(
    "other", ["arena", "concatenating", "device"], ids=lambda kind: f"into {kind}"
)
@pytest.mark.parametrize("kind", ["arena", "concatenating", "device"])
def test_a_cache_filled_with_the_values_of_another_goes_on_as_it_does(
    tiny_session: Session, kind: str, other: str
) -> None:
    """Whatever it held before, as far as is asked for."""
    shape = tiny_session.shape
    make: dict[str, Callable[[], Cache]] = {
        "arena": lambda: Arena(shape, 4).new(),
        "concatenating": lambda: ConcatenatingCache(shape),
        "device": lambda: DeviceArena(shape, "cpu", np.float32, 4).new(),
    }
    first, second = make[kind](), make[other]()
    tiny_session.step(IDS[:40], first)
    tiny_session.step(IDS[100:150], second)
    values = [value.copy() for value in first.values()]
    assert {value.shape for value in values} == {(shape.kv_heads, 40, shape.head_size)}
    second.fill(values, 30)
    assert second.length == 30
    for value, expected in zip(second.values(), values, strict=True):
        np.testing.assert_array_equal(value, expected[:, :30])
    first.truncate(30)
    logits = tiny_session.step(IDS[30:50], first)
    np.testing.assert_array_equal(tiny_session.step(IDS[30:50], second), logits)


class Followed:
    """A sequence in an arena, and the slow twin that concatenates its own cache."""

    def __init__(self, session: Session, cache: KVCache, ids: list[int]) -> None:
        self.cache = cache
        self.ids: list[int] = []
        self._session = session
        self._twin = ConcatenatingCache(session.shape)
        self.expect(session.step(ids, cache), ids)

    def expect(self, found: NDArray[np.float32], ids: list[int]) -> None:
        expected = self._session.step(ids, self._twin)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        self.ids += ids
        assert self.cache.length == len(self.ids)

    def copy(self) -> Followed:
        made = object.__new__(Followed)
        made.cache, made.ids = self.cache.copy(), list(self.ids)
        made._session, made._twin = self._session, self._twin.copy()
        return made

    def truncate(self, length: int) -> None:
        del self.ids[length:]
        self.cache.truncate(length)
        self._twin.truncate(length)

    @property
    def room(self) -> int:
        return self._session.shape.context_length - len(self.ids)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), multiple=st.sampled_from([1, 2, 4]))
def test_company_does_not_change_what_a_sequence_gets(
    tiny_session: Session, data: st.DataObject, multiple: int
) -> None:
    arena = Arena(tiny_session.shape, capacity=4)
    running: list[Followed] = []
    for action in data.draw(st.lists(st.sampled_from(ACTIONS), min_size=5, max_size=25)):
        start = data.draw(st.integers(0, 200))
        if action == "join":
            ids = IDS[start : start + data.draw(st.integers(1, 40))]
            running.append(Followed(tiny_session, arena.new(), ids))
            continue
        chosen = [one for one in running if data.draw(st.booleans()) and one.room > 20]
        if action in ("step", "feed"):
            sizes = [1 if action == "step" else data.draw(st.integers(1, 4)) for _ in chosen]
            feeds = [IDS[start + i : start + i + size] for i, size in enumerate(sizes)]
            pairs = [(one.cache, ids) for one, ids in zip(chosen, feeds, strict=True)]
            rows = tiny_session.step_together(pairs, multiple=multiple)
            for one, ids, row in zip(chosen, feeds, rows, strict=True):
                one.expect(row, ids)
        for one in chosen[:2]:
            if action == "copy":
                running.append(one.copy())
            elif action == "truncate":
                one.truncate(data.draw(st.integers(0, len(one.ids))))
            elif action == "leave":
                running.remove(one)
        del chosen
    assert arena.num_rows <= 2 * max(multiple, 2 * len(ACTIONS), 25)


def test_rows_that_nobody_follows_are_taken_again(tiny_session: Session) -> None:
    arena = Arena(tiny_session.shape)
    caches = [arena.new() for _ in range(4)]
    assert arena.num_rows == 4
    del caches[1]
    assert arena.new().row == 1
    again = [arena.new(), *caches]
    assert sorted(cache.row for cache in again) == [0, 1, 2, 3]
    assert arena.num_rows == 4


def test_an_arena_is_freed_with_its_last_sequence(tiny_session: Session) -> None:
    """At once: no cycle that the garbage collector has to find."""
    gc.disable()
    try:
        cache = Arena(tiny_session.shape).new()
        arena = weakref.ref(cache.arena)
        other = cache.copy()
        del cache
        assert arena() is not None
        del other
        assert arena() is None
    finally:
        gc.enable()


def test_made_up_rows_are_not_left_behind(tiny_session: Session) -> None:
    arena = Arena(tiny_session.shape)
    caches = [arena.new() for _ in range(3)]
    for _ in range(5):
        tiny_session.step_together([(cache, [7]) for cache in caches], multiple=2)
    assert arena.num_rows == 4
    assert [cache.length for cache in caches] == [5, 5, 5]


def test_a_lone_sequence_gets_with_made_up_rows_what_it_gets_in_company(
    tiny_session: Session,
) -> None:
    alone = tiny_session.new_cache()
    new_cache = tiny_session.new_caches()
    caches = [new_cache() for _ in range(6)]
    for number, cache in enumerate(caches):
        tiny_session.step(IDS[number : number + 9], cache)
    tiny_session.step(IDS[2:11], alone)
    for token in IDS[40:60]:
        expected = tiny_session.step_together([(alone, [token])], multiple=2)[0]
        feeds = [(cache, [token + i if i != 2 else token]) for i, cache in enumerate(caches)]
        found = tiny_session.step_together(feeds, multiple=2)[2]
        np.testing.assert_array_equal(found, expected)


def test_a_wrong_feed_among_several_changes_none(tiny_session: Session) -> None:
    new_cache = tiny_session.new_caches()
    caches = [new_cache(), new_cache()]
    with pytest.raises(RequestError, match="found token id 300, expected 0 to 299"):
        tiny_session.step_together([(caches[0], [1]), (caches[1], [300])])
    with pytest.raises(RequestError, match="found one cache twice in a step"):
        tiny_session.step_together([(caches[0], [1]), (caches[0], [2])])
    assert [cache.length for cache in caches] == [0, 0]
    assert tiny_session.step_together([]).shape == (0, 300)


def test_a_cancelled_step_leaves_every_sequence_as_it_was(tiny_session: Session) -> None:
    new_cache = tiny_session.new_caches()
    caches = [new_cache() for _ in range(3)]
    for cache in caches:
        tiny_session.step(IDS[:5], cache)
    stopping = Cancellation()
    stopping.cancel()
    with pytest.raises(Cancelled):
        tiny_session.step_together([(cache, [1]) for cache in caches], stopping)
    assert [cache.length for cache in caches] == [5, 5, 5]
    found = tiny_session.step_together([(cache, [1]) for cache in caches])
    np.testing.assert_allclose(found - found[:1], 0, atol=1e-5)


@pytest.mark.parametrize("held", [0, 1, 40])
def test_a_copy_goes_on_by_itself(tiny_session: Session, held: int) -> None:
    """Of a cache that holds nothing, too, and whatever becomes of the first."""
    for first in (Arena(tiny_session.shape).new(), ConcatenatingCache(tiny_session.shape)):
        tiny_session.step(IDS[:40], first)
        first.truncate(held)
        second = first.copy()
        expected = tiny_session.step(IDS[50:60], second.copy())
        tiny_session.step(IDS[70:90], first)
        np.testing.assert_array_equal(tiny_session.step(IDS[50:60], second), expected)
        assert second.length == held + 10
