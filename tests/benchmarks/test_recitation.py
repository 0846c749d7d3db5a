"""Reciting: what is known by heart is found, distances equal their definition, passages spread."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketlm
from pocketlm.benchmarks.recitation.measure import (
    Passage,
    RecitationOptions,
    compare,
    edit_distance,
    measure_recitation,
    passages,
    read_book,
    read_books,
    recite,
)
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.shared_beginning import shared_beginning
from pocketlm.runtime.tokenizer import Tokenizer

tokens = st.lists(st.integers(0, 3), max_size=12)
SHORT = RecitationOptions(passages=6, prompt_tokens=8, continuation_tokens=10)


def greedy_text(model: pocketlm.Model, count: int) -> list[int]:
    """What the model itself writes, and so knows by heart."""
    return model.generate([7, 70, 80], max_tokens=count, temperature=0, ignore_eos=True).token_ids


def by_definition(first: Sequence[int], second: Sequence[int]) -> int:
    """Levenshtein's distance as the recursion that defines it."""

    @functools.cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        changed = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(changed, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(first), len(second))


@given(first=tokens, second=tokens)
def test_the_edit_distance_is_the_recursions(first: list[int], second: list[int]) -> None:
    assert edit_distance(first, second) == by_definition(first, second)


@given(first=tokens, second=tokens, third=tokens)
def test_the_edit_distance_is_a_distance(
    first: list[int], second: list[int], third: list[int]
) -> None:
    assert edit_distance(first, first) == 0
    assert (edit_distance(first, second) == 0) == (first == second)
    assert edit_distance(first, second) == edit_distance(second, first)
    there = edit_distance(first, second) + edit_distance(second, third)
    assert edit_distance(first, third) <= there
    assert edit_distance(first, second) <= max(len(first), len(second))


@pytest.mark.parametrize(
    "first, second, expected",
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abcd", "bcde", 2)],
)
def test_known_distances(first: str, second: str, expected: int) -> None:
    assert edit_distance([ord(c) for c in first], [ord(c) for c in second]) == expected


@given(first=tokens, second=tokens)
def test_a_shared_beginning_is_the_longest(first: list[int], second: list[int]) -> None:
    count = shared_beginning(first, second)
    assert first[:count] == second[:count]
    assert first[: count + 1] != second[: count + 1] or count in (len(first), len(second))


@given(
    length=st.integers(0, 400),
    count=st.integers(1, 12),
    prompt=st.integers(1, 30),
    continuation=st.integers(1, 30),
)
def test_passages_are_spread_evenly_and_do_not_overlap(
    length: int, count: int, prompt: int, continuation: int
) -> None:
    options = RecitationOptions(
        passages=count, prompt_tokens=prompt, continuation_tokens=continuation
    )
    if length < prompt + continuation:
        with pytest.raises(RequestError, match=f"book: found {length} tokens, expected "):
            passages(range(length), options, "book")
        return
    found = passages(range(length), options, "book")
    assert len(found) == min(count, length // (prompt + continuation))
    starts = [passage.prompt_ids[0] for passage in found]
    for start, passage in zip(starts, found, strict=True):
        whole = passage.prompt_ids + passage.true_ids
        assert whole == list(range(start, start + prompt + continuation))
        assert passage.position == start / length
    steps = [after - before for before, after in zip(starts, starts[1:], strict=False)]
    assert starts[0] == 0
    if steps:
        assert starts[-1] == length - prompt - continuation
        assert min(steps) >= prompt + continuation
        assert max(steps) - min(steps) <= 1


def test_what_a_model_wrote_it_recites(tiny_model: pocketlm.Model) -> None:
    """Each passage begins where the model began, since it knows a text from its beginning on."""
    text = [7, 70, 80, *greedy_text(tiny_model, 40)]
    known = [Passage(0.0, text[:n], text[n : n + 10]) for n in (3, 10, 20, 30)]
    found = compare(
        known, recite(known, tiny_model.session, tiny_model.tokenizer), tiny_model.tokenizer
    )
    assert found["exact_match_tokens"] == {"value": 10.0, "standard_error": None}
    assert found["edit_distance"] == {"value": 0.0, "standard_error": None}
    assert found["complete"]["value"] == 1
    assert found["longest"] == 10
    for row in found["passages"]:
        assert row["continuation"] == row["true"]
        assert row["exact_match_characters"] == len(row["true"]) > 0
    # The comparison with the next passage says that this is not what any text would reach.
    assert found["chance"]["edit_distance"]["value"] > 0.3


def test_a_prompt_begins_with_what_the_tokenizer_puts_first(
    tiny_model: pocketlm.Model, starting_tokenizer: Tokenizer
) -> None:
    """As a Llama was trained to read: another text than without that token."""
    ids = [7, 70, 80]
    options: dict[str, Any] = {"max_tokens": 10, "temperature": 0, "ignore_eos": True}
    expected = tiny_model.generate([299, *ids], **options).token_ids
    assert expected != tiny_model.generate(ids, **options).token_ids
    passage = Passage(0.0, ids, expected)
    assert recite([passage], tiny_model.session, starting_tokenizer) == [expected]


def test_one_wrong_token_is_found_where_it_stands(tiny_model: pocketlm.Model) -> None:
    text = [7, 70, 80, *greedy_text(tiny_model, 10)]
    true = text[3:]
    true[4] = (true[4] + 1) % 299
    known = [Passage(0.0, text[:3], true)]
    continuations = recite(known, tiny_model.session, tiny_model.tokenizer)
    (row,) = compare(known, continuations, tiny_model.tokenizer)["passages"]
    assert row["exact_match_tokens"] == 4
    assert row["edit_distance"] == 0.1


def test_means_are_those_of_the_passages(tiny_model: pocketlm.Model) -> None:
    tokenizer = tiny_model.tokenizer
    known = [Passage(0.0, [7], [70, 71]), Passage(0.5, [8], [80, 81])]
    found = compare(known, [[70, 99], [99, 98]], tokenizer)
    assert found["exact_match_tokens"] == {"value": 0.5, "standard_error": 0.5}
    assert found["edit_distance"] == {"value": 0.75, "standard_error": 0.25}
    assert (found["longest"], found["complete"]["value"]) == (1, 0)
    assert found["chance"]["edit_distance"]["value"] == 1
    assert compare(known[:1], [[70, 71]], tokenizer)["chance"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_characters_are_counted_where_tokens_differ_late(tiny_model: pocketlm.Model) -> None:
    """Of the same text in other tokens no token matches, but every character does."""
    tokenizer = tiny_model.tokenizer
    whole, letters = tokenizer.encode(" the"), [tokenizer.encode(c)[0] for c in " the"]
    assert len(whole) < len(letters)
    (row,) = compare([Passage(0.0, [7], whole)], [letters], tokenizer)["passages"]
    assert (row["exact_match_tokens"], row["exact_match_characters"]) == (0, 4)


def test_a_file_is_tokenized_as_a_whole(tmp_path: Path, tiny_model: pocketlm.Model) -> None:
    text = "The other story.\n\nAnd then there was the rain, é.\n" * 8
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    ids = tiny_model.tokenizer.encode(text)
    found = read_book(tmp_path / "book.txt", tiny_model.tokenizer, SHORT).passages
    assert found == passages(ids, SHORT, "book.txt")
    assert len(found) == 6


def test_progress_tells_the_tokens_matched_so_far(tiny_model: pocketlm.Model) -> None:
    text = [7, 70, 80, *greedy_text(tiny_model, 10)]
    known = [Passage(0.0, text[:3], text[3:]), Passage(0.0, text[:3], [299] * 10)]
    seen: list[tuple[int, float]] = []
    recite(known, tiny_model.session, tiny_model.tokenizer, lambda *told: seen.append(told))
    assert seen == [(1, 10.0), (2, 5.0)]


def test_a_text_that_is_not_utf8_is_refused(tmp_path: Path, tiny_model: pocketlm.Model) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(RequestError, match="latin.txt: found the byte 0xe9"):
        read_book(tmp_path / "latin.txt", tiny_model.tokenizer, SHORT)


def test_a_text_that_is_too_short_is_refused(tmp_path: Path, tiny_model: pocketlm.Model) -> None:
    (tmp_path / "short.txt").write_text("a b")
    with pytest.raises(RequestError, match=r"short.txt: found \d tokens, expected 18 or more"):
        read_book(tmp_path / "short.txt", tiny_model.tokenizer, SHORT)


def test_passages_longer_than_a_context_are_refused(
    tmp_path: Path, tiny_folder: ModelFolder
) -> None:
    (tmp_path / "book.txt").write_text("The other story. " * 99)
    options = RecitationOptions(prompt_tokens=100, continuation_tokens=61)
    with pytest.raises(RequestError, match=r"161 tokens, expected at most 160 .*length of tiny\)"):
        read_books({"tiny": tiny_folder}, [tmp_path / "book.txt"], options)


def test_books_of_several_models_are_measured_side_by_side(
    tmp_path: Path, tiny_folder: ModelFolder, tiny_model: pocketlm.Model
) -> None:
    paths = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for path in paths:
        path.write_text(f"The story of {path.stem}. " * 40)
    folders = {"fp32": tiny_folder, "again": tiny_folder}
    books = read_books(folders, paths, SHORT)
    seen: list[tuple[float, str]] = []
    found = measure_recitation(
        folders, books, threads=1, on_progress=lambda *told: seen.append(told)
    )
    assert [entry["file"] for entry in found] == list(map(str, paths))
    for entry, book in zip(found, books, strict=True):
        assert (entry["prompt_tokens"], entry["continuation_tokens"]) == (8, 10)
        first, second = entry["models"]
        assert (first.pop("model"), second.pop("model")) == ("fp32", "again")
        assert first == second
        alone = recite(book.passages, tiny_model.session, tiny_model.tokenizer)
        assert first == compare(book.passages, alone, tiny_model.tokenizer)
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 24
    assert seen[0][1].startswith("one.txt, fp32: tokens matched ")


@pytest.mark.parametrize("name", ["passages", "prompt_tokens", "continuation_tokens"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match=f"{name} is 0, expected an integer from 1 up"):
        RecitationOptions(**{name: 0})


@settings(max_examples=20, deadline=None)
@given(start=st.lists(st.integers(0, 298), min_size=3, max_size=10))
def test_reciting_is_deterministic(tiny_model: pocketlm.Model, start: list[int]) -> None:
    found = [Passage(0.0, start, [1] * 6)]
    first = recite(found, tiny_model.session, tiny_model.tokenizer)
    assert first == recite(found, tiny_model.session, tiny_model.tokenizer)
    assert len(first[0]) == 6
