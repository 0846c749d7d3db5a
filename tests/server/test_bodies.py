"""A body is read strictly: whatever is wrong with it is told, by the field where there is one.

Figures b1 and b4 of the scorecard send many more.
"""

from __future__ import annotations

from collections.abc import Iterator

import bad_json
import pytest
from raw_http import Answer, exchange, is_error, post
from served import Served, served

from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.server.app import ENDPOINTS

pytestmark = pytest.mark.serve

CAP = 200_000
WRONG = {name: (body, "invalid_json") for name, body in bad_json.broken().items()}
WRONG |= {name: (body, "unknown_parameter") for name, body in bad_json.unknown().items()}


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    models = {"tiny": tiny_folder}
    with served(models, most_body_bytes=CAP) as running:
        yield running


def send(server: Served, body: bytes, path: str = "/v1/completions", *lines: str) -> Answer:
    """What is answered to ``body``."""
    sent = post(path, body, f"127.0.0.1:{server.port}", lines)
    (answer,) = exchange(server.port, sent, answers=1).answers
    return answer


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_strict_json_object_is_refused(server: Served, name: str) -> None:
    body, code = WRONG[name]
    answer = send(server, body)
    assert is_error(answer)
    told = answer.status, answer.json["error"]["code"]
    assert told == ((413, None) if len(body) > CAP else (400, code))
    assert len(answer.body) < 2000  # however much of it is wrong


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "the body is not valid JSON"),
        (b"\xff", "the body is not UTF-8 (byte 0 is 0xff)"),
        (b"[]", "the body holds a JSON array, expected a JSON object"),
        (b'{"n": NaN}', "the body has the number NaN, expected finite numbers only"),
        (b'{"n": 1e999}', "expected one that fits float64"),
        (b'{"n": 1, "n": 2}', "the body has the key 'n' twice"),
        (b'{"n": "\\ud83d"}', "the body has a string with half a surrogate pair"),
        (b'{"n":' + b"[" * 200 + b"]" * 200 + b"}", "is nested too deeply"),
    ],
)
def test_what_is_wrong_with_json_is_told(server: Served, body: bytes, told: str) -> None:
    error = send(server, body).json["error"]
    assert told in error["message"]
    assert error["code"] == "invalid_json" and error["type"] == "invalid_request_error"


def test_every_endpoint_reads_strictly(server: Served) -> None:
    paths = [endpoint.path for endpoint in ENDPOINTS if endpoint.method == "POST"]
    assert len(paths) > 1
    for path in paths:
        answer = send(server, b'{"model": "tiny", "x": NaN}', path)
        assert answer.status == 400 and answer.json["error"]["code"] == "invalid_json", path


def test_a_field_that_is_not_known_is_named_up_to_a_length(server: Served) -> None:
    error = send(server, b'{"prompt": "a", "%b": 1}' % (b"x" * 5000)).json["error"]
    assert error["code"] == "unknown_parameter" and error["param"] == "x" * 100


@pytest.mark.parametrize("over", [0, 1])
def test_a_body_has_at_most_so_many_bytes(server: Served, over: int) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'.ljust(CAP + over)
    assert send(server, body).status == (413 if over else 200)


@pytest.mark.parametrize("over", [0, 1])
def test_so_it_has_without_a_length(server: Served, over: int) -> None:
    body = b'{"prompt": "a", "max_tokens": 1}'.ljust(CAP + over)
    head = post("/v1/completions", body, f"127.0.0.1:{server.port}").partition(b"\r\n\r\n")[0]
    head = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
    pieces = [body[at : at + 10_000] for at in range(0, len(body), 10_000)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    found = exchange(server.port, head + b"\r\n\r\n" + chunks)
    assert found.statuses == [413 if over else 200] and found.closed


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", ""])
def test_a_compressed_body_is_refused(server: Served, coding: str) -> None:
    answer = send(server, b"{}", "/v1/completions", f"Content-Encoding: {coding}")
    assert answer.status == 415 and is_error(answer)
