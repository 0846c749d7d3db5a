"""What a person does on the page, and sees there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


# Generated text that comes when `arrive` says so. What was stopped on purpose is in `stopped`.
HELD = """
const real = window.fetch;
window.streams = [];
window.stopped = [];
window.fetch = async (path, options) => {
  if (!String(path).endsWith("completions")) return real(path, options);
  const body = new ReadableStream({
    start(controller) {
      window.streams.push(controller);
      options.signal.addEventListener("abort", () => {
        window.stopped.push(path);
        controller.error(options.signal.reason);
      });
    },
  });
  return new Response(body);
};
true;  // else it would be called
"""

ARRIVE = """async ([text, others]) => {
    const top = [text, ...others].map((text, i) => ({ id: 5 + i, text, logprob: -1 - i }));
    const tokens = [{ ...top[0], top }];
    const choice = { text, delta: { content: text }, tokens, finish_reason: null };
    const event = `data: ${JSON.stringify({ choices: [choice] })}\\n\\n`;
    window.streams.at(-1).enqueue(new TextEncoder().encode(event));
    for (let frame = 0; frame < 3; frame += 1) await new Promise(requestAnimationFrame);
}"""


def held(page: Page) -> None:
    """From now on what is generated comes by `arrive` only."""
    page.evaluate(HELD)


def arrive(page: Page, text: str, others: Sequence[str] = ()) -> None:
    """That token comes, which others might have been, and is drawn."""
    happens(page, "window.streams.length > 0")
    page.evaluate(ARRIVE, [text, list(others)])


def happens(page: Page, what: str) -> None:
    """Waits for it. The page's policy is against Playwright's own way, which evaluates a text."""
    page.evaluate(f"async () => {{ while (!({what})) await new Promise(requestAnimationFrame); }}")
