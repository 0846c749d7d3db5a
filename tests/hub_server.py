"""A hub on loopback, with faults: speaks what huggingface_hub and ``pocketlm.export.hub`` ask for.

Two servers: the hub itself, named 127.0.0.1, and the storage that it redirects to for LFS files,
named localhost, so that the two are different hosts to a client. Every request is kept in ``log``.
A ``Fault`` waits for the next requests of a file and spoils the answers to them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin")
INFO = "INFO"  # stands for the listing, where a fault names a file


@dataclass
class Fault:
    """Spoils the next ``times`` answers for ``name`` (a file or INFO)."""

    name: str
    kind: str  # cut, length, longer, content, status, redirect, whole, gzip, range, slow
    at: int = 0  # byte of the file; for slow: bytes per piece
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    by_hub: bool = False  # spoil the hub's answer rather than the storage's


@dataclass(frozen=True)
class Request:
    """What one request asked for, and how many bytes of content it was sent."""

    host: str  # "hub" or "storage"
    path: str
    headers: dict[str, str]  # names in lower case
    sent: list[int] = field(default_factory=lambda: [0])


@dataclass
class Repo:
    """A repository: branches to commits, commits to files."""

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    token: str | None = None  # the only one that is let in; None: nobody is asked
    extra_listing: list[dict[str, Any]] = field(default_factory=list)


def blob_id(content: bytes) -> str:
    """git's name of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer:
    """The running servers; use ``serving``."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.lock = threading.Lock()
        self.before_listing: Callable[[], object] = lambda: None  # may keep the client waiting
        self.servers = [_server(self, "hub"), _server(self, "storage")]
        self.endpoint = f"http://127.0.0.1:{self.servers[0].server_port}"
        self.storage = f"http://localhost:{self.servers[1].server_port}"

    def add(self, name: str, files: Path | Mapping[str, bytes], revision: str = "main") -> str:
        """A new commit of ``name`` with the files of a folder, or these; returns the commit."""
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path.read_bytes()
                for path in sorted(files.rglob("*"))
                if path.is_file()
            }
        repo = self.repos.setdefault(name, Repo())
        commit = hashlib.sha1(f"{name} {len(repo.commits)}".encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.revisions[revision] = commit
        return commit

    def asked(self, name: str) -> list[Request]:
        """The requests for a file (or INFO) so far, redirected ones counted where they ended."""
        ends = f"/{name}" if name != INFO else ""
        return [
            request
            for request in self.log
            if (request.path.endswith(ends) if ends else request.path.startswith("/api/"))
        ]

    def bytes_sent(self, name: str) -> int:
        """Bytes of content of a file that were sent so far."""
        return sum(request.sent[0] for request in self.asked(name))

    def take_fault(self, name: str, host: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.name == name and fault.by_hub == (host == "hub") and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()


@contextmanager
def serving() -> Iterator[HubServer]:
    """Runs a hub while the block runs."""
    hub = HubServer()
    try:
        yield hub
    finally:
        hub.close()


def _server(hub: HubServer, host: str) -> ThreadingHTTPServer:
    class Handler(_Handler):
        pass

    Handler.hub, Handler.host = hub, host

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that went away, killed or satisfied."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    host: str
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)  # a proxy is asked for a whole address
        path = unquote(url.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_seen = Request(self.host, path, headers)
        with self.hub.lock:
            self.hub.log.append(self.request_seen)
        if self.host == "storage":
            self._storage(path)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _repo(self, name: str, for_file: bool) -> Repo | None:
        """The repository, if this client may see it; otherwise the refusal is sent."""
        repo = self.hub.repos.get(name)
        given = self.headers.get("Authorization")
        if given not in (None, "Bearer hf_right", "Bearer hf_other"):
            said = "Invalid credentials in Authorization header"
            self._answer(401, b"", {"X-Error-Message": said})
        elif repo is None:
            self._answer(401 if given is None else 404, b"", {"X-Error-Code": "RepoNotFound"})
        elif repo.gated and for_file and given != "Bearer hf_right":
            status = 401 if given is None else 403
            self._answer(status, b"", {"X-Error-Code": "GatedRepo"})
        else:
            return repo
        return None

    def _info(self, name: str, revision: str) -> None:
        self.hub.before_listing()
        if (repo := self._repo(name, for_file=False)) is None:
            return
        commit = repo.revisions.get(revision, revision)
        if commit not in repo.commits:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = [
            {"rfilename": file, "size": len(content), "blobId": blob_id(content)}
            | (
                {"lfs": {"sha256": _sha256(content), "size": len(content), "pointerSize": 134}}
                if file.endswith(LFS_SUFFIXES)
                else {}
            )
            for file, content in repo.commits[commit].items()
        ]
        body = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": []}
        body |= {"siblings": siblings + repo.extra_listing, "downloads": 0, "likes": 0}
        self._content(INFO, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, commit: str, file: str) -> None:
        if (repo := self._repo(name, for_file=True)) is None:
            return
        content = repo.commits.get(commit, {}).get(file)
        if content is None:
            said = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._answer(404, b"", said)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob_id(content)}"'}
        if not file.endswith(LFS_SUFFIXES):
            return self._content(file, content, headers)
        digest = _sha256(content)
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
        headers["Location"] = f"{self.hub.storage}/{name}/{commit}/{file}?signature=1"
        self._content(file, b"", headers, status=302)

    def _storage(self, path: str) -> None:
        _, org, word, commit, file = path.split("/", 4)
        content = self.hub.repos[f"{org}/{word}"].commits[commit][file]
        self._content(file, content, {"ETag": f'"{_sha256(content)[:32]}"'})

    def _content(
        self, name: str, content: bytes, headers: dict[str, str], status: int = 200
    ) -> None:
        """The file or the rest of it, spoiled if a fault waits for it."""
        fault = self.hub.take_fault(name, self.host)
        kind = fault.kind if fault else ""
        if fault and kind in ("status", "redirect"):
            code = fault.status if kind == "status" else 302
            return self._answer(code, b"busy", fault.headers)
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        condition = self.headers.get("If-Range") or headers.get("ETag")
        if asked and kind != "whole" and condition == headers.get("ETag"):
            start = int(asked[1])
            status = 206
            end = len(content) - 1 if kind != "range" else len(content)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            if start >= len(content):
                return self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        if fault and kind == "content":
            content = content[: fault.at] + bytes([content[fault.at] ^ 1]) + content[fault.at + 1 :]
        if kind == "gzip":
            return self._answer(200, gzip.compress(content), {"Content-Encoding": "gzip"})
        if kind == "length":
            content = content[:-3]
        if kind == "longer":
            content += b"..."
        self._answer(status, content[start:], headers, fault, start)

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        fault: Fault | None = None,
        start: int = 0,
    ) -> None:
        self.send_response(status)
        chunked = fault is not None and fault.kind == "longer"
        for name, value in headers.items():
            self.send_header(name, value)
        if chunked:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault and fault.kind == "cut":
            body = body[: max(0, fault.at - start)]
            self.close_connection = True
        step = fault.at if fault and fault.kind == "slow" else max(1, len(body))
        for first in range(0, len(body), step):
            self.wfile.write(body[first : first + step])
            self.request_seen.sent[0] += len(body[first : first + step])
            if fault and fault.kind == "slow":
                time.sleep(0.01)
        if fault and fault.kind == "cut":
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
