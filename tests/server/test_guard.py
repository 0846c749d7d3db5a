"""Who may ask: by the Host and the page it comes from, by a key, and where a server may listen.

Figures b6 and b7 of the scorecard try every case; here each rule has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from raw_http import Answer, exchange, is_error, post, request
from served import Served, served

from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.server.connections.exposure import check_exposure
from pocketlm.runtime.server.connections.hosts import is_loopback
from pocketlm.runtime.server.connections.listening import bound
from pocketlm.runtime.server.settings import Settings

pytestmark = pytest.mark.serve

APP = "https://app.example"
KEY = "sk-open-sesame"


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    """With a key, a name of its own, and a page of elsewhere that may ask."""
    models = {"tiny": tiny_folder}
    with served(models, api_key=KEY, hosts=("lab.example",), origins=(APP,)) as running:
        yield running


def ask(
    server: Served,
    *lines: str,
    method: str = "GET",
    target: str = "/v1/models",
    host: str | None = None,
    key: str | None = KEY,
) -> Answer:
    """The answer to a request without a body."""
    told = [] if key is None else [f"Authorization: Bearer {key}"]
    name = f"127.0.0.1:{server.port}" if host is None else host
    (answer,) = exchange(
        server.port, request(method, target, [*told, *lines], host=name), answers=1
    ).answers
    return answer


def test_a_host_is_one_of_ours_with_our_port(server: Served) -> None:
    assert ask(server, host=f"LocalHost:{server.port}").status == 200
    assert ask(server, host="lab.example:1234").status == 200
    for host in (
        "evil.example",
        "localhost",
        f"0.0.0.0:{server.port}",
        f"localhost.:{server.port}",
    ):
        refused = ask(server, host=host)
        assert refused.status == 403 and is_error(refused)
        assert refused.json["error"]["code"] == "host_not_allowed"


def test_what_stands_for_all_addresses_is_no_host_even_of_a_server_that_listens_on_all(
    tiny_folder: ModelFolder,
) -> None:
    """A browser takes 0.0.0.0 for loopback, from any page."""
    models = {"tiny": tiny_folder}
    with served(models, host="0.0.0.0", api_key=KEY) as everywhere:
        assert ask(everywhere, host=f"127.0.0.1:{everywhere.port}").status == 200
        assert ask(everywhere, host=f"0.0.0.0:{everywhere.port}").status == 403


def test_pages_of_elsewhere_are_refused_before_a_key_is_looked_at(server: Served) -> None:
    for line in ("Origin: null", "Origin: http://evil.example", "Sec-Fetch-Site: cross-site"):
        refused = ask(server, line, key=None)
        assert refused.status == 403 and is_error(refused)
        assert refused.json["error"]["code"] == "origin_not_allowed"
        assert not refused.values("access-control-allow-origin")


def test_a_page_that_may_ask_reads_errors_too(server: Served) -> None:
    for key, status in ((KEY, 200), (None, 401)):
        answer = ask(server, f"Origin: {APP}", key=key)
        assert answer.status == status
        assert answer.values("access-control-allow-origin") == [APP]
        assert answer.values("vary") == ["Origin"]


def test_a_page_that_may_ask_may_ask_whether_it_may_without_the_key(server: Served) -> None:
    """Browsers send none with it. What OpenAI's client sends beside it may be sent."""
    lines = [f"Origin: {APP}", "Access-Control-Request-Method: POST"]
    answer = ask(server, *lines, method="OPTIONS", key=None)
    assert answer.status == 204 and not answer.body
    assert answer.values("access-control-allow-headers") == ["authorization, content-type, *"]
    refused = ask(server, lines[0], method="OPTIONS", target="/nothing", host="evil", key=None)
    assert refused.status == 403


@pytest.mark.parametrize("target", ["/health/", "//health", "/health%2f..%2fv1/models", "/nothing"])
def test_what_is_not_open_needs_the_key_even_where_nothing_is(server: Served, target: str) -> None:
    refused = ask(server, target=target, key=None)
    assert refused.status == 401 and is_error(refused)
    assert refused.values("www-authenticate") == ["Bearer"]
    assert ask(server, target=target).status == 404


def test_health_is_open_to_be_looked_at_alone(server: Served) -> None:
    assert ask(server, target="/health", key=None).status == 200
    assert ask(server, target="/health", key=None, method="POST").status == 401


@pytest.mark.parametrize(
    "told", [f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer ", f"Bearer {KEY}, Bearer {KEY}"]
)
def test_a_key_is_shown_whole_and_as_a_bearers(server: Served, told: str) -> None:
    assert ask(server, f"Authorization: {told}", key=None).status == 401


def test_what_is_posted_is_json_and_not_compressed(server: Served) -> None:
    key = f"Authorization: Bearer {KEY}"
    whole = post("/v1/completions", {"prompt": "a", "max_tokens": 1}, "lab.example", [key])
    assert exchange(server.port, whole, answers=1).statuses == [200]
    for other in (
        whole.replace(b"application/json", b"text/plain"),
        whole.replace(b"Content-Type", b"X-Type"),
        whole.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n", 1),
    ):
        assert exchange(server.port, other, answers=1).statuses == [415]


@pytest.mark.parametrize("status", [200, 401, 404, 405])
def test_every_answer_keeps_a_browser_within_bounds(server: Served, status: int) -> None:
    answer = ask(
        server,
        target={404: "/nothing"}.get(status, "/v1/models"),
        method="DELETE" if status == 405 else "GET",
        key=None if status == 401 else KEY,
    )
    assert answer.status == status
    assert answer.values("x-content-type-options") == ["nosniff"]
    assert answer.values("x-frame-options") == ["DENY"]
    assert answer.values("referrer-policy") == ["no-referrer"]
    assert answer.values("cross-origin-resource-policy") == ["same-origin"]
    assert answer.values("cache-control") == ["no-store"]
    assert not answer.values("server")


@pytest.mark.parametrize("given", ["a-1_b.2", "x" * 64])
def test_a_plain_request_id_is_taken_over(server: Served, given: str) -> None:
    assert ask(server, f"X-Request-ID: {given}").values("x-request-id") == [given]


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\x1bb", "ä"])
def test_any_other_request_id_is_ours(server: Served, given: str) -> None:
    (told,) = ask(server, f"X-Request-ID: {given}").values("x-request-id")
    assert len(told) == 32 and told.isalnum()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_exposure(Settings(host=host))


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "0", "10.0.0.1", "lab.example", "::ffff:0.0.0.0", "localhost.x"]
)
def test_what_others_can_connect_to_needs_one(host: str) -> None:
    with pytest.raises(RequestError, match="found no key, expected one wherever other machines"):
        bound(Settings(host=host, port=0))
    check_exposure(Settings(host=host, api_key=KEY))


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "schlüssel", "a\x00"])
def test_a_key_fits_in_a_header(key: str) -> None:
    with pytest.raises(RequestError, match="api_key: found none, or one with other characters"):
        check_exposure(Settings(api_key=key))


@pytest.mark.parametrize("host", ["*", "*.example", "http://lab", "lab/", "a@lab", "::1", ""])
def test_a_name_that_is_allowed_is_written_out(host: str) -> None:
    with pytest.raises(RequestError, match="hosts: found .*, expected a name or an address"):
        check_exposure(Settings(hosts=("lab.example:8080", host)))


@pytest.mark.parametrize("origin", ["*", "null", "app.example", f"{APP}/", "https://*.example"])
def test_an_origin_that_is_allowed_is_written_out(origin: str) -> None:
    settings = Settings(origins=(APP, "http://[::1]:3000", "tauri://localhost"))
    check_exposure(settings)
    with pytest.raises(RequestError, match="origins: found .*, expected the origin of a page"):
        check_exposure(replace(settings, origins=(origin,)))
