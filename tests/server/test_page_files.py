"""The page's files: what their headers say, and that nothing else is served beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from served import Served, served
from source_tree import ROOT

from pocketlm.runtime.model import Model

pytestmark = pytest.mark.serve

FOLDER = ROOT / "runtime" / "server" / "page"
FILES = sorted(path.name for path in FOLDER.iterdir())
RECIPES = [
    {"name": "a", "title": "A", "prompt": "{text}", "stop": ["\n"], "example": "b"},
]


def never() -> Model:
    raise AssertionError("no model is asked for")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served({"tiny": never}, RECIPES, api_key="key") as running:
        yield running


def path_of(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_served_as_it_is_to_whom_has_no_key(server: Served, name: str) -> None:
    answer, data = server.send("GET", path_of(name))
    assert answer.status == 200
    assert data == (FOLDER / name).read_bytes()
    kinds = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
    kind = kinds.get(Path(name).suffix, "image/svg+xml")
    assert (answer.getheader("content-type") or "").startswith(kind)
    policy = answer.getheader("content-security-policy") or ""
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.getheader("x-content-type-options") == "nosniff"


def test_what_is_known_is_not_sent_again(server: Served) -> None:
    etag = server.send("GET", "/page/app.js")[0].getheader("etag") or ""
    for told in (etag, f'"other", {etag}', f"W/{etag}"):
        answer, data = server.send("GET", "/page/app.js", **{"If-None-Match": told})
        assert (answer.status, data) == (304, b"")
        assert answer.getheader("etag") == etag
    answer, data = server.send("GET", "/page/app.js", **{"If-None-Match": '"other"'})
    assert answer.status == 200 and data
    assert server.send("GET", "/page/api.js")[0].getheader("etag") != etag


def test_a_part_of_a_file_is_not_to_be_had(server: Served) -> None:
    answer, data = server.send("GET", "/page/app.js", Range="bytes=0-3")
    assert (answer.status, len(data)) == (200, (FOLDER / "app.js").stat().st_size)
    answer, data = server.send("HEAD", "/page/app.js")
    assert (answer.status, data) == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        *("/page/", "/page", "/page/none.js", "/page/index.html", "/page/../app.py"),
        *("/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page//app.js", "/page/app.js/"),
        *("/page/app.js%00", "/index.html", "//", "/page/APP.JS", "/favicon.ico"),
    ],
)
def test_no_path_leads_anywhere_else(server: Served, path: str) -> None:
    answer, data = server.send("GET", path, Authorization="Bearer key")
    assert answer.status == 404
    assert "error" in json.loads(data)


def references(text: str) -> Sequence[str]:
    """What a file of the page asks for: imports, links, scripts, images."""
    return re.findall(r"""(?:from |import\(|href=|src=|url\()["']([^"'#]+)""", text)


@pytest.mark.parametrize("name", FILES)
def test_a_file_refers_to_files_of_the_page_only(name: str) -> None:
    text = (FOLDER / name).read_text("utf-8")
    for found in references(text):
        assert re.sub(r"^(\./|page/)", "", found) in FILES, found
    outside = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}  # SVG's namespace
    assert outside == set()
    # The policy refuses these; and text of a model is never to be parsed.
    assert not re.search(r"\son\w+=|style=|innerHTML|insertAdjacentHTML|eval\(", text)


def test_recipes_are_told_to_whom_has_the_key(server: Served) -> None:
    assert server.send("GET", "/recipes")[0].status == 401
    answer, data = server.send("GET", "/recipes", Authorization="Bearer key")
    assert (answer.status, json.loads(data)["data"]) == (200, RECIPES)
