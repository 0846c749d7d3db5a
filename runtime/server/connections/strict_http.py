"""HTTP/1.1 as it comes in, read more strictly than h11 does.

Where two readers could see different requests in the same bytes, a proxy before us and we ourselves
say, the bytes are refused: lines that end without a carriage return, folded lines, a length said
twice or beside chunks. So is what is too large, before it is taken apart.

Sources: RFC 9112, sections 2.2, 5.2, 6.1 and 6.3; CVE-2025-43859.
"""

from __future__ import annotations

import re
from typing import Any

import h11

from ..errors import ApiError

MOST_HEAD_BYTES = 32_768
MOST_HEADERS = 100
MOST_CHUNKS = 10_000  # of a body: each costs about 10 µs, however little is in it

_HEAD_END = re.compile(rb"\n\r?\n")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_FOLDED = re.compile(rb"\n[ \t]")
_VERSIONS = (b"1.0", b"1.1")

NOT_HTTP = "found a request that is not valid HTTP/1.1, expected one; use an HTTP client"


class StrictConnection(h11.Connection):
    """The server's end of a connection.

    refusal     what the client hears of its last bytes; None while nothing is wrong with them
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MOST_HEAD_BYTES)
        self.refusal: ApiError | None = None
        self._num_chunks = 0

    @property
    def is_sending(self) -> bool:
        """Whether more comes of a request that is answered, or of what is none."""
        return self.their_state in (h11.SEND_BODY, h11.ERROR) or self.refusal is not None

    def next_event(self) -> Any:
        """h11's; raises RemoteProtocolError, now and from now on, for what is refused."""
        if self.refusal is None:
            try:
                if self.their_state is h11.IDLE:
                    self._check_head()
                event = super().next_event()
                self._check(event)
                return event
            except h11.RemoteProtocolError as error:
                is_large = error.error_status_hint == 431
                self.refusal = _too_large() if is_large else ApiError(400, NOT_HTTP)
            except ApiError as error:
                self.refusal = error
        raise h11.RemoteProtocolError("refused")

    def _check_head(self) -> None:
        """Raises ApiError for what h11 would take, once a head is all there, or too large."""
        data = self.trailing_data[0]
        # A search by expression takes ten times as long, for a client that sends byte by byte.
        end = _HEAD_END.search(data) if b"\n\r\n" in data or b"\n\n" in data else None
        head = data[: end.end()] if end else data
        if len(head) > MOST_HEAD_BYTES or head.count(b"\n") > MOST_HEADERS + 2:
            raise _too_large()
        if end:
            if _BARE_LINE_FEED.search(head) or _FOLDED.search(head):
                raise ApiError(400, NOT_HTTP)
            _check_framing(head)

    def _check(self, event: Any) -> None:
        if isinstance(event, h11.Request):
            self._num_chunks = 0
            if event.http_version not in _VERSIONS:
                raise ApiError(400, "found another version of HTTP, expected HTTP/1.1")
            is_chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
            if is_chunked and event.http_version == b"1.0":
                raise ApiError(400, NOT_HTTP)
        elif isinstance(event, h11.Data):
            self._num_chunks += event.chunk_start
            if self._num_chunks > MOST_CHUNKS:
                raise ApiError(
                    413,
                    f"the body has more than {MOST_CHUNKS:,} chunks, expected fewer; make them "
                    "larger",
                )


def _check_framing(head: bytes) -> None:
    """Raises ApiError unless at most one header says, in one way, where the body ends."""
    fields = [line.partition(b":")[::2] for line in head.split(b"\r\n")[1:]]
    said = [(name.strip().lower(), value.strip()) for name, value in fields]
    framing = [field for field in said if field[0] in (b"content-length", b"transfer-encoding")]
    if len(framing) > 1:
        raise ApiError(
            400, "found the length of the body said twice, expected it once; leave one out"
        )
    if framing and framing[0][0] == b"content-length" and not framing[0][1].isdigit():
        raise ApiError(400, "found a Content-Length that is no number, expected the body's bytes")


def _too_large() -> ApiError:
    return ApiError(
        431,
        f"the headers are more than {MOST_HEADERS} or than {MOST_HEAD_BYTES:,} bytes, expected "
        "fewer; leave some out",
    )
