"""Memory that ran out: recognised however it is told, and reported with what there was."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from pocketlm.export import memory
from pocketlm.export.errors import ModelFolderError, ResourceError
from pocketlm.export.memory import exhausted, free_bytes, is_exhaustion, memory_errors

TOLD = [
    MemoryError(),
    MemoryError("std::bad_alloc"),
    RuntimeError("Exception during initialization: bad allocation"),
    RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 3500000"),
    RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
    RuntimeError("PosixThread(...) pthread_create failed, error code: 12 error msg: ..."),
    RuntimeError("can't start new thread"),
    ImportError("Exception caught: std::bad_alloc"),
    ImportError("libx.so: failed to map segment from shared object"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", TOLD, ids=str)
def test_exhaustion_is_one_kind_of_error(error: Exception) -> None:
    assert is_exhaustion(error)
    with pytest.raises(ResourceError, match="^it: found .*, expected .*; close other") as caught:
        with memory_errors("it"):
            raise error
    assert caught.value.__cause__ is error
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "error",
    [
        ValueError("nothing of the kind"),
        OSError(errno.ENOSPC, "No space left on device"),
        # Of a file system that programs may not be run from.
        ImportError("x.so: failed to map segment from shared object: Operation not permitted"),
        ModelFolderError("x: ONNX Runtime cannot open it (bad allocation)"),
    ],
    ids=str,
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_errors("it"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("free", "needed", "said"),
    [
        (1_500_000, 3_400_000, "found 1.50 MB of memory free, expected at least 3.40 MB for it"),
        (1_500_000, None, "found 1.50 MB of memory free, expected more"),
        # Of the machine there is enough, and yet none was given: that is not the number to tell.
        (9_000_000, 3_400_000, "found no memory, expected at least 3.40 MB for it"),
        (None, 3_400_000, "found no memory, expected at least 3.40 MB for it"),
    ],
)
def test_what_was_needed_and_what_there_was_are_told(
    free: int | None, needed: int | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: free)
    assert str(exhausted("a cache", needed, "do it")) == f"a cache: {said}; do it"


def test_no_memory_for_the_question_how_much_there_is_means_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing() -> int:
        raise MemoryError

    monkeypatch.setattr(memory, "free_bytes", failing)
    assert "found 0 B of memory free, expected more" in str(exhausted("a cache"))


def test_the_size_in_the_error_of_onnxruntime_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 0)
    with pytest.raises(
        ResourceError, match="found 0 B of memory free, expected at least 3.50 MB for it"
    ):
        with memory_errors("it"):
            raise TOLD[3]


def test_what_is_free_is_the_least_of_all_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "v2/memory.max": "5000\n",
        "v2/memory.current": "3000\n",
        "v1/memory/memory.limit_in_bytes": "700\n",
        "v1/memory/memory.usage_in_bytes": "600\n",
        "none/memory.max": "max\n",
        "none/memory.current": "3000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [memory.group_memory(tmp_path / name) for name in ("v2", "v1", "none", "absent")]
    assert found == [(5000, 3000), (700, 600), None, None]
    monkeypatch.setattr(memory, "group_memory", lambda: found[0])
    monkeypatch.setattr(memory, "_kilobytes", lambda file, field: 10**9)
    monkeypatch.setattr(memory, "_limit_rooms", lambda: iter([3000]))
    assert free_bytes() == 2000
    monkeypatch.setattr(memory, "_limit_rooms", lambda: iter([-5]))
    assert free_bytes() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS as Linux has it")
def test_the_limits_of_this_process_count_where_no_module_can_be_loaded() -> None:
    """The module ``resource`` is a library of its own: at the limit, it cannot be had either."""
    code = """
import resource, sys
from pocketlm.export.memory import _status, free_bytes
resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + (50 << 20),) * 2)
sys.modules["resource"] = None
print(free_bytes())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(ended.stdout) <= 50 << 20
