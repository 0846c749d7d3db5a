"""The KV cache in place against its slow twin, the one that concatenates: equal bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlm.export.errors import ResourceError
from pocketlm.export.folder import DecoderShape, ModelFolder
from pocketlm.runtime.arena import ALONE_CAPACITY, FIRST_CAPACITY, Arena, Cache, KVCache
from pocketlm.runtime.concatenating import ConcatenatingCache
from pocketlm.runtime.session import Session
from pocketlm.runtime.spare_buffers import MOST_BYTES, SpareBuffers

SHAPE = DecoderShape(
    vocab_size=97,
    context_length=160,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    kv_heads=4,
    head_size=8,
)
IDS = [int(number) for number in np.random.default_rng(7).integers(0, 300, 160)]


def in_place(shape: DecoderShape, capacity: int = FIRST_CAPACITY) -> KVCache:
    return Arena(shape, capacity).new()


def feed(session: Session, cache: Cache, ids: list[int], *sizes: int) -> list[NDArray[np.float32]]:
    """The last logits of every step; the steps have ``sizes`` tokens, then one each."""
    logits = []
    position = 0
    steps = iter(sizes)
    while position < len(ids):
        size = next(steps, 1)
        logits.append(session.step(ids[position : position + size], cache))
        position += size
    return logits


@pytest.mark.parametrize("sizes", [(), (3, 2, 9, 1, 30), (160,)])
def test_cache_equals_concatenating_across_growth(
    tiny_session: Session, sizes: tuple[int, ...]
) -> None:
    found_in = in_place(tiny_session.shape, capacity=4)
    found = feed(tiny_session, found_in, IDS, *sizes)
    expected = feed(tiny_session, ConcatenatingCache(tiny_session.shape), IDS, *sizes)
    np.testing.assert_array_equal(found, expected)
    assert found_in.length == found_in.arena.capacity == 160


def test_capacity_doubles_and_never_takes_the_context_at_once(tiny_session: Session) -> None:
    cache = in_place(tiny_session.shape, capacity=4)
    capacities = []
    for token in IDS:
        tiny_session.step([token], cache)
        if cache.arena.capacity not in capacities:
            capacities.append(cache.arena.capacity)
    assert capacities == [4, 8, 16, 32, 64, 128, 160]


def test_a_long_step_makes_just_the_room_it_needs() -> None:
    arena = Arena(SHAPE, capacity=4)
    arena.reserve(100)
    assert arena.capacity == 100
    arena.reserve(50)
    assert arena.capacity == 100


def test_first_capacity_is_small_and_within_the_context(tiny_session: Session) -> None:
    cache = tiny_session.new_caches()()
    assert isinstance(cache, KVCache)
    assert cache.arena.capacity == FIRST_CAPACITY < tiny_session.shape.context_length
    alone = tiny_session.new_cache()
    assert isinstance(alone, KVCache)
    assert alone.arena.capacity == min(ALONE_CAPACITY, tiny_session.shape.context_length)
    assert Arena(SHAPE, capacity=1000).capacity == SHAPE.context_length


def test_a_prompt_has_room_at_once_and_no_more_than_the_context(tiny_session: Session) -> None:
    """With room for what follows, which would else double it: as by doubling from 4 on."""
    for text_length, capacity in ((64, 128), (100, 128)):
        cache = in_place(tiny_session.shape, capacity=4)
        cache.text_length = text_length
        tiny_session.step(IDS[:6], cache)
        assert cache.arena.capacity == capacity
    cache.text_length = tiny_session.shape.context_length + 1  # a text that will not fit
    tiny_session.step(IDS[:6], cache)
    assert cache.arena.capacity == tiny_session.shape.context_length


def test_buffers_that_nobody_uses_are_the_next_caches_and_never_those_of_two(
    tiny_folder: ModelFolder,
) -> None:
    session = Session(tiny_folder)
    (expected,) = feed(session, session.new_cache(), IDS[:9], 9)  # its cache is gone by now
    first, second = session.new_cache(), session.new_cache()
    kept = first.values()[0].ctypes.data
    assert second.values()[0].ctypes.data != kept
    feed(session, second, IDS[30:60], 30)
    np.testing.assert_array_equal(feed(session, first, IDS[:9], 9)[0], expected)
    del first
    third = session.new_cache()
    assert third.values()[0].ctypes.data == kept
    np.testing.assert_array_equal(feed(session, third, IDS[:9], 9)[0], expected)


def test_copies_of_a_cache_that_was_alone_take_no_more_than_those_of_others() -> None:
    cache = Arena(replace(SHAPE, context_length=4096), ALONE_CAPACITY).new()
    cache.length = 100
    other = cache.copy()
    assert cache.arena.capacity == FIRST_CAPACITY < ALONE_CAPACITY
    other.length = 128
    copies = [other.copy() for _ in range(7)]
    assert cache.arena.capacity == FIRST_CAPACITY and len(copies) == 7
    long = Arena(replace(SHAPE, context_length=4096), ALONE_CAPACITY).new()
    long.length = 400
    assert long.copy().length == 400 and long.arena.capacity == 512


def test_buffers_that_a_failed_growth_left_uneven_are_not_the_next_caches(
    tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an arena that dies between two layers: the next would take the first size for all."""
    session, grown = Session(tiny_folder), Arena._grown

    def short_of_memory(arena: Arena, buffer: Any, size: tuple[int, ...]) -> Any:
        if buffer is not None and buffer is arena._buffers[2]:
            raise MemoryError
        return grown(arena, buffer, size)

    cache = Arena(session.shape, 16, spare=session._spare).new()
    monkeypatch.setattr(Arena, "_grown", short_of_memory)
    with pytest.raises(ResourceError):
        session.step(IDS[:60], cache)
    monkeypatch.undo()
    del cache
    following = session.new_cache()
    assert len({value.base.shape for value in following.values() if value.base is not None}) == 1
    np.testing.assert_array_equal(
        feed(session, following, IDS[:60], 60)[0],
        feed(session, in_place(session.shape), IDS[:60], 60)[0],
    )


def test_buffers_of_which_somebody_has_views_are_not_the_next_caches(
    tiny_folder: ModelFolder,
) -> None:
    """A view is what it was for as long as it is held, whatever became of its cache."""
    session = Session(tiny_folder)
    cache = session.new_cache()
    feed(session, cache, IDS[:9], 9)
    views = cache.values()
    some = views[1][0]  # of one buffer of several
    del views, cache
    held = some.copy()
    feed(session, session.new_cache(), IDS[30:60], 30)
    np.testing.assert_array_equal(some, held)


def test_many_bytes_and_many_rows_are_not_kept() -> None:
    spare, buffers = SpareBuffers(), [np.empty((1, 1, 4, 1), np.float32)]
    spare.keep(buffers)
    assert spare.take() is buffers and spare.take() == []
    spare.keep([np.empty((1, 1, 4, 1), np.float32)])
    spare.keep(buffers)  # instead of the other
    assert spare.take() is buffers and spare.take() == []
    spare.keep([np.empty((2, 1, 4, 1), np.float32)])
    spare.keep([np.empty((1, 1, MOST_BYTES + 1, 1), np.int8)])
    spare.keep([None])
    assert spare.take() == []


def test_buffers_that_grew_but_in_part_are_not_the_next_caches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where memory ran out they are of two lengths; a cache would be written beyond the shorter."""
    spare = SpareBuffers()
    cache = Arena(SHAPE, 4, spare=spare).new()
    grown, left = Arena._grown, iter([True, True])

    def failing(arena: Arena, *arguments: Any) -> Any:
        if not next(left, False):
            raise MemoryError
        return grown(arena, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Arena, "_grown", failing)
        with pytest.raises(ResourceError):
            cache.arena.reserve(8)
    del cache
    arena = Arena(SHAPE, 4, spare=spare)
    arena.new()
    assert {value.shape[1] for value in arena.values(0, arena.capacity)} == {4}


def test_num_bytes_is_what_the_tokens_take() -> None:
    # 2 layers x keys and values x 4 heads x 8 numbers x 4 bytes
    assert SHAPE.kv_bytes_per_token == 512
    assert in_place(SHAPE, capacity=10).num_bytes == 5120
    assert ConcatenatingCache(SHAPE).num_bytes == 0


@pytest.mark.parametrize("kind", [in_place, ConcatenatingCache])
@pytest.mark.parametrize("length", [0, 1, 17, 40])
def test_truncate_and_continue_equals_recompute(
    tiny_session: Session, kind: Callable[[DecoderShape], Cache], length: int
) -> None:
    cache = kind(tiny_session.shape)
    feed(tiny_session, cache, IDS[:40])
    cache.truncate(length)
    assert cache.length == length
    found = feed(tiny_session, cache, IDS[100:110])

    fresh = kind(tiny_session.shape)
    feed(tiny_session, fresh, IDS[:length])
    np.testing.assert_array_equal(found, feed(tiny_session, fresh, IDS[100:110]))


@pytest.mark.parametrize("length", [-1, 4])
def test_truncate_outside_the_tokens_held_is_refused(tiny_session: Session, length: int) -> None:
    cache = tiny_session.new_cache()
    tiny_session.step([1, 2, 3], cache)
    with pytest.raises(ValueError, match=f"length is {length}, expected 0 to 3"):
        cache.truncate(length)
    assert cache.length == 3


def test_truncating_keeps_the_memory(tiny_session: Session) -> None:
    cache = in_place(tiny_session.shape, capacity=4)
    first = feed(tiny_session, cache, IDS[:20])
    num_bytes = cache.num_bytes
    cache.truncate(0)
    assert (cache.length, cache.num_bytes) == (0, num_bytes)
    np.testing.assert_array_equal(feed(tiny_session, cache, IDS[:20]), first)


def test_interleaved_caches_equal_solo_runs(tiny_session: Session) -> None:
    prompts = [IDS[:60], IDS[60:120]]
    alone = [
        feed(tiny_session, in_place(tiny_session.shape, capacity=4), prompt) for prompt in prompts
    ]
    caches = [in_place(tiny_session.shape, capacity=4) for _ in prompts]
    together: list[list[NDArray[np.float32]]] = [[], []]
    for tokens in zip(*prompts, strict=True):
        for number, token in enumerate(tokens):
            together[number].append(tiny_session.step([token], caches[number]))
    np.testing.assert_array_equal(together, alone)


def test_one_cache_may_move_between_sessions(
    tiny_session: Session, tiny_folder: ModelFolder
) -> None:
    other = Session(tiny_folder, threads=1)
    expected = feed(tiny_session, tiny_session.new_cache(), IDS[:12])
    cache = in_place(tiny_session.shape, capacity=4)
    found = [(tiny_session, other)[i % 2].step([token], cache) for i, token in enumerate(IDS[:12])]
    np.testing.assert_array_equal(found, expected)
