"""Write and watch: streaming, stopping, other words, undoing, knobs, recipes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from driving import arrive, body_of, ended, held, text_of, write
from served import Served

if TYPE_CHECKING:
    from conftest import Watched
    from driving import Open
    from playwright.sync_api import Page

pytestmark = pytest.mark.page


def words(page: Page) -> list[str]:
    """Those of the model."""
    return page.locator("#document .token").all_text_contents()


def turn(page: Page, knob: str, value: float) -> None:
    """A slider, as by hand."""
    slider = page.locator("#view-write").get_by_label(knob, exact=True)
    slider.evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)


def next_rows(page: Page) -> list[str]:
    return page.locator("#next tbody tr").all_inner_texts()


def test_the_first_screen_goes_on_at_one_click(open_page: Open) -> None:
    page = open_page()
    prompt = text_of(page)
    assert prompt == "It was a dark and stormy night"
    page.click("#go")
    ended(page, "#go")
    written = text_of(page)
    assert written.startswith(prompt) and len(written) > len(prompt) + 40
    assert "120 tokens" in page.inner_text("#figures")
    assert "of 160" in page.inner_text("#context-told")
    # What is seen is what is in the field: a span for every part.
    assert page.locator("#document .tokens").text_content() == written


def test_words_are_tinted_by_their_probability(open_page: Open, site: Served) -> None:
    page = open_page()
    write(page, "a bc", tokens=8)
    asked = {"prompt": "a bc", "max_tokens": 8, "seed": 1, "logprobs": 0, "details": True}
    tokens = site.post("/v1/completions", asked)[1]["choices"][0]["tokens"]
    script = """async (logprobs) => {
        const { tintOf } = await import('/page/tint.js');
        return logprobs.map((logprob) => tintOf(Math.exp(logprob)));
    }"""
    expected = page.evaluate(script, [token["logprob"] for token in tokens])
    inks = page.locator("#document .ink")
    assert inks.count() == len(tokens)
    for place, tint in enumerate(expected):
        assert tint in (inks.nth(place).get_attribute("class") or "").split()
    assert len({tint for tint in expected}) > 1


def test_stop_keeps_what_was_written(open_page: Open) -> None:
    page = open_page()
    held(page)
    page.click("#go")
    arrive(page, " and so")
    assert not page.is_editable("#text")
    page.click("#stop")
    ended(page, "#go")
    assert "stopped" in page.inner_text("#figures")
    assert page.is_editable("#text")
    assert text_of(page) == "It was a dark and stormy night and so"
    assert words(page) == [" and so"]


def test_escape_stops_too(open_page: Open) -> None:
    page = open_page()
    held(page)
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    arrive(page, " and so")
    page.keyboard.press("Escape")
    ended(page, "#go")
    assert "stopped" in page.inner_text("#figures")


def test_another_word_takes_the_place_of_one_and_the_text_goes_on(open_page: Open) -> None:
    page = open_page()
    before = write(page, "a bc", tokens=12)
    told = words(page)
    chosen = page.locator("#document .token").nth(2)
    box = chosen.locator(".ink").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    dialog = page.get_by_role("dialog", name="Instead of")
    rows = dialog.locator("li button")
    assert rows.count() in (10, 11)
    assert dialog.locator("[aria-current]").count() == 1
    others = rows.and_(page.locator(":not([aria-current])"))
    names = others.locator(".name").all_inner_texts()
    place = next(i for i, name in enumerate(names) if re.fullmatch(r"[!-~]+", name))
    with page.expect_request("**/v1/completions") as sent:
        others.nth(place).click()
    ended(page, "#go")
    assert dialog.count() == 0
    after = words(page)
    assert after[:2] == told[:2] and after[2] == names[place] != told[2]
    assert len(after) > 3
    prompt = body_of(sent.value)["prompt"]
    assert all(isinstance(token, int) for token in prompt)
    page.click("#undo")
    assert text_of(page) == before
    assert words(page) == told


def test_going_on_sends_the_tokens_and_not_their_text(open_page: Open, site: Served) -> None:
    page = open_page()
    write(page, "a bc", tokens=4)
    with page.expect_request("**/v1/completions") as sent:
        page.click("#go")
    ended(page, "#go")
    given = site.post("/tokenize", {"prompt": "a bc"})[1]["count"]
    assert len(body_of(sent.value)["prompt"]) == given + 4


def test_what_is_typed_leaves_the_words_before_it_the_models(open_page: Open) -> None:
    page = open_page()
    written = write(page, "a bc", tokens=8)
    count = len(words(page))
    page.focus("#text")
    page.keyboard.press("Control+End")
    page.keyboard.type(" and so")
    assert text_of(page) == written + " and so"
    assert len(words(page)) == count
    page.fill("#text", "a bX" + written[4:])
    assert words(page) == []
    page.keyboard.press("Control+z")
    assert len(words(page)) == count


def test_knobs_change_the_distribution_that_is_drawn(open_page: Open) -> None:
    page = open_page()
    assert page.get_by_label("Tokens at most").first.is_visible()
    page.wait_for_selector("#next tbody tr")
    assert len(next_rows(page)) == 11
    turn(page, "Top-k", 3)
    page.wait_for_selector("#next caption:has-text('3 of 300 tokens can be drawn')")
    assert page.locator("#next .is-cut").count() == 8  # seven, and all others
    assert page.locator("#next s").count() == 8
    page.click("#view-write button:has-text('As the model has it')")
    page.wait_for_selector("#next .is-cut", state="detached")


def test_what_comes_next_is_drawn_anew_after_a_text(open_page: Open, site: Served) -> None:
    page = open_page()
    page.wait_for_selector("#next tbody tr")
    with page.expect_response(
        lambda answer: body_of(answer.request).get("generated") == 5
    ) as drawn:
        write(page, "a bc", tokens=5)
    asked = body_of(drawn.value.request)
    expected = site.post("/next", asked)[1]["tokens"][0]["probability"]
    page.wait_for_selector(f"#next tbody tr:first-of-type:has-text('{100 * expected:.1f} %')")


def test_a_recipe_is_ready_to_go_with_its_stop_strings(open_page: Open) -> None:
    page = open_page()
    page.click("#recipes button:has-text('Assistant')")
    assert text_of(page).endswith("Question: Why?\nAnswer:")
    selected = page.eval_on_selector(
        "#text", "(area) => area.value.slice(area.selectionStart, area.selectionEnd)"
    )
    assert selected == "Why?"
    with page.expect_request("**/v1/completions") as sent:
        page.click("#go")
    ended(page, "#go")
    assert body_of(sent.value)["stop"] == ["\nQuestion:"]


def test_the_servers_refusal_is_told_in_a_line(open_page: Open, watched: Watched) -> None:
    watched.refusals = True
    page = open_page()
    page.fill("#text", "a b " * 300)
    page.click("#go")
    line = page.locator("#trouble")
    line.wait_for()
    assert "(the context length); shorten it" in line.inner_text()
    page.fill("#text", "a")
    write(page, tokens=3)
    assert not line.is_visible()


def test_what_was_undone_is_done_again_until_something_else_is(open_page: Open) -> None:
    page = open_page()
    texts = [text_of(page)]
    assert page.is_disabled("#undo") and page.is_disabled("#redo")
    texts.append(write(page, "a bc", tokens=4))
    told = words(page)
    texts.insert(1, "a bc")
    for text in reversed(texts[:-1]):
        page.click("#undo")
        assert text_of(page) == text
    assert page.is_disabled("#undo")
    assert page.evaluate("document.activeElement.id") == "redo"  # where a key does something
    for text in texts[1:]:
        page.click("#redo")
        assert text_of(page) == text
    assert words(page) == told
    assert page.is_disabled("#redo")
    page.focus("#text")
    for keys in ("Control+z", "Control+y", "Control+z", "Control+Shift+z"):
        page.keyboard.press(keys)
        assert text_of(page) == texts[-2 if keys == "Control+z" else -1]
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+End")
    page.keyboard.type("d")
    assert page.is_disabled("#redo")
    page.keyboard.press("Control+Shift+z")
    assert text_of(page) == "a bcd"


def test_the_text_is_undone_wherever_the_focus_is_but_in_a_field(open_page: Open) -> None:
    page = open_page()
    written = write(page, "a bc", tokens=4)
    for focused in ("#go", "#undo", "#clear", "#knobs-of-write input[type=range]"):
        page.locator(focused).first.focus()
        page.keyboard.press("Control+z")
        assert text_of(page) == "a bc"
        page.keyboard.press("Control+Shift+z")
        assert text_of(page) == written
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Control+z")
    assert text_of(page) == "a bc"
    browser = page.context.new_cdp_session(page)
    page.focus("#text")
    browser.send("Input.dispatchKeyEvent", {"type": "keyDown", "commands": ["undo"]})  # its menu's
    assert text_of(page) == "It was a dark and stormy night"
    page.keyboard.press("Control+y")
    for field in ("input[type=number]", "textarea"):
        page.locator(f"#knobs-of-write {field}").first.focus()
        page.keyboard.type("12")
        page.keyboard.press("Control+z")
        assert text_of(page) == "a bc"


def test_a_page_that_is_loaded_again_has_what_was_in_it(open_page: Open) -> None:
    page = open_page()
    page.select_option("#model", "tiny-int4")
    turn(page, "Top-k", 3)
    written = write(page, "a bc", tokens=4)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert text_of(page) == written
    assert page.input_value("#model") == "tiny-int4"
    assert page.locator("#view-write").get_by_label("Top-k", exact=True).input_value() == "3"
    other = page.context.new_page()  # a tab of its own
    other.goto(page.url)
    other.wait_for_selector("body[data-ready]")
    assert text_of(other) == "It was a dark and stormy night"


def test_words_come_back_with_what_was_undone_after_them(open_page: Open) -> None:
    page = open_page()
    write(page, "a bc", tokens=6)
    page.focus("#text")
    page.keyboard.press("Control+Home")
    page.keyboard.type("X")
    page.keyboard.press("Backspace")  # the same text, but none of the model's any more
    assert words(page) == []
    page.keyboard.press("Control+z")
    assert len(words(page)) == 6


def test_no_token_of_another_model_is_gone_back_to(open_page: Open) -> None:
    page = open_page()
    write(page, "a bc", tokens=4)
    written = write(page, tokens=4)
    page.select_option("#model", "tiny-int4")
    assert text_of(page) == written and words(page) == []
    page.click("#undo")
    assert text_of(page) != written and words(page) == []
    with page.expect_request("**/next") as asked:
        page.click("#go")
    ended(page, "#go")
    assert isinstance(body_of(asked.value)["prompt"], str)


def test_a_phone_shows_no_keyboard_for_a_word_that_is_tapped(open_page: Open) -> None:
    page = open_page(width=390, height=700, has_touch=True, is_mobile=True)
    write(page, "a bc", tokens=6)
    focused = "document.activeElement.tagName"
    box = page.locator("#document .token .ink").nth(2).bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.get_by_role("dialog", name="Instead of").wait_for()
    assert page.evaluate(focused) != "TEXTAREA"
    page.locator(".alternatives li button:not([aria-current])").first.tap()
    ended(page, "#go")
    assert page.evaluate(focused) != "TEXTAREA"


def test_one_token_is_told_as_one(open_page: Open) -> None:
    page = open_page()
    write(page, "a bc", tokens=1)
    assert page.inner_text("#figures").startswith("1 token ·")
