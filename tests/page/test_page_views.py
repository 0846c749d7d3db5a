"""Compare, chat and recite; the views by their address, the key, and what is told when it fails."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import parting as desktop
import pytest
from driving import body_of, choose, ended
from served import Served, served

import pocketlm
from pocketlm.export.folder import ModelFolder

if TYPE_CHECKING:
    from conftest import Watched
    from driving import Open
    from playwright.sync_api import Browser

pytestmark = pytest.mark.page

TEXTS = [
    ("a b c d", "a b c d"),
    ("the old house stood at her bed, and turned", "the old house stood at her window, and fell"),
    ("a x b y c z", "a b c"),
    ("", "all of it"),
    ("one two three two one", "two one two three four"),
    ("it was it was it was not", "it was not it was it"),
]


@pytest.mark.parametrize("complete", [True, False])
def test_texts_part_where_they_do_on_the_desktop(open_page: Open, complete: bool) -> None:
    page = open_page()
    script = """async ([texts, complete]) => {
        const { parting } = await import('/page/parting.js');
        return texts.map(([left, right]) => parting(left, right, complete));
    }"""
    found = page.evaluate(script, [TEXTS, complete])
    for (left, right), spans in zip(TEXTS, found, strict=True):
        expected = desktop.parting(left, right, complete=complete)
        assert [tuple(span) for span in spans["left"]] == expected.left
        assert [tuple(span) for span in spans["right"]] == expected.right


def test_two_models_part_and_differ_word_by_word(open_page: Open, site: Served) -> None:
    page = open_page("compare")
    selects = page.locator(".pane select")
    assert [selects.nth(i).input_value() for i in (0, 1)] == ["tiny-fp32", "tiny-int4"]
    page.fill("#compare-prompt", "the quick")
    page.fill("#compare-tokens", "30")
    page.click("#compare-go")
    ended(page, "#compare-go")
    page.wait_for_selector(".strip [role=slider] >> nth=1")
    texts = [page.locator(".pane .said").nth(i).text_content() or "" for i in (0, 1)]
    prompts = [{"model": f"tiny-{name}", "prompt": "the quick"} for name in ("fp32", "int4")]
    options = {"seed": 7, "max_tokens": 30, "details": True, "logprobs": 0}
    answers = [site.post("/v1/completions", one | options)[1] for one in prompts]
    assert texts == ["the quick" + answer["choices"][0]["text"] for answer in answers]
    assert page.locator(".first-other").count() == 3  # one in each, and the legend
    ids = [token["id"] for token in answers[0]["choices"][0]["tokens"]]
    ids = answers[0]["details"]["prompt_token_ids"] + ids
    models = ["tiny-fp32", "tiny-int4"]
    compared = site.post("/compare", {"models": models, "token_ids": ids})[1]
    note = page.inner_text("#compare-note")
    assert "KL(tiny-fp32 ‖ tiny-int4)" in note
    assert f"{compared['mean_kl']:.3f} on the left text" in note


def test_texts_that_fill_the_context_are_measured_too(open_page: Open) -> None:
    page = open_page("compare")
    page.fill("#compare-tokens", "4000")
    page.click("#compare-go")
    ended(page, "#compare-go")
    assert page.locator("[role=slider]").count() == 2
    assert not page.is_visible("#trouble")


def test_the_strip_is_walked_with_the_keyboard(open_page: Open) -> None:
    page = open_page("compare")
    page.fill("#compare-tokens", "20")
    page.click("#compare-go")
    ended(page, "#compare-go")
    strip = page.locator("[role=slider]").first
    strip.focus()
    first = strip.get_attribute("aria-valuetext")
    page.keyboard.press("End")
    assert strip.get_attribute("aria-valuenow") == strip.get_attribute("aria-valuemax")
    assert strip.get_attribute("aria-valuetext") != first
    assert "nats; tiny-fp32" in page.locator(".readout").first.inner_text()


def test_the_sums_of_words_are_those_of_their_tokens(open_page: Open) -> None:
    page = open_page()
    texts = ["a", " b", "b", " ", "c", "\n", "d", "d"]
    tokens = [
        {"text": text, "kl": 2.0**i if i else None, "logprobs": [-1, -2] if i else [None, None]}
        for i, text in enumerate(texts)
    ]
    script = """async ([tokens, from]) => {
        const { wordsOf } = await import('/page/strip.js');
        return wordsOf(tokens, from);
    }"""
    found = page.evaluate(script, [tokens, 1])
    assert [word["word"] for word in found] == ["bb", "c", "dd"]
    assert [word["kl"] for word in found] == [2 + 4 + 8, 16 + 32, 64 + 128]
    assert found[0]["logprobs"] == [-3, -6]


def test_a_model_with_a_template_is_chatted_with(open_page: Open) -> None:
    page = open_page("chat")
    choose(page, max_tokens=4)
    page.select_option("#model", "talks")
    page.wait_for_selector("#chat-note", state="hidden")
    page.fill("#said", "Hello")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.keyboard.press("Enter")
    ended(page, "#send")
    assert body_of(sent.value)["messages"] == [{"role": "user", "content": "Hello"}]
    assert page.locator(".message.user .content").inner_text() == "Hello"
    answer = page.locator(".message.assistant .content").text_content() or ""
    assert answer != ""
    page.fill("#said", "And you?")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.click("#send")
    ended(page, "#send")
    told = body_of(sent.value)["messages"]
    assert [message["role"] for message in told] == ["user", "assistant", "user"]
    assert told[1]["content"] == answer
    page.click("#chat-new")
    assert page.locator(".message").count() == 0


def test_a_base_model_says_why_not_and_offers_a_prompt(open_page: Open) -> None:
    page = open_page("chat")
    note = page.locator("#chat-note")
    note.wait_for()
    assert "tiny is a base model" in note.inner_text()
    page.fill("#said", "Hello")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.keyboard.press("Enter")
    ended(page, "#send")
    assert body_of(sent.value)["transcript"] is True
    assert page.locator(".message.assistant .content").text_content()
    note.get_by_role("button").click()
    page.wait_for_selector("#view-write:visible")
    assert page.locator("#text").input_value().startswith("Question: a b")


def test_a_passage_is_recited(open_page: Open, site: Served) -> None:
    asked = {"prompt": "the is", "temperature": 0, "max_tokens": 30}
    said = site.post("/v1/completions", asked)[1]["choices"][0]["text"].split()[:4]
    passage = " ".join(["the is", *said])  # what the model says itself it knows by heart
    page = open_page("recite")
    page.fill("#passage", passage)
    page.evaluate("(given) => { document.querySelector('#given').value = given; }", 2)
    page.dispatch_event("#given", "input")
    page.click("#recite-go")
    ended(page, "#recite-go")
    count = len(said)
    assert page.inner_text("#verdict") == f"Word for word to the end: all {count} words."
    assert page.locator("#recited-text .right").count() == count
    assert page.locator("#recited-text .wrong").count() == 0
    assert page.locator("#curve .reach").count() == count + 1
    page.fill("#passage", "the quick brown fox jumps over the lazy dog")
    page.click("#recite-go")
    ended(page, "#recite-go")
    assert "words before the first other one" in page.inner_text("#verdict")
    assert page.locator("#recited-text .wrong").count() > 0


@pytest.mark.parametrize("given", [1, 300])
def test_too_long_a_passage_says_what_to_do(open_page: Open, watched: Watched, given: int) -> None:
    watched.refusals = True
    page = open_page("recite")
    page.fill("#passage", "a b " * 200)
    page.evaluate("(given) => { document.querySelector('#given').value = given; }", given)
    page.click("#recite-go")
    page.locator("#trouble").get_by_text("take a part of it").wait_for()


def test_reach_is_how_many_follow_word_for_word(open_page: Open) -> None:
    page = open_page()
    script = """async (isRight) => {
        const { reachOf } = await import('/page/curve.js');
        return reachOf(isRight);
    }"""
    right = [True, True, True, False, True, True]
    slow = []
    for given in range(1, len(right)):
        follow = 0
        while given + follow < len(right) and right[given + follow]:
            follow += 1
        slow.append(follow)
    assert page.evaluate(script, right) == slow == [2, 1, 0, 2, 1]


def test_a_view_has_an_address(open_page: Open) -> None:
    page = open_page("recite")
    assert page.locator("#view-recite").is_visible()
    page.click("#tab-chat")
    assert page.url.endswith("#chat")
    page.go_back()
    page.wait_for_selector("#view-recite:visible")
    page.goto(page.url.replace("#recite", "#nonsense"))
    page.wait_for_selector("#view-write:visible")


def test_the_key_is_asked_for_and_kept_in_the_tab(
    browser: Browser, tiny_folder: ModelFolder, watched: Watched
) -> None:
    models = {"tiny": partial(pocketlm.load, tiny_folder.path, threads=1)}
    with served(models, api_key="open-sesame") as site:
        context = browser.new_context()
        page = context.new_page()
        page.goto(site.url)
        dialog = page.get_by_role("dialog", name="This server asks for its key")
        page.get_by_label("Key", exact=True).fill("열려라")  # no header can carry it
        page.keyboard.press("Enter")
        assert dialog.is_visible()
        assert page.evaluate("sessionStorage.length") == 0
        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("That is not its key").wait_for()
        page.keyboard.press("Escape")
        page.locator("#trouble").get_by_text("load this page again to type it").wait_for()
        page.reload()
        page.get_by_label("Key", exact=True).fill("open-sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-ready]")
        assert not dialog.is_visible()
        assert page.locator("#model option").all_inner_texts() == ["tiny"]
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert not dialog.is_visible()
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        context.close()


def test_a_server_that_is_gone_is_told(browser: Browser, tiny_folder: ModelFolder) -> None:
    models = {"tiny": partial(pocketlm.load, tiny_folder.path, threads=1)}
    with served(models) as site:
        context = browser.new_context()
        page = context.new_page()
        page.goto(site.url)
        page.wait_for_selector("body[data-ready]")
        page.wait_for_selector("#next tbody tr")
        context.set_offline(True)
        page.click("#go")
        page.locator("#trouble").get_by_text("The server does not answer at").wait_for()
        context.close()
