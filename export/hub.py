"""Repositories on the hub: what one holds at a commit, which of it is a checkpoint, and its bytes.

The requests go through the client of huggingface_hub, so that ``HF_ENDPOINT``, ``HF_TOKEN``, the
stored token, proxies and ``HF_HUB_OFFLINE`` work as its users expect. Checking what arrives is ours
(``export.download``): no release of huggingface_hub does. The protocol is that of its
``hf_api.model_info`` and ``file_download``.
"""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from .errors import HubError, MissingExtraError
from .frozen import to_install
from .importing import importing
from .quantities import duration_text
from .strict_json import quoted, shown

DEFAULT_ENDPOINT = "https://huggingface.co"
DEFAULT_REVISION = "main"
MINIMUM_LIBRARY = (1, 26)  # the first that checks names of files itself
ATTEMPTS = 4  # of one request, as long as nothing arrives in between
LONGEST_WAIT = 300  # seconds that the hub may ask for
SILENT_SECONDS = 1.0  # of asking the hub, before it is said
QUIET_WAIT = 5  # seconds that need no explanation
MOST_REDIRECTS = 5
RESUME = "the same command goes on where this one ended"
_TRUE = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its switches
_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"({_WORD}/{_WORD})(?:@(\S{{1,200}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def split_name(text: str) -> tuple[str, str | None] | None:
    """(repository, revision or None) of ``org/name`` or ``org/name@revision``; None if neither."""
    match = _NAME.fullmatch(text)
    if match is None or "--" in match[1] or ".." in match[1]:  # the hub has no such names
        return None
    return match[1], match[2]


def offline_by_environment() -> bool:
    """Whether ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` forbids the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in _TRUE for name in names)


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it."""

    name: str
    num_bytes: int
    digest: str  # 64 hex digits: SHA-256 of an LFS file; 40: the id of a git blob


@dataclass(frozen=True)
class Snapshot:
    """What a repository holds at one commit."""

    repository: str  # org/name
    commit: str
    files: dict[str, RemoteFile]  # those of the top folder


class TransientError(HubError):
    """What may go away by itself: trying again is worth it."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds  # what the hub asked for


class Patience:
    """How often one request is tried, and how long is waited in between: 1, 2, 4 seconds."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.renew()

    def renew(self) -> None:
        """Something arrived: what went wrong before counts no more."""
        self._left = self._hub.attempts
        self._wait = 1.0

    def after(self, error: TransientError) -> None:
        """Waits, or raises ``error`` when it is enough."""
        self._left -= 1
        wait = self._wait if error.wait_seconds is None else error.wait_seconds
        if self._left <= 0 or wait > LONGEST_WAIT:
            raise error
        if wait > QUIET_WAIT:
            self._hub.say(f"{error}; waiting {duration_text(wait, 2)} as the hub asks")
        self._hub.sleep(wait)
        self._wait *= 2


@dataclass(frozen=True)
class Hub:
    """The hub that the environment names. ``attempts`` 1 gives up at the first failure.

    ``say`` hears why it takes longer; ``sleep``, ``clock`` and ``timer`` are time itself, but in
    tests.
    """

    attempts: int = ATTEMPTS
    say: Callable[[str], None] = lambda message: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    timer: Callable[[float, Callable[[], None]], threading.Timer] = threading.Timer

    @property
    def endpoint(self) -> str:
        """``HF_ENDPOINT``, or the public hub; HubError if it is no address."""
        endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        if _origin(endpoint)[0] not in ("http", "https") or not _origin(endpoint)[1]:
            raise HubError(
                f"HF_ENDPOINT: found {quoted(endpoint)}, expected an address such as "
                f"{DEFAULT_ENDPOINT}; correct it, or leave it unset"
            )
        return endpoint

    def patience(self) -> Patience:
        """Of one request."""
        return Patience(self)

    def snapshot(self, repository: str, revision: str) -> Snapshot:
        """What ``revision`` of ``repository`` means now, with sizes and digests; one request.

        Raises HubError for a missing, private or gated repository, a wrong revision or token, no
        network, and an answer that is none.
        """
        api = _library().HfApi(endpoint=self.endpoint, **_identity())
        self._headers(self.endpoint)  # finds a token that cannot be sent
        with self._announced(f"asking {self.endpoint} for {repository}"):
            return self._listing(api, repository, revision)

    @contextlib.contextmanager
    def _announced(self, what: str) -> Iterator[None]:
        """Says ``what`` is done in the block, once that has taken a second."""
        timer = self.timer(SILENT_SECONDS, lambda: self.say(what))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _listing(self, api: Any, repository: str, revision: str) -> Snapshot:
        patience = self.patience()
        while True:
            try:
                with self._explained(repository, revision):
                    info = api.model_info(
                        repository, revision=revision, files_metadata=True, timeout=_timeout()
                    )
                return _snapshot(repository, info)
            except TransientError as error:
                patience.after(error)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise HubError(
                    f"{repository}: found no listing in what {self.endpoint} answered "
                    f"({shown(str(error))}), expected one; check HF_ENDPOINT and the proxy"
                ) from error

    def file_url(self, snapshot: Snapshot, file: RemoteFile) -> str:
        """Where the hub has ``file`` of ``snapshot``."""
        return f"{self.endpoint}/{snapshot.repository}/resolve/{snapshot.commit}/{file.name}"

    @contextlib.contextmanager
    def get(self, snapshot: Snapshot, file: RemoteFile, headers: dict[str, str]) -> Iterator[Any]:
        """The answer to a request for ``file``: 200, 206 or 416, its body not yet read.

        Redirects are followed over http(s); the token goes to the hub itself and nobody else.
        """
        session = _utils().get_session()
        url = self.file_url(snapshot, file)
        with self._explained(snapshot.repository, snapshot.commit):
            for _ in range(MOST_REDIRECTS + 1):
                sent = self._headers(url) | {"accept-encoding": "identity"} | headers
                with session.stream(
                    "GET", url, headers=sent, follow_redirects=False, timeout=_timeout()
                ) as answer:
                    if answer.status_code in (301, 302, 303, 307, 308):
                        url = self._redirected(url, answer.headers.get("location", ""))
                        continue
                    if answer.status_code not in (200, 206, 416):
                        raise self._refusal(
                            snapshot.repository, snapshot.commit, answer, self._is_hub(url)
                        )
                    yield answer
                    return
        raise HubError(
            f"{file.name}: found more than {MOST_REDIRECTS} redirects, expected the file; "
            f"try again later, {RESUME}"
        )

    def _headers(self, url: str) -> dict[str, str]:
        token = None if self._is_hub(url) else False  # None: as the environment says
        headers: dict[str, str] = _utils().build_hf_headers(token=token, **_identity())
        if not headers.get("authorization", "").isascii():
            raise HubError(
                "HF_TOKEN: found characters that no token has, expected hf_ and letters or digits; "
                "correct it, or log in again with `hf auth login`"
            )
        return headers

    def _is_hub(self, url: str) -> bool:
        return _origin(url) == _origin(self.endpoint)

    def _redirected(self, url: str, location: str) -> str:
        """The address that a redirect names, if it is one to go to."""
        target = urljoin(url, location)
        scheme, host, _ = _origin(target)
        problem = ""
        if scheme not in ("http", "https") or not host:
            problem = "an address that is not of the web"
        elif scheme == "http" and _origin(url)[0] == "https":
            problem = "an address without encryption"
        elif _is_local(host) and not _is_local(_origin(self.endpoint)[1]):
            problem = "an address of this network"
        if problem:
            raise HubError(
                f"{urlsplit(url).hostname}: found a redirect to {quoted(target)}, {problem}, "
                "expected one to the hub's own storage; nothing was fetched from there - check "
                "HF_ENDPOINT and the proxy"
            )
        return target

    @contextlib.contextmanager
    def _explained(self, repository: str, revision: str) -> Iterator[None]:
        """Turns what the client and its library raise into errors of ours."""
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            OfflineModeIsEnabled,
        )

        try:
            yield
        except HfHubHTTPError as error:
            raise self._refusal(repository, revision, error.response, True) from error
        except OfflineModeIsEnabled as error:
            raise offline_error(repository, revision) from error
        except HFValidationError as error:
            raise _missing(repository, self.endpoint) from error
        except _client_errors() as error:
            raise TransientError(
                f"{repository}: found no usable connection to {self.endpoint} "
                f"({shown(str(error) or type(error).__name__, 200)}), expected an answer; check "
                f"the network and the proxy - {RESUME}"
            ) from error

    def _refusal(self, repository: str, revision: str, answer: Any, by_hub: bool) -> HubError:
        """The error for an answer that is neither a file nor a redirect."""
        status, code = answer.status_code, answer.headers.get("x-error-code", "")
        said = answer.headers.get("x-error-message", "")
        page = f"{self.endpoint}/{repository}"
        if status in (408, 429) or status >= 500 or not by_hub:
            return TransientError(
                f"{repository}: found HTTP status {status} of {urlsplit(str(answer.url)).netloc}, "
                f"expected an answer; the hub is busy or has a problem - try again later, {RESUME}",
                _wait_seconds(answer.headers.get("retry-after", "")),
            )
        if code == "GatedRepo":
            return HubError(
                f"{repository}: found a gated repository, expected one that you may read; accept "
                f"its conditions at {page}, then log in with `hf auth login` or set HF_TOKEN"
            )
        if status == 401 and "Invalid credentials" in said:
            return HubError(
                f"{repository}: found that the hub refuses the token, expected a valid one; "
                "correct HF_TOKEN, or log in again with `hf auth login`"
            )
        if code == "RevisionNotFound":
            return HubError(
                f"{repository}: found no revision {quoted(revision)}, expected a branch, tag or "
                f"commit; see {page}/tree/main for those it has"
            )
        if code == "EntryNotFound" or (status == 404 and code != "RepoNotFound" and said):
            return HubError(
                f"{repository}: found a file gone that was listed ({shown(said)}), expected it at "
                f"commit {revision[:12]}; try again, the repository may just be changing"
            )
        if status in (401, 404):
            return _missing(repository, self.endpoint)
        return HubError(
            f"{repository}: found HTTP status {status} ({shown(said)}), expected access; see {page}"
        )


def offline_error(repository: str, revision: str) -> HubError:
    """What to say when something is not in the cache and the network is forbidden."""
    return HubError(
        f"{repository}: found neither this model nor its download in the cache for revision "
        f"{quoted(revision)}, expected one since the network is off (offline or HF_HUB_OFFLINE); "
        "run it once with the network, or see what there is with: pocketlm list"
    )


def _missing(repository: str, endpoint: str) -> HubError:
    return HubError(
        f"{repository}: found no repository of this name that {endpoint} shows to you, expected "
        "one; check the spelling, and for a private repository log in with `hf auth login` or set "
        "HF_TOKEN"
    )


def _library() -> Any:
    # Read when first used: otherwise it asks the hub, each day, by which agents it may be used.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with importing("downloading a model", "hub"):
        import huggingface_hub
    found = huggingface_hub.__version__
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < MINIMUM_LIBRARY:
        minimum = ".".join(map(str, MINIMUM_LIBRARY))
        raise MissingExtraError(
            f"downloading a model: found huggingface_hub {found}, expected {minimum} or newer; "
            + to_install('pip install --upgrade "pocketlm[hub]"')
        )
    return huggingface_hub


def _identity() -> dict[str, str]:
    from importlib.metadata import version

    return {"library_name": "pocketlm", "library_version": version("pocketlm")}


def _utils() -> Any:
    """Documented, but not exported in a way that a type checker accepts."""
    return importlib.import_module("huggingface_hub.utils")


def _client_errors() -> tuple[type[Exception], ...]:
    """What the HTTP client raises; it is httpx, from huggingface_hub 2 on httpx2."""
    from huggingface_hub.errors import HfHubHTTPError

    base = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    client = importlib.import_module(base.__module__.partition(".")[0])
    return client.HTTPError, client.InvalidURL, client.StreamError


def _timeout() -> float:
    """Seconds without a byte after which a connection counts as cut: HF_HUB_DOWNLOAD_TIMEOUT."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    ports = {"http": 80, "https": 443}
    try:
        port = parts.port
    except ValueError:
        port = None
    return parts.scheme, parts.hostname or "", port or ports.get(parts.scheme)


def _is_local(host: str) -> bool:
    """Whether ``host`` is spelled as a machine of the local network or this machine itself."""
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:  # a name
        return False


def _wait_seconds(text: str) -> float | None:
    """``Retry-After``: seconds, or a date."""
    from email.utils import parsedate_to_datetime

    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _snapshot(repository: str, info: Any) -> Snapshot:
    """The hub's answer, checked: what is wrong in it would be wrong in everything after it."""

    def refuse(found: object, expected: str) -> HubError:
        return HubError(
            f"{repository}: found {shown(found, 100)} in the hub's listing, expected {expected}; "
            "nothing was downloaded - report it to the repository's owner"
        )

    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise refuse(info.sha, "a commit of 40 hexadecimal digits")
    files = {}
    for entry in info.siblings or []:
        name = entry.rfilename
        parts = str(name).split("/")
        if not isinstance(name, str) or "\\" in name or {"", ".", ".."} & set(parts):
            raise refuse(f"the file name {name!r}", "a name inside the repository")
        if len(parts) > 1:
            continue
        digest = entry.lfs.sha256 if entry.lfs else entry.blob_id
        form = _SHA256 if entry.lfs else _COMMIT
        if not isinstance(digest, str) or not form.fullmatch(digest):
            raise refuse(f"the digest {digest!r} of {name}", "hexadecimal digits")
        if type(entry.size) is not int or entry.size < 0:
            raise refuse(f"the size {entry.size!r} of {name}", "a number of bytes")
        files[name] = RemoteFile(name, entry.size, digest)
    return Snapshot(repository, info.sha, files)
