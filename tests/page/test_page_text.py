"""The document, and what is read of a stream: modules of the page by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from driving import Open

pytestmark = pytest.mark.page

# A prompt of two tokens, and three of the model's: "ab" + " c", " d", "e".
BEGIN = """
const { Text } = await import('/page/text.js');
const told = (text) => [
    text.parts.map((part) => [part.text, part.token?.id ?? null]),
    text.tail?.ids ?? null,
];
const token = (id, text) => ({ id, text, probability: 0.5, top: [] });
const text = Text.typed('ab').continued([1, 2]);
text.extend({ text: ' c', tokens: [token(3, ' c')] });
text.extend({ text: ' de', tokens: [token(4, ' d'), token(5, 'e')] });
"""
WHOLE = [["ab", None], [" c", 3], [" d", 4], ["e", 5]]


def result(open_page: Open, script: str) -> Any:
    return open_page().evaluate(f"async () => {{ {BEGIN} {script} }}")


def test_what_is_generated_is_added_token_by_token(open_page: Open) -> None:
    found = result(open_page, "return [told(text), text.string, text.generated];")
    assert found == [[WHOLE, [1, 2, 3, 4, 5]], "ab c de", 3]


def test_an_edit_keeps_the_tokens_before_it_only(open_page: Open) -> None:
    script = "return ['ab c de', 'ab c dX', 'ab c', 'Xab c de', 'ab c de!'].map((string) => "
    same, changed, cut, front, more = result(open_page, script + "told(text.edited(string)));")
    assert same == [WHOLE, [1, 2, 3, 4, 5]]
    assert changed == [[*WHOLE[:3], ["X", None]], None]
    assert cut == [WHOLE[:2], None]
    assert front == [[["Xab c de", None]], None]
    assert more == [[*WHOLE, ["!", None]], None]


def test_another_token_stands_in_the_place_of_the_one_and_all_after_it(open_page: Open) -> None:
    script = "return [told(text.chosen(text.parts[2], token(9, ' x'))), told(text)];"
    chosen, before = result(open_page, script)
    assert chosen == [[*WHOLE[:2], [" x", 9]], [1, 2, 3, 9]]
    assert before == [WHOLE, [1, 2, 3, 4, 5]]


def test_tokens_that_are_a_character_together_are_one_part(open_page: Open) -> None:
    script = """
        text.extend({ text: '한', tokens: [token(6, '\\ufffd'), token(7, '\\ufffd')] });
        return [told(text), text.parts.at(-1).token.probability];
    """
    found, probability = result(open_page, script)
    assert found == [[*WHOLE, ["한", 6]], [1, 2, 3, 4, 5, 6, 7]]
    assert probability == 0.25


def test_a_chosen_part_of_a_character_waits_for_the_rest(open_page: Open) -> None:
    script = """
        const other = text.chosen(text.parts[1], token(8, '\\ufffd'));
        const early = structuredClone(told(other));
        other.extend({ text: 'é', tokens: [token(9, '\\ufffd')] });
        const again = other.chosen(other.parts[1], token(6, ' f'));
        return [early, told(other), other.parts[1].token.probability, told(again)];
    """
    early, late, probability, again = result(open_page, script)
    assert early == [[["ab", None]], [1, 2, 8]]
    assert late == [[["ab", None], ["é", 8]], [1, 2, 8, 9]]
    assert probability == 0.25
    assert again == [[["ab", None], [" f", 6]], [1, 2, 6]]


def test_an_end_token_is_no_text(open_page: Open) -> None:
    script = "text.extend({ text: '', tokens: [token(0, '<end>')] }); return told(text);"
    assert result(open_page, script) == [WHOLE, [1, 2, 3, 4, 5]]


def test_line_ends_are_those_of_a_text_area(open_page: Open) -> None:
    script = """
        text.extend({ text: '\\r\\n', tokens: [token(8, '\\r\\n')] });
        return [text.string, Text.typed('a\\r\\nb\\rc').string];
    """
    assert result(open_page, script) == ["ab c de\n", "a\nb\nc"]


def test_events_are_read_however_they_are_cut(open_page: Open) -> None:
    script = """
        const { events } = await import('/page/stream.js');
        const bytes = new TextEncoder().encode(
            'data: {"a": "é 한"}\\n\\nevent: x\\ndata: {"b": 2}\\n\\ndata: [DONE]\\n\\n');
        const all = [];
        for (const size of [1, 2, 3, 7, 1000]) {
            const body = new ReadableStream({ start(controller) {
                for (let i = 0; i < bytes.length; i += size)
                    controller.enqueue(bytes.slice(i, i + size));
                controller.close();
            } });
            const found = [];
            for await (const event of events(new Response(body))) found.push(event);
            all.push(found);
        }
        return all;
    """
    assert result(open_page, script) == [[{"a": "é 한"}, {"b": 2}]] * 5


def test_numbers_are_told_as_people_read_them(open_page: Open) -> None:
    script = """
        const { percent, shown, axisEnd, nats } = await import('/page/format.js');
        return [[1, 0.9996, 0.5, 0.0012, 0.0004].map(percent),
                [' a b ', '\\n', '', 'a'].map(shown),
                [0.01, 0.07, 0.3, 0.6].map(axisEnd),
                [0, 0.0001, 0.1234].map(nats)];
    """
    percents, names, ends, numbers = result(open_page, script)
    assert percents == ["100 %", "100 %", "50.0 %", "0.1 %", "< 0.1 %"]
    assert names == ["␣a b␣", "⏎", "∅", "a"]
    assert ends == [0.05, 0.1, 0.5, 1]
    assert numbers == ["0.000", "< 0.001", "0.123"]
