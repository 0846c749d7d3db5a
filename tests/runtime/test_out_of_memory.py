"""Without memory a model says so and stays usable: a typed error wherever it was needed."""

from __future__ import annotations

import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
import pytest
from command_line import Run, assert_refused

import pocketlm
from pocketlm.export.errors import ResourceError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.arena import Arena, Cache
from pocketlm.runtime.bound_graph import BoundGraph
from pocketlm.runtime.concatenating import ConcatenatingCache
from pocketlm.runtime.session import Session

IDS = [int(number) for number in np.random.default_rng(4).integers(0, 300, 60)]


def _fail(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("kind", [lambda shape: Arena(shape).new(), ConcatenatingCache])
@pytest.mark.parametrize("arrays", [0, 1, 3])
def test_a_cache_that_cannot_grow_keeps_its_tokens(
    tiny_session: Session,
    monkeypatch: pytest.MonkeyPatch,
    kind: Callable[..., Cache],
    arrays: int,
) -> None:
    """Even when some of its buffers have grown: the others are not where they were bound."""
    cache, alone = kind(tiny_session.shape), tiny_session.new_cache()
    for held in (cache, alone):
        tiny_session.step(IDS[:40], held)
    empty, left = np.empty, [arrays]

    def few(size: Any, *options: Any) -> Any:
        if np.prod(size) >= 120 * tiny_session.shape.head_size:  # not the ids of a step
            if not left[0]:
                raise MemoryError
            left[0] -= 1
        return empty(size, *options)

    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", few)
        with pytest.raises(ResourceError, match="a KV cache for .* tokens: found .*, expected at"):
            tiny_session.step(IDS * 2, cache)
    assert cache.length == 40
    for ids in (IDS[40:60], IDS[:1], IDS):
        expected = tiny_session.step(ids, alone)
        np.testing.assert_array_equal(tiny_session.step(ids, cache), expected)


def test_a_step_without_memory_may_be_repeated(
    tiny_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tiny_session.new_cache()
    full = RuntimeError("Failed to allocate memory for requested buffer of size 10000000000000")
    monkeypatch.setattr(BoundGraph, "_run_bound", _fail(full))
    with pytest.raises(
        ResourceError, match="a step of 60 tokens: found .*, expected at least 10.0 TB for it"
    ):
        tiny_session.step(IDS, cache)
    monkeypatch.undo()
    assert cache.length == 0
    expected = tiny_session.step(IDS, tiny_session.new_cache())
    np.testing.assert_array_equal(tiny_session.step(IDS, cache), expected)


def test_opening_without_memory_is_not_called_a_damaged_model(
    run: Run, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (RuntimeError("std::bad_alloc"), MemoryError()):
        monkeypatch.setattr(onnxruntime, "InferenceSession", _fail(error))
        with pytest.raises(ResourceError, match="fp32: opening it: found .*, expected at least"):
            Session(tiny_folder, threads=1)
    assert_refused(run("run", tiny_folder.path, "x"), "fp32: opening it: found", code=4)


@pytest.mark.parametrize("place", ["Tokenizer.open", "GenerationConfig.read"])
def test_whatever_of_a_model_finds_no_memory_says_so(
    tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(f"pocketlm.runtime.model.{place}", _fail(MemoryError()))
    with pytest.raises(ResourceError, match="opening it: found"):
        pocketlm.load(tiny_folder.path, threads=1)


def test_the_command_line_never_calls_it_a_bug(
    run: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlm.export.writing.write_weights", _fail(MemoryError()))
    ended = run("export", tiny_checkpoint, tmp_path / "out", "--quiet")
    assert_refused(ended, "out: writing it: found .*, expected at least", code=4)
    monkeypatch.setattr("pocketlm.export.writing.build_decoder", _fail(MemoryError()))
    ended = run("export", tiny_checkpoint, tmp_path / "out", "--quiet")
    assert_refused(ended, "memory ran out: found .*, expected more", code=4)


LIMITED = """
import dataclasses, resource, sys
import pocketlm
from pocketlm.runtime.arena import Arena
model = pocketlm.load(sys.argv[1], threads=1)
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + (64 << 20),) * 2)
try:
    Arena(dataclasses.replace(model.session.shape, context_length=1 << 20), 1 << 20).new()
except pocketlm.ResourceError as error:
    print(error)
print(model.generate([5] * 150, max_tokens=2, ignore_eos=True).timings.new_tokens)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA as Linux has it")
def test_a_process_at_its_limit_goes_on_with_less(tiny_folder: ModelFolder) -> None:
    command = [sys.executable, "-c", LIMITED, str(tiny_folder.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    said, tokens = ended.stdout.splitlines()
    assert re.match(
        r"a KV cache for 1,048,576 tokens: found [\d.]+ MB of memory free, expected at least "
        "537 MB for it; shorten the text, close other programs, or take a smaller model",
        said,
    )
    assert tokens == "2"


def test_a_text_that_cannot_begin_says_so(
    tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what it needs is imported only then."""
    model = pocketlm.Model(tiny_folder, threads=1)
    full = ImportError("x.so: failed to map segment from shared object")
    for error in (MemoryError(), full):
        with monkeypatch.context() as patch:
            patch.setattr("pocketlm.runtime.sequence.make_sampler", _fail(error))
            with pytest.raises(ResourceError, match="beginning with a request: found"):
                model.generate("a")
    assert model.generate("a", max_tokens=1, ignore_eos=True).token_ids


def test_a_session_keeps_no_spare_buffers_once_memory_ran_out(
    tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be what another part of the program lacks."""
    session = Session(tiny_folder, threads=1)
    session.step(IDS, session.new_cache())
    used, cache = session.new_cache(), session.new_cache()
    buffers = weakref.ref(used.values()[0].base)
    with monkeypatch.context() as patch:
        patch.setattr(BoundGraph, "_run_bound", _fail(MemoryError()))
        with pytest.raises(ResourceError):
            session.step(IDS, cache)
    del used
    assert buffers() is None
    assert session.step(IDS, cache).any()
