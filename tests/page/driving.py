"""What a person does on the page, and sees there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

    Open = Callable[..., Page]


def text_of(page: Page) -> str:
    """The document."""
    return page.input_value("#text")


def write(page: Page, prompt: str | None = None, tokens: int = 12) -> str:
    """Has the model go on, and waits for its end; the text."""
    if prompt is not None:
        page.fill("#text", prompt)
    choose(page, max_tokens=tokens, seed=1)
    page.click("#go")
    ended(page, "#go")
    return text_of(page)


def choose(page: Page, **settings: Any) -> None:
    """Turns knobs, wherever they are."""
    script = """async (chosen) => {
        const { settings } = await import('/page/settings.js');
        for (const [name, value] of Object.entries(chosen)) settings.set(name, value);
    }"""
    page.evaluate(script, settings)


def ended(page: Page, button: str) -> None:
    """What that button began is over."""
    page.wait_for_selector(f"{button}:visible")
    page.wait_for_selector("button.stop:visible", state="detached")


def body_of(request: Request) -> dict[str, Any]:
    """What it asks."""
    body: dict[str, Any] = request.post_data_json or {}
    return body
