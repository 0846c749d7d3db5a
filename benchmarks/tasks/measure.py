"""How well a model answers questions: the items of a task file go in, accuracies come out.

    last word         right where every token of the word is the likeliest one; perplexity is
                      exp(mean -log p(word)), of whole words
    multiple choice   the choice with the largest log p is the answer; for the normalised accuracy
                      the one with the largest log p per character

as lm-evaluation-harness 0.4.13 scores its tasks lambada_openai, hellaswag and piqa without
examples in the prompt (``ConfigurableTask.process_results`` in lm_eval/api/task.py). A standard
error is that of the mean over the items, with n - 1: for a share p it is sqrt(p (1 - p) / (n - 1)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...export.errors import RequestError
from ...export.folder import ModelFolder
from ...runtime.scoring import Score, Scorer, check_length, encode_pair, start_token
from ...runtime.session import Session
from ...runtime.tokenizer import Tokenizer
from ..quality.measure import OnProgress
from ..quality.unread import unread_of
from ..session_variant import PLAIN, Variant
from .files import MULTIPLE_CHOICE, Item, TaskFile

Mean = dict[str, float | None]
ItemProgress = Callable[[int, float], None]  # items done, accuracy so far


def check_tasks(folders: dict[str, ModelFolder], tasks: Sequence[TaskFile]) -> None:
    """Whether every model can be asked every question; runs none of them.

    Raises RequestError that names file and line for an item that cannot be asked: with a choice
    longer than the context length or without a token of its own.
    """
    for folder in folders.values():
        tokenizer, start = _tokenizer_and_start(folder)
        for task in tasks:
            for item in task.items:
                encode_item(task, item, tokenizer, start, folder.shape.context_length)


def measure_tasks(
    folders: dict[str, ModelFolder],
    tasks: Sequence[TaskFile],
    *,
    threads: int,
    variants: Mapping[str, Variant] | None = None,
    on_progress: OnProgress | None = None,
) -> list[dict[str, Any]]:
    """What each of ``folders``, the reference first, reaches in each task: by task, then by model.

    One model is open at a time. Raises what ``check_tasks`` and ``Session`` raise.
    """
    answers: dict[str, list[Answers]] = {}
    total = len(folders) * sum(len(task.items) for task in tasks)
    done = 0
    for name, folder in folders.items():
        session = (variants or {}).get(name, PLAIN).open(folder, threads)
        tokenizer, start = _tokenizer_and_start(folder)
        answers[name] = []
        for task in tasks:
            what = f"{task.name}, {name}: accuracy"
            progress = share_of(on_progress, done, total, what, "{:.1%}")
            answers[name].append(answer(task, session, tokenizer, start, progress))
            done += len(task.items)
    reference, *others = answers
    return [
        result(name, answers[name][i], answers[reference][i] if name in others else None)
        for i in range(len(tasks))
        for name in answers
    ]


def _tokenizer_and_start(folder: ModelFolder) -> tuple[Tokenizer, int | None]:
    tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
    return tokenizer, start_token(tokenizer, folder)


def share_of(
    on_progress: OnProgress | None, before: int, total: int, what: str, form: str
) -> ItemProgress:
    """Tells ``on_progress`` of a part of the work, whose value is called ``what``, in its form."""

    def progress(done: int, value: float) -> None:
        if on_progress is not None:
            on_progress((before + done) / total, f"{what} {form.format(value)}")

    return progress


@dataclass(frozen=True)
class Answer:
    """What a model made of one item."""

    chosen: int  # the choice; of a last word 0 where it is right, else 1
    chosen_normalised: int  # with the largest log p per character
    loglikelihood: float  # of the right continuation, in nats
    truncated: bool  # the context did not fit


@dataclass(frozen=True)
class Answers:
    """What a model made of the items of a task file: an array each, item by item."""

    task: TaskFile
    right: NDArray[np.bool_]
    right_normalised: NDArray[np.bool_] | None  # None where there is nothing to choose from
    loglikelihoods: NDArray[np.float64]
    chosen: NDArray[np.int64]
    truncated: int  # items
    without_token: dict[str, Any]


def answer(
    task: TaskFile,
    session: Session,
    tokenizer: Tokenizer,
    start_id: int | None,
    progress: ItemProgress = lambda done, accuracy: None,
) -> Answers:
    """Asks a model all the questions of a file. Raises what ``encode_item`` does."""
    scorer = Scorer(session)
    answers: list[Answer] = []
    correct = 0
    for item in task.items:
        pairs = encode_item(task, item, tokenizer, start_id, scorer.context_length)
        scores = [scorer.score(*pair) for pair in pairs]
        answers.append(_answer(item, scores))
        correct += answers[-1].chosen == item.gold
        progress(len(answers), correct / len(answers))
    gold = np.array([item.gold for item in task.items])
    chosen = np.array([found.chosen for found in answers])
    normalised = np.array([found.chosen_normalised for found in answers])
    return Answers(
        task,
        chosen == gold,
        normalised == gold if task.kind == MULTIPLE_CHOICE else None,
        np.array([found.loglikelihood for found in answers]),
        chosen,
        sum(found.truncated for found in answers),
        unread_of(
            tokenizer, (text for item in task.items for text in (item.context, *item.choices))
        ),
    )


def encode_item(
    task: TaskFile, item: Item, tokenizer: Tokenizer, start_id: int | None, context_length: int
) -> list[tuple[list[int], list[int]]]:
    """Token ids of the context and of the continuation, for every choice.

    Raises RequestError that names file and line: see ``check_tasks``.
    """
    pairs = []
    for choice in item.choices:
        try:
            pairs.append(encode_pair(tokenizer, item.context, f" {choice}", start_id))
            check_length(pairs[-1][1], context_length)
        except RequestError as error:
            raise RequestError(f"{task.path}, line {item.line}: {error}") from error
    return pairs


def _answer(item: Item, scores: Sequence[Score]) -> Answer:
    logs = np.array([score.loglikelihood for score in scores])
    lengths = np.array([len(choice) for choice in item.choices])
    chosen, normalised = int(logs.argmax()), int((logs / lengths).argmax())
    if len(scores) == 1:
        chosen = normalised = 0 if scores[0].is_greedy else 1
    truncated = any(score.truncated for score in scores)
    return Answer(chosen, normalised, scores[item.gold].loglikelihood, truncated)


def result(name: str, answers: Answers, reference: Answers | None = None) -> dict[str, Any]:
    """What the model called ``name`` reached, as JSON; with ``reference`` what that lost.

    "against" compares item by item, so that its standard error is that of the difference: much
    smaller than those of the two accuracies, whose items are the same.
    """
    task = answers.task
    found: dict[str, Any] = {
        "task": task.name,
        "file": str(task.path),
        "fields": list(task.fields),
        "kind": task.kind,
        "model": name,
        "items": len(task.items),
        "truncated": answers.truncated,
        "without_token": answers.without_token,
        "accuracy": mean(answers.right),
        "accuracy_normalised": None,
        "perplexity": None,
        "against": None,
    }
    if answers.right_normalised is not None:
        found["accuracy_normalised"] = mean(answers.right_normalised)
    else:
        found["perplexity"] = _perplexity(answers.loglikelihoods)
    if reference is not None:
        found["against"] = {
            "accuracy": _difference(answers.right, reference.right),
            "accuracy_normalised": _difference(
                answers.right_normalised, reference.right_normalised
            ),
            "same_answer": mean(answers.chosen == reference.chosen),
        }
    return found


def mean(values: NDArray[Any]) -> Mean:
    """The mean and its standard error; None, not 0, where no spread of the values tells it."""
    spread = values.min() < values.max()
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if spread else None
    return {"value": float(values.mean()), "standard_error": error}


def _difference(
    right: NDArray[np.bool_] | None, reference: NDArray[np.bool_] | None
) -> Mean | None:
    if right is None or reference is None:
        return None
    return mean(right.astype(float) - reference)


def _perplexity(loglikelihoods: NDArray[np.float64]) -> float | None:
    """None where it is beyond float64."""
    loss = -float(loglikelihoods.mean())
    return math.exp(loss) if loss < 700 else None
