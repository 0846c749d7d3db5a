"""The pages of docs/ say what is so, and become a site that needs no network."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from source_tree import ROOT, sources

import pocketlm
from pocketlm.cli import VERBS

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# A file of the tree, and what it defines, as docs/adding.md writes them.
NAMED = re.compile(
    r"`((?:export|quantize|runtime|benchmarks|src|tests|examples)/[\w./-]*)(::\w+)?`"
)


@cache
def texts_of_the_code() -> tuple[str, ...]:
    """Every text that the code may say, with … where a value stands in it."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def messages() -> list[str]:
    """What docs/faq.md quotes, a line each."""
    blocks = re.findall(r"```text\n(.*?)```", (DOCS / "faq.md").read_text("utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("message", messages(), ids=lambda message: message[:40])
def test_messages_are_those_of_the_code(message: str) -> None:
    """Piece by piece, since the code puts some together of what was found and what is expected."""
    for piece in re.split(r"[…()]|(?:[,;:]| -)(?: |$)", message):
        words = piece.strip().removeprefix("found ").removeprefix("expected ")
        assert any(words in text for text in texts_of_the_code()), words


def test_the_likeliest_messages_are_there() -> None:
    assert len(messages()) >= 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_what_they_define_are_there(page: Path) -> None:
    for name, definition in NAMED.findall(page.read_text("utf-8")):
        assert (ROOT / name).exists(), name
        if definition:
            assert definition[2:] in defined_in(ROOT / name), name + definition


def defined_in(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_files_in_the_picture_are_there() -> None:
    picture = (DOCS / "architecture.svg").read_text("utf-8")
    names = re.findall(r'class="f">([^<]+)<', picture)
    assert len(names) > 30
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_adding_names_enough_to_begin_with() -> None:
    text = (DOCS / "adding.md").read_text("utf-8")
    assert len({name for name in NAMED.findall(text) if name[1]}) > 15


@pytest.mark.parametrize("number", range(3))
def test_python_for_an_app_works(number: int, tmp_path: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", (DOCS / "app.md").read_text("utf-8"), re.DOTALL)
    assert len(programs) == 3
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", programs[number]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert len(done.stdout.split()) > 4  # of 20 tokens, whichever they are


@pytest.mark.plugins
def test_python_for_langchain_works(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("langchain_core")
    (program,) = re.findall(
        r"```python\n(.*?)```", (DOCS / "plugins.md").read_text("utf-8"), re.DOTALL
    )
    exec(program, {})
    assert len(capsys.readouterr().out.split()) > 20


# The site -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mkdocs builds: strictly, so that a link, an anchor or a page that is not there fails."""
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    words = ["build", "--strict", "-q", "-f", str(DOCS / "site" / "mkdocs.yml"), "-d", str(out)]
    done = subprocess.run([sys.executable, "-m", "mkdocs", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return out


@pytest.mark.site
def test_every_page_is_in_the_site_and_fetches_nothing(site: Path) -> None:
    built = {page.stem for page in site.glob("*.html")}
    assert built >= {page.stem for page in PAGES}
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="([^"]*)"', text)
        fetched += re.findall(r'<link [^>]*href="([^"]*)"', text)
        outside = [url for url in fetched if re.match(r"(?:\w+:)?//", url)]
        assert outside == [], (page.name, outside)
        if page.name != "404.html":  # whose links are those of a server
            paths = [page.parent / re.split(r"[?#]", url)[0] for url in fetched]
            assert [path for path in paths if not path.exists()] == []
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text("utf-8")) == []


@pytest.mark.site
def test_python_and_commands_are_described_whole(site: Path) -> None:
    api = (site / "api.html").read_text("utf-8")
    names = [name for name in pocketlm.__all__ if name != "__version__"]
    methods = {name: value for name, value in vars(pocketlm.Model).items() if name[0] != "_"}
    names += [f"Model.{name}" for name in methods]
    assert [name for name in names if f'id="{name.lower().replace(".", "")}"' not in api] == []
    commands = (site / "commands.html").read_text("utf-8")
    assert [verb for verb in VERBS if f"Usage: pocketlm {verb}" not in commands] == []


@pytest.mark.site
def test_the_search_knows_every_page(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text("utf-8")
    assert index.startswith("var __index = ")
    assert [page.stem for page in PAGES if f'"location":"{page.stem}.html' not in index] == []
