"""The page for everybody: by keyboard alone, narrow, dark, and as axe-core finds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from driving import arrive, ended, held, text_of, write

if TYPE_CHECKING:
    from conftest import Watched
    from driving import Open
    from playwright.sync_api import Page

pytestmark = pytest.mark.page

VIEWS = ["write", "compare", "chat", "recite"]
BUTTONS = {"write": "#go", "compare": "#compare-go", "chat": "#send", "recite": "#recite-go"}


def filled(page: Page, view: str) -> None:
    """With something in it: a text, two, a conversation, a passage; and all that opens, open."""
    page.wait_for_selector("#next tbody tr", state="attached")
    if view == "chat":
        page.fill("#said", "Hello")
    if view == "recite":
        page.fill("#passage", "the quick brown fox jumps over the lazy dog")
    page.click(BUTTONS[view])
    ended(page, BUTTONS[view])
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    if view == "write":
        page.locator("#document .token").nth(3).focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".alternatives")


def serious_faults(page: Page) -> list[str]:
    """As axe-core finds them, with where they are."""
    return [
        f"{fault['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:300]}"
        for fault in Axe().run(page).response["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_no_serious_fault(open_page: Open, view: str) -> None:
    page = open_page(view, color_scheme="light", reduced_motion="reduce")
    filled(page, view)
    assert serious_faults(page) == []
    page.emulate_media(color_scheme="dark")
    assert serious_faults(page) == []


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_window_has_nothing_to_scroll_sideways(open_page: Open, view: str) -> None:
    page = open_page(view, width=390, height=700)
    filled(page, view)
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        beyond = page.evaluate(
            """() => [...document.querySelectorAll('button, input, select, textarea, .card')]
                .filter((one) => one.checkVisibility())
                .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
                .map((one) => one.id || one.className || one.textContent)"""
        )
        assert beyond == []


def test_names_that_are_read_aloud_are_words(open_page: Open) -> None:
    page = open_page()
    held(page)
    page.click("#go")
    for text in (" word", "ed", ".", "\n", '."', "\ufffd", " ", "\x01"):
        arrive(page, text, others=[" a", "\n", "…"])
    page.click("#stop")
    ended(page, "#go")
    names = "(all) => all.map((one) => one.getAttribute('aria-label'))"
    told = page.locator("#document .token").evaluate_all(names)
    assert [name.rpartition(",")[0] for name in told] == [
        *("word", "ed, joined", "full stop", "new line"),
        *("full stop, quotation mark", "part of a character", "space"),
        "control character",
    ]
    page.locator("#document .token").nth(3).focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Instead of new line").wait_for()
    page.wait_for_selector("#next tbody tr")
    assert page.locator("#next tbody th[aria-label]").count() > 5
    every = page.evaluate(
        """() => [...document.querySelectorAll('[aria-label]')]
            .map((one) => one.getAttribute('aria-label')).join('')"""
    )
    assert not set(every) & set("␣⏎⇥∅×\ufffd")


@pytest.mark.parametrize("text", ["שלום עולם", "مرحبا بالعالم"])
def test_what_runs_from_right_to_left_does(open_page: Open, text: str) -> None:
    page = open_page()
    held(page)
    page.fill("#text", f"{text}\none")
    page.click("#go")
    arrive(page, f"\n{text}")
    lefts = """() => [...document.querySelector('.tokens').children].map((part) => {
        const range = document.createRange();
        range.selectNodeContents(part);
        return [...range.getClientRects()].map((one) => one.left);
    })"""
    typed, own = page.evaluate(lefts)
    assert max(typed) > min(typed) + 200  # "one" is at the left
    assert max(own) > min(typed) + 200


PROSE = "It was a dark and stormy night; the rain fell in torrents, except at intervals.\n\n" * 4


@pytest.mark.parametrize("width", [1280, 700, 390, 320])
def test_the_tints_lie_beneath_their_words(open_page: Open, watched: Watched, width: int) -> None:
    watched.refusals = True  # the text is longer than the context
    page = open_page(width=width)
    write(page, "a bc", tokens=40)
    page.focus("#text")
    page.keyboard.press("Control+End")
    page.keyboard.insert_text(f"\n{PROSE} {PROSE.replace(chr(10), ' ')}\tx\n")
    heights = page.evaluate(
        """() => {
            const area = document.querySelector('#text');
            area.style.height = '0';  // to measure what its own lines take
            const own = area.scrollHeight;
            area.style.height = '';
            return [own, document.querySelector('.tokens').getBoundingClientRect().height];
        }"""
    )
    assert abs(heights[0] - heights[1]) < 2


def test_the_dark_scheme_is_dark(open_page: Open) -> None:
    page = open_page()

    def luminance(scheme: str) -> float:
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.strip("rgb()").split(",")) / 3

    assert luminance("dark") < 60 < 200 < luminance("light")


def test_forced_colours_leave_what_only_a_ground_tells(open_page: Open) -> None:
    page = open_page(forced_colors="active", color_scheme="dark")
    write(page, "a bc", tokens=8)
    page.wait_for_selector("#next tbody tr")
    grounds = """(selector) => [...document.querySelectorAll(selector)]
        .map((e) => getComputedStyle(e).backgroundColor)"""
    assert len(set(page.evaluate(grounds, ".sample"))) == 5
    assert len(set(page.evaluate(grounds, ".ink"))) > 1
    assert len(set(page.evaluate(grounds, "#next .bar"))) == 2


def test_everything_is_done_by_keyboard(open_page: Open) -> None:
    page = open_page("")
    page.wait_for_selector("#next tbody tr")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("Control+a")
    page.keyboard.type("a bc")
    page.keyboard.press("Control+Enter")
    ended(page, "#go")
    before = text_of(page)
    page.keyboard.press("Tab")  # to the words: one stop, and arrows from there
    assert page.evaluate("document.activeElement.className").startswith("token")
    assert page.locator("#document .token[tabindex='0']").count() == 1
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    place = "[...document.querySelectorAll('.token')].indexOf(document.activeElement)"
    assert page.evaluate(place) == 2
    assert "%" in page.locator(".tip").inner_text()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Instead of")
    dialog.wait_for()
    page.keyboard.press("Escape")
    assert dialog.count() == 0
    assert page.evaluate("document.activeElement.className").startswith("token")
    page.keyboard.press("Enter")
    row = (
        "[...document.querySelectorAll('.alternatives li button')].indexOf(document.activeElement)"
    )
    rows = page.locator(".alternatives li button").count()
    for key, at in {"Home": 0, "End": rows - 1, "ArrowUp": rows - 2}.items():
        page.keyboard.press(key)
        assert page.evaluate(row) == at
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")  # goes around
    assert page.evaluate(row) == rows - 1
    current = "document.activeElement.hasAttribute('aria-current')"
    page.keyboard.press("ArrowDown")
    if page.evaluate(current):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    ended(page, "#go")
    assert text_of(page) != before
    assert page.evaluate(place) == 2
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("Control+z")
    assert text_of(page) == before
    page.keyboard.press("Control+Shift+z")
    assert text_of(page) != before
    page.focus("#tab-write")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#view-compare:visible")
    assert page.evaluate("document.activeElement.id") == "tab-compare"


def test_tab_passes_the_views_with_one_stop(open_page: Open) -> None:
    page = open_page("")
    page.focus(".skip")
    stops = []
    for _ in range(3):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id"))
    assert stops[:2] == ["tab-write", "model"]
    assert page.is_visible("#view-write")


def test_focus_is_seen(open_page: Open) -> None:
    page = open_page()
    write(page, "a bc", tokens=4)
    for _ in range(25):
        page.keyboard.press("Tab")
        style = page.evaluate(
            """() => {
                const one = document.activeElement;
                const seen = one.querySelector?.('.ink') ?? one;
                const { outlineStyle, outlineWidth } = getComputedStyle(seen);
                const sheet = one.closest('.sheet');
                return [one.tagName, outlineStyle, sheet && getComputedStyle(sheet).boxShadow];
            }"""
        )
        at_the_end = style[0] == "BODY"
        assert (
            style[1] != "none" or at_the_end or (style[0] == "TEXTAREA" and style[2] != "none")
        ), style


def test_the_policy_holds(open_page: Open, watched: Watched) -> None:
    page = open_page()
    refused = page.evaluate(
        """async () => {
            const told = [];
            addEventListener('securitypolicyviolation', (event) => {
                told.push(event.effectiveDirective);
            });
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.body.append(script);
            const styled = document.createElement('p');
            styled.setAttribute('style', 'color: red');
            const image = new Image();
            image.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACw=';
            await new Promise((resolve) => setTimeout(resolve, 50));
            return [window.ran ?? false, told];
        }"""
    )
    watched.errors.clear()  # of these, the console was told
    assert refused[0] is False
    assert {"script-src-elem", "style-src-attr", "img-src"} <= set(refused[1])
