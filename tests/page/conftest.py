"""The server's page in a browser that nobody sees: Debian's chromium, driven by Playwright."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from model_folders import with_files
from served import Served, served

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

    Open = Callable[..., "Page"]

CHROMIUM = shutil.which("chromium")
INSTALLED = all(importlib.util.find_spec(name) for name in ("playwright", "axe_playwright_python"))
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]

# Short: the model takes 160 tokens, and mostly bytes are tokens.
TEMPLATE = "{% for message in messages %}{{ message.content }}|{% endfor %}"
RECIPES = [
    {
        "name": "assistant",
        "title": "Assistant",
        "prompt": "Question: a b\nAnswer: c\n\nQuestion: {text}\nAnswer:",
        "stop": ["\nQuestion:"],
        "example": "Why?",
    }
]


@pytest.fixture(scope="session")
def site(tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of one model in two precisions, and of it with a chat template."""
    folder = tmp_path_factory.mktemp("models")
    int4 = export_model(tiny_folder, folder / "int4", precision_of("int4")).path
    talks = with_files(tiny_folder, folder / "talks", {"chat_template.jinja": TEMPLATE}).path
    paths = {"tiny": tiny_folder.path, "tiny-fp32": tiny_folder.path}
    paths |= {"tiny-int4": int4, "talks": talks}
    models = {name: partial(pocketlm.load, path, threads=1) for name, path in paths.items()}
    with served(models, RECIPES) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests; each has a profile of its own."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium; install Debian's package of that name")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Watched:
    """What a page did that it should not have.

    errors      what its console was told, and exceptions
    elsewhere   requests to anybody but the server
    refusals    whether the server is meant to refuse something, of which the console is told
    """

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.refusals = False

    def watch(self, page: Page) -> None:
        """From now on."""
        page.on("console", lambda told: self._hear(told.type, told.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._note)

    def _hear(self, kind: str, text: str) -> None:
        expected = self.refusals and text.startswith("Failed to load resource")
        if kind in ("error", "warning") and not expected:
            self.errors.append(text)

    def _note(self, request: Request) -> None:
        if not request.url.startswith((self._origin + "/", "data:")):
            self.elsewhere.append(request.url)


@pytest.fixture
def watched(site: Served) -> Watched:
    return Watched(site.url)


@pytest.fixture
def open_page(browser: Browser, site: Served, watched: Watched) -> Iterator[Open]:
    """Opens a view; afterwards nothing was asked of another origin, and no error was told."""
    contexts = []

    def opened(view: str = "write", width: int = 1280, height: int = 800, **options: Any) -> Page:
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, **options)  # type: ignore[arg-type]
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        watched.watch(page)
        page.goto(f"{site.url}/#{view}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert watched.elsewhere == []
    assert watched.errors == []
