"""Answers to task files against plain formulas, and what a model loses against another."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketlm
from pocketlm.benchmarks.tasks.files import TaskFile, read_task
from pocketlm.benchmarks.tasks.measure import Answers, answer, mean, result
from pocketlm.export.errors import RequestError
from pocketlm.runtime.arena import Cache
from pocketlm.runtime.scoring import Scorer, encode_pair

WORDS = "the other story of that house and then he went there with a heart in the rain".split()


def sentences(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 6)) for _ in range(count)]


@pytest.fixture(scope="module")
def last_words(tmp_path_factory: pytest.TempPathFactory) -> TaskFile:
    path = tmp_path_factory.mktemp("tasks") / "words.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(30, 1)))
    return read_task(path)


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> TaskFile:
    """Choices of different lengths, so that the likeliest is not the likeliest per character."""
    lines = []
    for i, text in enumerate(sentences(40, 2)):
        several = ["a", *sentences(2, 100 + i), "the"]
        lines.append({"query": text, "choices": several, "gold": i % 4})
    path = tmp_path_factory.mktemp("tasks") / "choices.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_task(path)


def ask(task: TaskFile, model: pocketlm.Model, **options: Any) -> Answers:
    return answer(task, model.session, model.tokenizer, model.start_id, **options)


def plain_loglikelihood(model: pocketlm.Model, context: str, continuation: str) -> float:
    """Σ log p of the tokens that ``continuation`` adds, one token at a time."""
    whole, known = model.tokenizer.encode(context + continuation), model.tokenizer.encode(context)
    cache, total = model.session.new_cache(), 0.0
    logits = model.session.step(known, cache)
    for token in whole[len(known) :]:
        shifted = np.exp(logits.astype(np.float64) - logits.max())
        total += math.log(shifted[token] / shifted.sum())
        logits = model.session.step([token], cache)
    return total


def test_last_words_equal_the_formulas(last_words: TaskFile, tiny_model: pocketlm.Model) -> None:
    found = result("tiny", ask(last_words, tiny_model))
    logs = [
        plain_loglikelihood(tiny_model, item.context, f" {item.choices[0]}")
        for item in last_words.items
    ]
    assert found["perplexity"] == pytest.approx(math.exp(-sum(logs) / 30), rel=1e-4)
    greedy = 0
    for item in last_words.items:
        ids = tiny_model.tokenizer.encode(f" {item.choices[0]}")
        said = tiny_model.generate(
            item.context, max_tokens=len(ids), temperature=0, ignore_eos=True
        ).token_ids
        greedy += said == ids
    share = greedy / 30
    assert found["accuracy"]["value"] == share
    error = math.sqrt(share * (1 - share) / 29)
    assert found["accuracy"]["standard_error"] == (pytest.approx(error) if error else None)
    assert (found["items"], found["kind"], found["truncated"]) == (30, "last_word", 0)
    assert found["accuracy_normalised"] is None


def test_choices_equal_the_formulas(choices: TaskFile, tiny_model: pocketlm.Model) -> None:
    answers = ask(choices, tiny_model)
    found = result("tiny", answers)
    chosen, right, right_normalised = [], 0, 0
    for item in choices.items:
        logs = [plain_loglikelihood(tiny_model, item.context, f" {c}") for c in item.choices]
        chosen.append(int(np.argmax(logs)))
        right += chosen[-1] == item.gold
        per_character = [log / len(c) for log, c in zip(logs, item.choices, strict=True)]
        right_normalised += int(np.argmax(per_character)) == item.gold
    assert answers.chosen.tolist() == chosen
    assert found["accuracy"]["value"] == right / 40
    assert found["accuracy_normalised"]["value"] == right_normalised / 40
    assert right != right_normalised
    assert found["perplexity"] is None
    share = right_normalised / 40
    assert found["accuracy_normalised"]["standard_error"] == pytest.approx(
        math.sqrt(share * (1 - share) / 39)
    )


def test_results_are_json(choices: TaskFile, tiny_model: pocketlm.Model) -> None:
    answers = ask(choices, tiny_model)
    found = result("tiny", answers, answers)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["file"] == str(choices.path)
    assert (found["task"], found["model"]) == ("choices", "tiny")


def test_a_model_against_itself_loses_nothing(
    choices: TaskFile, tiny_model: pocketlm.Model
) -> None:
    answers = ask(choices, tiny_model)
    assert result("tiny", answers)["against"] is None
    assert result("tiny", answers, answers)["against"] == {
        "accuracy": {"value": 0.0, "standard_error": None},
        "accuracy_normalised": {"value": 0.0, "standard_error": None},
        "same_answer": {"value": 1.0, "standard_error": None},
    }


def test_against_compares_item_by_item(choices: TaskFile) -> None:
    def answers(right: list[bool], chosen: list[int]) -> Answers:
        logs = np.zeros(len(right))
        return Answers(choices, np.array(right), np.array(right), logs, np.array(chosen), 0, {})

    reference = answers([True, True, False, False], [0, 1, 2, 3])
    assert result("same", reference, reference)["against"]["same_answer"]["value"] == 1
    other = answers([True, False, True, False], [0, 2, 1, 0])
    found = result("other", other, reference)["against"]
    # Differences 0, -1, 1, 0: their variance is 2 / 3, a quarter of which is the mean's.
    assert found["accuracy"]["value"] == 0
    assert found["accuracy"]["standard_error"] == pytest.approx(math.sqrt(2 / 3 / 4))
    assert found["same_answer"]["value"] == 0.25


def test_progress_tells_the_accuracy_so_far(choices: TaskFile, tiny_model: pocketlm.Model) -> None:
    seen: list[tuple[int, float]] = []
    answers = ask(choices, tiny_model, progress=lambda *told: seen.append(told))
    assert [done for done, _ in seen] == list(range(1, 41))
    running = np.cumsum(answers.right) / np.arange(1, 41)
    assert [accuracy for _, accuracy in seen] == pytest.approx(running.tolist())


@pytest.mark.parametrize("count", [1, 2, 30])
def test_items_without_a_spread_have_no_standard_error(count: int) -> None:
    """What it is cannot be known from them: it is not 0."""
    assert mean(np.array([True] * count)) == {"value": 1.0, "standard_error": None}


def test_contexts_that_do_not_fit_are_counted(tmp_path: Path, tiny_model: pocketlm.Model) -> None:
    long = {"context": "the rain " * 200, "continuation": "rain"}
    short = {"context": "the", "continuation": "rain"}
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(map(json.dumps, (long, short, long))))
    assert result("tiny", ask(read_task(path), tiny_model))["truncated"] == 2


def test_a_choice_that_does_not_fit_is_named(tmp_path: Path, tiny_model: pocketlm.Model) -> None:
    path = tmp_path / "long.jsonl"
    choices = {"query": "a", "choices": ["a", "the rain " * 200], "gold": 0}
    path.write_text("\n" + json.dumps(choices))
    with pytest.raises(RequestError, match=r"long.jsonl, line 2: the continuation has \d+ tokens"):
        ask(read_task(path), tiny_model)


def test_a_perplexity_beyond_float64_is_unknown(last_words: TaskFile) -> None:
    unlikely = np.full(30, -1000.0)
    wrong = np.zeros(30, bool)
    answers = Answers(last_words, wrong, None, unlikely, np.ones(30, np.int64), 0, {})
    assert result("tiny", answers)["perplexity"] is None


def test_choices_share_the_work_of_their_context(
    choices: TaskFile, tiny_model: pocketlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin scores each pair by a scorer of its own: the same answers, from more tokens."""
    fed = 0
    graph = tiny_model.session._opened
    run = graph._bind_one

    def counted(cache: Cache, ids: list[int]) -> None:
        nonlocal fed
        fed += len(ids)
        run(cache, ids)

    monkeypatch.setattr(graph, "_bind_one", counted)
    answers, shared = ask(choices, tiny_model), fed
    fed, best = 0, []
    for item in choices.items:
        pairs = [
            encode_pair(tiny_model.tokenizer, item.context, f" {c}", tiny_model.start_id)
            for c in item.choices
        ]
        scores = [Scorer(tiny_model.session).score(*pair) for pair in pairs]
        best.append(int(np.argmax([score.loglikelihood for score in scores])))
    assert answers.chosen.tolist() == best
    assert shared < 0.7 * fed
