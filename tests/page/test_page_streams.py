"""While text arrives: what is followed, what is stopped, and what comes too late or in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from driving import arrive, ended, happens, held, text_of, write

if TYPE_CHECKING:
    from conftest import Watched
    from driving import Open
    from playwright.sync_api import Page

pytestmark = pytest.mark.page

LINE = "a line of it\n"


def seen(page: Page, selector: str) -> bool:
    """Whether the end of the last of those is in the window, above the buttons."""
    script = """(selector) => {
        const last = [...document.querySelectorAll(selector)].at(-1).getBoundingClientRect();
        return last.bottom <= document.querySelector('#stop').getBoundingClientRect().top;
    }"""
    return bool(page.evaluate(script, selector))


def test_the_end_of_the_text_is_followed_unless_the_reader_scrolled_up(open_page: Open) -> None:
    page = open_page(height=500)
    held(page)
    page.click("#go")
    for _ in range(4):
        arrive(page, LINE * 8)
        assert seen(page, "#document .token")
    assert page.evaluate("scrollY") > 0
    page.evaluate("scrollTo(0, 0)")
    arrive(page, LINE * 8)
    assert page.evaluate("scrollY") == 0
    assert page.locator("#stop").bounding_box()["y"] < 500  # type: ignore[index]


def test_a_conversation_is_followed_unless_the_reader_scrolled_up(open_page: Open) -> None:
    page = open_page("chat", height=600)
    held(page)
    page.fill("#said", "Hello")
    page.click("#send")
    below = "(e) => e.scrollHeight - e.clientHeight - e.scrollTop"
    for _ in range(3):
        arrive(page, LINE * 12)
        assert page.locator("#talk").evaluate(below) < 2
    page.locator("#talk").evaluate("(e) => { e.scrollTop = 0; }")
    arrive(page, LINE * 12)
    page.click("#chat-stop")
    ended(page, "#send")
    assert page.locator("#talk").evaluate("(e) => e.scrollTop") == 0


def test_what_is_selected_stays_selected(open_page: Open) -> None:
    page = open_page()
    held(page)
    page.fill("#text", "once there was")
    page.click("#go")
    arrive(page, " one")
    page.eval_on_selector("#text", "(area) => area.setSelectionRange(0, 4)")
    arrive(page, " more")
    place = "(area) => [area.selectionStart, area.selectionEnd]"
    assert page.eval_on_selector("#text", place) == [0, 4]


def test_what_was_stopped_says_so_also_where_a_frame_was_due(open_page: Open) -> None:
    page = open_page()
    held(page)
    page.click("#go")
    arrive(page, " one")
    # A piece is there and the next frame would draw it, when it is stopped.
    page.evaluate(
        """async () => {
            const token = { id: 5, text: ' two', logprob: -1 };
            const choice = { text: ' two', tokens: [token], finish_reason: null };
            const event = `data: ${JSON.stringify({ choices: [choice] })}\\n\\n`;
            await new Promise(requestAnimationFrame);
            window.streams[0].enqueue(new TextEncoder().encode(event));
            for (let turn = 0; turn < 200; turn += 1) await null;
            document.querySelector('#stop').click();
        }"""
    )
    ended(page, "#go")
    page.wait_for_timeout(50)
    assert "stopped" in page.inner_text("#figures")


def test_nothing_is_typed_into_a_text_that_begins(open_page: Open) -> None:
    page = open_page()
    page.wait_for_selector("#next tbody tr")
    page.evaluate(
        """const real = window.fetch;
        window.fetch = async (...asked) => {
          await new Promise((resolve) => setTimeout(resolve, 300));
          return real(...asked);
        }; true;"""
    )
    page.fill("#text", "once")
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    assert not page.is_editable("#text")
    page.keyboard.press("Escape")
    ended(page, "#go")
    assert page.is_editable("#text")
    assert text_of(page) == "once"


def test_another_answer_takes_the_place_of_one_that_has_not_begun(open_page: Open) -> None:
    page = open_page("chat")
    held(page)
    page.fill("#said", "Hello")
    page.click("#send")
    happens(page, "window.streams.length === 1")
    page.click("#chat-again")
    happens(page, "window.streams.length === 2")
    arrive(page, "Good day")
    assert page.locator(".message.assistant .content").inner_text() == "Good day"
    page.click("#chat-stop")
    ended(page, "#send")
    assert page.locator(".message .content").all_inner_texts() == ["Hello", "Good day"]


def test_a_message_that_is_refused_is_given_back(open_page: Open, watched: Watched) -> None:
    watched.refusals = True
    page = open_page("chat")
    page.fill("#said", "a b " * 300)
    page.click("#send")
    page.locator("#trouble").get_by_text("write less, or begin a new one").wait_for()
    ended(page, "#send")
    assert page.locator(".message").count() == 0
    assert page.input_value("#said") == ("a b " * 300).strip()
    page.fill("#said", "a")
    held(page)
    page.click("#send")
    happens(page, "window.streams.length === 1")
    page.click("#chat-stop")  # on purpose: what was said stays
    ended(page, "#send")
    assert page.locator(".message .content").all_inner_texts() == ["a"]


@pytest.mark.parametrize("how", ["stop", "error"])
def test_an_answer_stays_where_none_takes_its_place(
    open_page: Open, watched: Watched, how: str
) -> None:
    page = open_page("chat")
    held(page)
    page.fill("#said", "Hello")
    page.click("#send")
    arrive(page, "Good day")
    page.click("#chat-stop")
    ended(page, "#send")
    page.click("#chat-again")
    happens(page, "window.streams.length === 2")
    if how == "stop":
        page.click("#chat-stop")
    else:
        page.evaluate("window.streams.at(-1).error(new TypeError('network error'))")
    ended(page, "#send")
    assert page.locator(".message .content").all_inner_texts() == ["Hello", "Good day"]
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator(".message .content").all_inner_texts() == ["Hello", "Good day"]


@pytest.mark.parametrize("how", ["error(new TypeError('network error'))", "close()"])
def test_an_answer_that_breaks_off_is_told_and_kept(
    open_page: Open, watched: Watched, how: str
) -> None:
    page = open_page()
    held(page)
    page.fill("#text", "once")
    page.click("#go")
    arrive(page, " upon")
    page.evaluate(f"window.streams.at(-1).{how}")
    page.get_by_text("The server ended its answer too early").wait_for()
    ended(page, "#go")
    assert text_of(page) == "once upon"
    assert page.is_editable("#text")


def test_where_one_of_two_fails_the_other_is_stopped(open_page: Open, watched: Watched) -> None:
    page = open_page("compare")
    held(page)
    page.click("#compare-go")
    happens(page, "window.streams.length === 2")
    page.evaluate("window.streams[0].error(new TypeError('network error'))")
    ended(page, "#compare-go")
    happens(page, "window.stopped.length > 0")
    assert page.is_visible("#trouble")


def test_enter_that_ends_a_composition_begins_nothing(open_page: Open) -> None:
    page = open_page("compare")
    held(page)
    press = """(area) => area.dispatchEvent(
        new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true }))"""
    page.eval_on_selector("#compare-prompt", press)
    assert page.is_visible("#compare-go")


def test_the_focus_waits_for_the_rest_of_a_character(open_page: Open) -> None:
    page = open_page()
    held(page)
    page.fill("#text", "a")
    page.click("#go")
    arrive(page, "b", others=["�"])
    page.locator("#document .token").focus()
    page.keyboard.press("Enter")
    page.locator(".alternatives li button:not([aria-current])").press("Enter")
    happens(page, "window.streams.length === 2")
    arrive(page, "é")
    assert text_of(page) == "aé"
    assert page.evaluate("document.activeElement.textContent") == "é"


def test_alternatives_close_where_their_word_is_gone(open_page: Open) -> None:
    page = open_page()
    write(page, "a bc", tokens=8)
    token = page.locator("#document .token .ink").nth(2)
    box = token.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".alternatives")
    page.keyboard.press("Control+z")
    assert page.locator(".alternatives").count() == 0
    assert text_of(page) == "a bc"


@pytest.mark.parametrize("size", [(1280, 800), (640, 400), (390, 700)])
def test_alternatives_open_in_the_window_beside_their_word(
    open_page: Open, size: tuple[int, int]
) -> None:
    width, height = size
    page = open_page(width=width, height=height, reduced_motion="reduce")
    held(page)
    page.fill("#text", "")
    page.click("#go")
    # Every word brings the space before it, which ends a line where the word begins one.
    for _ in range(30):
        arrive(page, " wonderful")
    script = """() => [...document.querySelectorAll('.token')].findIndex((token) => {
        const [space, word] = token.getClientRects();
        return word && word.top > space.top + 8;
    })"""
    place = page.evaluate(script)
    assert place > 0
    page.locator("#document .token").nth(place).focus()
    page.keyboard.press("Enter")
    popup = page.locator(".alternatives").bounding_box()
    word = page.locator("#document .token").nth(place).locator(".ink").bounding_box()
    assert popup is not None and word is not None
    assert popup["y"] >= 0 and popup["y"] + popup["height"] <= height
    assert popup["x"] >= 0 and popup["x"] + popup["width"] <= width
    if width > 640:
        assert abs(popup["x"] - word["x"]) < 20


def test_the_note_of_the_chat_is_that_of_the_model_last_chosen(open_page: Open) -> None:
    page = open_page("chat")
    page.locator("#chat-note").wait_for()
    page.evaluate(
        """const real = window.fetch;
        window.fetch = async (path, ...more) => {
          if (String(path).endsWith("tiny-int4")) await new Promise((r) => setTimeout(r, 300));
          window.late = String(path).endsWith("tiny-int4");
          return real(path, ...more);
        }; true;"""
    )
    page.select_option("#model", "tiny-int4")
    page.select_option("#model", "tiny-fp32")
    page.get_by_text("tiny-fp32 is a base model").wait_for()
    happens(page, "window.late")
    page.wait_for_timeout(50)
    assert page.locator("#chat-note").inner_text().startswith("tiny-fp32 ")
