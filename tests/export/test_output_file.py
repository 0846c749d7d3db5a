"""A file for a user appears whole or not at all, and replaces nothing but what was ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pocketlm.benchmarks.results_file import as_json, is_results
from pocketlm.export import leftovers, output_file, placing
from pocketlm.export.errors import RequestError, StorageError
from pocketlm.export.output_file import OutputFile


def ours(data: bytes) -> bool:
    return data.startswith(b"ours")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test writes; nothing else may stay in its folder."""
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "file"


def test_a_new_file_appears_and_is_replaced_by_later_news(path: Path) -> None:
    file = OutputFile(path)
    assert os.listdir(path.parent) == []
    for data in (b"first", b"second"):
        file.write(data)
        assert path.read_bytes() == data
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("before", [b"", b"ours, of yesterday"])
def test_an_empty_file_and_one_of_ours_are_replaced_and_keep_their_mode(
    before: bytes, path: Path
) -> None:
    path.write_bytes(before)
    path.chmod(0o640)
    OutputFile(path, ours).write(b"ours, of today")
    assert path.read_bytes() == b"ours, of today"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == ["file"]


def test_a_file_of_others_is_refused_at_once(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(RequestError, match="file: found a file, expected a new name, or a file th"):
        OutputFile(path, ours)
    with pytest.raises(RequestError, match="file: found a file, expected a new name; choose"):
        OutputFile(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("before", [None, b"ours"])
def test_a_file_that_came_meanwhile_is_not_replaced(before: bytes | None, path: Path) -> None:
    if before:
        path.write_bytes(before)
    file = OutputFile(path, ours)
    path.write_text("mine")
    with pytest.raises(RequestError, match="found (a file, which|another file than) .*this began"):
        file.write(b"ours, new")
    assert path.read_text() == "mine"
    path.unlink()
    path.mkdir()
    with pytest.raises(
        RequestError, match="found (a folder, which|another folder than) .*this began"
    ):
        file.write(b"ours, new")
    assert os.listdir(path.parent) == ["file"]


def test_of_two_writers_the_second_is_refused(path: Path) -> None:
    one, two = OutputFile(path, ours), OutputFile(path, ours)
    one.write(b"ours, one")
    with pytest.raises(RequestError, match="found a file, which was not there"):
        two.write(b"ours, two")
    assert path.read_bytes() == b"ours, one"


def test_without_hard_links_nothing_is_replaced_either(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    file = OutputFile(path, ours)
    OutputFile(path).write(b"first")
    with pytest.raises(RequestError, match="found a file, which was not there"):
        file.write(b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == ["file"]


def test_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "target")
    OutputFile(path).write(b"x")
    assert path.is_symlink() and (tmp_path / "target").read_bytes() == b"x"


@pytest.mark.parametrize(
    "name, told",
    [
        ("", "found a folder, expected a file"),
        ("missing/report.html", "found nothing at .*missing, expected a folder; make it first"),
        ("file/report.html", "found a file at .*file, expected a folder"),
        ("pipe", "found no regular file"),
        (f"{'x' * 300}.html", r"cannot be written \(File name too long\)"),
        ("a\0b", r"cannot be written \(embedded null byte\)"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_out_before(
    name: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match=told):
        OutputFile(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


def test_a_read_only_disk_is_found_out_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(output_file, "open", refuse, raising=False)
    with pytest.raises(RequestError, match="cannot be written \\(Read-only file system\\)"):
        OutputFile(path)


def test_a_read_only_file_is_found_out_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("ours")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anything
    with pytest.raises(RequestError, match="the file is read-only"):
        OutputFile(path, ours)


@pytest.mark.parametrize("failing", ["sync", "rename"])
def test_a_full_disk_leaves_what_was_there(
    failing: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("ours")
    file = OutputFile(path, ours)
    rename = placing.rename_without_replacing

    def fail(*arguments: Any) -> None:
        if arguments[1:] and leftovers.OLD in arguments[0].name:
            return rename(*arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    where, name = (os, "fsync") if failing == "sync" else (placing, "rename_without_replacing")
    monkeypatch.setattr(where, name, fail)
    with pytest.raises(StorageError, match="No space left on device"):
        file.write(b"ours, new")
    assert path.read_text() == "ours"
    assert os.listdir(path.parent) == ["file"]


def test_what_a_killed_writer_left_is_put_back_or_removed(path: Path) -> None:
    def left(end: str) -> Path:
        name = leftovers.new_name(path, end).name
        return path.with_name(name.replace(f"-{os.getpid()}-", "-999999999-"))

    left(leftovers.OLD).write_text("ours")
    left("").write_text("half")
    with pytest.raises(RequestError, match="found a file"):
        OutputFile(path)
    assert path.read_text() == "ours"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize(
    "found, expected",
    [
        (as_json({"circumstances": {"pocketlm": "0.1.0"}}), True),
        (as_json([{"circumstances": {"pocketlm": "0.1.0"}}, {}]), False),
        (as_json([]), False),
        (as_json({"circumstances": ["other"]}), False),
        (as_json("circumstances"), False),
        (b"\xff", False),
        (b"[" * 100_000, False),
    ],
    ids=range(7),
)
def test_results_of_ours_are_known(found: bytes, expected: bool) -> None:
    assert is_results(found) == expected
