"""A repository's checkpoint becomes a folder: every byte checked, and visible whole or not at all.

Files arrive in ``.NAME.partial`` beside the folder NAME that they become. One that is complete has
its own name there, after its SHA-256 (of an LFS file) or git blob id was found right. One that is
not is ``DIGEST.RANDOM.part``. Each process writes to files that it made itself, so that two in one
folder (a lock that does not hold) cannot harm each other: what a killed one left is copied, hashed
again on the way, and continued from there. When all are complete the folder is renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import CheckpointError, HubError, StorageError
from .hub import RESUME, Hub, RemoteFile, Snapshot, TransientError
from .hub_selection import CONFIG, index_file, small_files, weight_files
from .leftovers import remove
from .observer import SILENT, Observer
from .placing import sync
from .publishing import free_space, storage_errors, write_json
from .quantities import size_text
from .strict_json import LARGEST_INDEX, read_json

DOWNLOADED = "pocketlm-download.json"  # in a complete folder: repository, commit and digests
CHUNK_BYTES = 1 << 20
SLOW_SECONDS, SLOW_BYTES = 60, 60_000  # less in that time is no connection
TRIES = 20  # where locks do not hold and processes take each other's files away


def download(
    hub: Hub,
    snapshot: Snapshot,
    folder: Path,
    *,
    for_torch: bool = False,
    observer: Observer = SILENT,
    check: Callable[[Path], object] | None = None,
) -> None:
    """Makes ``folder`` from the checkpoint in ``snapshot``; goes on where another call ended.

    The folder's name must change with the digests of the files. ``for_torch`` brings what
    transformers would load: PyTorch's weights where there are no safetensors, and every tokenizer
    file. ``check`` looks at the folder when all but the weights is there, and may raise what it
    finds: then these are not fetched. Raises HubError, CheckpointError for a repository without a
    checkpoint, and StorageError, before the first weight, when there is no room.
    """
    with storage_errors(folder):
        tries = 0
        while not (folder / DOWNLOADED).is_file():
            tries += 1
            try:
                _make(hub, snapshot, folder, for_torch, observer, check)
            except (FileNotFoundError, FileExistsError):
                # Another process moved what it should not have seen, perhaps while it was made.
                if tries == TRIES:
                    raise
        if tries:
            remove(_staging(folder))  # begun after another had published it


def _make(
    hub: Hub,
    snapshot: Snapshot,
    folder: Path,
    for_torch: bool,
    observer: Observer,
    check: Callable[[Path], object] | None,
) -> None:
    staging = _staging(folder)
    small = small_files(snapshot, for_torch)
    index = index_file(snapshot, for_torch)
    staging.mkdir(parents=True, exist_ok=True)
    if index:
        small.append(index)
        _fetch(hub, snapshot, index, staging, lambda done: None)
    content = None
    if index:
        content = read_json(staging / index.name, LARGEST_INDEX, CheckpointError)
    files = [*small, *weight_files(snapshot, content, for_torch)]
    _check_room(snapshot, files, staging)
    total = sum(file.num_bytes for file in files)
    done = {file.name: _held_bytes(file, staging) for file in files}
    with observer.download(snapshot.repository, total) as progress:
        progress(sum(done.values()), total)
        for file in files:
            if check is not None and file not in small:
                check(staging)
                check = None

            def report(count: int, name: str = file.name) -> None:
                done[name] = count
                progress(sum(done.values()), total)

            _fetch(hub, snapshot, file, staging, report)
    _publish(snapshot, files, staging, folder)


def download_config(hub: Hub, snapshot: Snapshot, folder: Path) -> None:
    """Brings config.json alone, into an existing ``folder``."""
    config = next(file for file in small_files(snapshot) if file.name == CONFIG)
    with storage_errors(folder):
        _fetch(hub, snapshot, config, folder, lambda done: None)


def held_bytes(folder: Path) -> int:
    """What an unfinished download of ``folder`` takes on the disk."""
    return sum(file.stat().st_size for file in _staging(folder).glob("*"))


def _staging(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.partial"


def _is_complete(file: RemoteFile, folder: Path) -> bool:
    """A file gets its name when its digest is right, so that the size tells."""
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.num_bytes


def _held_bytes(file: RemoteFile, folder: Path) -> int:
    """How much of ``file`` is there, as far as its size tells."""
    if _is_complete(file, folder):
        return file.num_bytes
    sizes = [path.stat().st_size for path in _parts(file, folder)]
    return max((size for size in sizes if size <= file.num_bytes), default=0)


def _parts(file: RemoteFile, folder: Path) -> list[Path]:
    return list(folder.glob(f"{file.digest}.*.part"))


def _check_room(snapshot: Snapshot, files: list[RemoteFile], staging: Path) -> None:
    needed = sum(file.num_bytes for file in files if not _is_complete(file, staging))
    free = free_space(staging)
    if needed > free:
        raise StorageError(
            f"{snapshot.repository}: found {size_text(free)} free in {staging.parent}, expected "
            f"{size_text(needed)} for what is missing; free some space, or name another place "
            "in POCKETLM_CACHE"
        )


def _publish(snapshot: Snapshot, files: list[RemoteFile], staging: Path, folder: Path) -> None:
    for leftover in [*staging.glob("*.part"), *staging.glob("*.etag")]:
        leftover.unlink(missing_ok=True)
    record = {
        "repository": snapshot.repository,
        "commit": snapshot.commit,
        "files": {file.name: {"bytes": file.num_bytes, "digest": file.digest} for file in files},
    }
    written = staging / f"{uuid.uuid4().hex}.part"
    write_json(written, record)
    sync(written)
    os.replace(written, staging / DOWNLOADED)
    sync(staging)
    try:
        os.rename(staging, folder)
    except OSError:
        if not (folder / DOWNLOADED).is_file():  # else another process was faster
            raise
        shutil.rmtree(staging, ignore_errors=True)
    sync(folder.parent)


def damaged_file(folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
    """The first of a complete download's ``files`` that is not what the hub listed, if any is.

    ``files`` is as in its record, ``{name: {"bytes": size, "digest": hex}}``. Reads them all.
    """
    for name, listed in files.items():
        found = _hash_for(listed["digest"], listed["bytes"])
        with open(folder / name, "rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                found.update(chunk)
        if found.hexdigest() != listed["digest"]:
            return name
    return None


def _hash_for(digest: str, num_bytes: int) -> hashlib._Hash:
    """What computes a digest of this kind: see ``RemoteFile``."""
    return hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % num_bytes)


# One file ----------------------------------------------------------------------------------------


class _Damaged(Exception):
    """What arrived, or was there, cannot become the file: it starts from zero."""


class _Part:
    """A file of this process that grows, and the digest of what is in it."""

    def __init__(self, file: RemoteFile, folder: Path) -> None:
        self._file = file
        self._folder = folder
        self._etag_path = folder / f"{file.digest}.etag"
        self.restart()

    def restart(self) -> None:
        """Begins a new, empty file."""
        self.discard()
        self.path = self._folder / f"{self._file.digest}.{uuid.uuid4().hex}.part"
        self._stream: BinaryIO = open(self.path, "xb")
        self.size = 0
        self._hash = _hash_for(self._file.digest, self._file.num_bytes)

    def adopt(self) -> None:
        """Copies the longest part that another process left, and removes them all."""
        others = [
            path
            for path in _parts(self._file, self._folder)
            if path != self.path and path.stat().st_size <= self._file.num_bytes
        ]
        if others:
            with open(max(others, key=lambda path: path.stat().st_size), "rb") as left:
                while chunk := left.read(CHUNK_BYTES):
                    self.write(chunk)
            self._stream.flush()
        for path in others:
            path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Appends; _Damaged when that is more than the file has."""
        if self.size + len(chunk) > self._file.num_bytes:
            raise _Damaged(f"more than {self._file.num_bytes:,} bytes")
        self._stream.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def conditions(self) -> dict[str, str]:
        """The headers that ask for the rest only, as long as it is of the same content."""
        if not self.size:
            return {}
        headers = {"range": f"bytes={self.size}-"}
        with contextlib.suppress(OSError, UnicodeDecodeError):
            headers["if-range"] = self._etag_path.read_text("ascii")
        return headers

    def remember(self, etag: str) -> None:
        """Keeps the strong entity tag of what is being written, for a later ``conditions``."""
        if re.fullmatch(r'"[!-~]{0,200}"', etag):
            self._etag_path.write_text(etag, "ascii")
        else:
            self._etag_path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Gives the complete file its name; _Damaged when its digest is wrong."""
        if self._hash.hexdigest() != self._file.digest:
            raise _Damaged(f"content with the digest {self._hash.hexdigest()[:16]}…")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        os.replace(self.path, self._folder / self._file.name)
        self._etag_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leaves what there is for the next one to adopt."""
        self._stream.close()

    def discard(self) -> None:
        """Removes the file, if there is one yet."""
        if hasattr(self, "path"):
            self._stream.close()
            self.path.unlink(missing_ok=True)


def _fetch(
    hub: Hub,
    snapshot: Snapshot,
    file: RemoteFile,
    folder: Path,
    report: Callable[[int], None],
) -> None:
    """Brings ``file`` into ``folder`` unless it is there; ``report`` hears the bytes complete."""
    if _is_complete(file, folder):
        return
    with contextlib.closing(_Part(file, folder)) as part:
        part.adopt()
        patience = hub.patience()
        damaged = False
        while True:
            before = part.size
            try:
                if part.size < file.num_bytes:
                    _receive(hub, snapshot, file, part, report)
                part.finish()
                return
            except TransientError as error:
                if part.size == file.num_bytes:
                    continue
                if part.size >= before + CHUNK_BYTES:
                    patience.renew()
                patience.after(error)
            except _Damaged as found:
                part.restart()
                if damaged:
                    part.discard()
                    raise HubError(
                        f"{snapshot.repository}: {file.name}: found {found} again, expected "
                        f"{file.num_bytes:,} bytes with the digest {file.digest[:16]}…; what the "
                        "hub or a proxy sends is damaged: try again later or on another network"
                    ) from None
                damaged = True


def _receive(
    hub: Hub,
    snapshot: Snapshot,
    file: RemoteFile,
    part: _Part,
    report: Callable[[int], None],
) -> None:
    """One request for what is missing; TransientError when it ends early."""
    with hub.get(snapshot, file, part.conditions()) as answer:
        _check_answer(answer, file, part)
        part.remember(answer.headers.get("etag", ""))
        for chunk in _steady(hub, file, answer.iter_raw()):
            part.write(chunk)
            report(part.size)
    if part.size < file.num_bytes:
        raise TransientError(
            f"{snapshot.repository}: {file.name}: found the connection cut after {part.size:,} "
            f"bytes, expected {file.num_bytes:,}; check the network - {RESUME}"
        )


def _steady(hub: Hub, file: RemoteFile, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same chunks; TransientError when they come so slowly that it is no connection."""
    since, count = hub.clock(), 0
    for chunk in chunks:
        yield chunk
        count += len(chunk)
        if hub.clock() - since >= SLOW_SECONDS:
            if count < SLOW_BYTES:
                raise TransientError(
                    f"{file.name}: found {count:,} bytes in {SLOW_SECONDS} s, expected more than "
                    f"{SLOW_BYTES:,}; try again later, {RESUME}"
                )
            since, count = hub.clock(), 0


def _check_answer(answer: Any, file: RemoteFile, part: _Part) -> None:
    """Whether the body that follows is what is missing; if it is the whole file, starts over."""
    encoding = answer.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise HubError(
            f"{file.name}: found a body compressed with {encoding!r:.40}, expected the file as it "
            "is, as asked for; a proxy changes what the hub sends: try another network"
        )
    if answer.status_code == 416:
        raise _Damaged(f"that the hub has nothing after byte {part.size:,}")
    if answer.status_code == 200 and part.size:
        part.restart()
    if answer.status_code == 206:
        span = f"bytes {part.size}-{file.num_bytes - 1}/{file.num_bytes}"
        found = answer.headers.get("content-range", "")
        if found != span:
            raise _Damaged(f"the range {found!r:.60}")
    length = answer.headers.get("content-length")
    if length is not None and length != str(file.num_bytes - part.size):
        raise _Damaged(f"an answer of {length:.20} bytes")
