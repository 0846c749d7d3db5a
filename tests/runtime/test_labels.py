"""Labels of texts: distributions over whole labels, calibration, examples, and every bad label."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketlm
from pocketlm.export.errors import RequestError
from pocketlm.runtime.labels import Classifier, calibrated, softmax

TEMPLATE = "the {text}\nis:"
LABELS = ("other", "rain and", "a heart in that")


def classifier(model: pocketlm.Model, **options: Any) -> Classifier:
    given = {"labels": LABELS, "template": TEMPLATE} | options
    return model.classifier(**given)


def test_probabilities_are_the_softmax_of_the_scores_of_whole_labels(
    tiny_model: pocketlm.Model,
) -> None:
    scores = tiny_model.score("the house\nis:", [f" {label}" for label in LABELS])
    weights = [math.exp(score.loglikelihood) for score in scores]
    found = classifier(tiny_model).classify("house")
    assert found.labels == LABELS
    assert found.probabilities == pytest.approx([w / sum(weights) for w in weights], rel=1e-4)
    best = weights.index(max(weights))
    assert (found.label, found.probability) == (LABELS[best], found.probabilities[best])


@given(texts=st.lists(st.text(alphabet="ab thern.\n\té{}", max_size=20), max_size=4))
@settings(max_examples=25, deadline=None)
def test_distributions_sum_to_one_and_depend_on_their_text_alone(
    tiny_model: pocketlm.Model, texts: list[str]
) -> None:
    one = classifier(tiny_model, calibrate=True)
    for text in texts:
        found = one.classify(text)
        assert sum(found.probabilities) == pytest.approx(1, abs=1e-12)
        assert found == classifier(tiny_model, calibrate=True).classify(text)


@given(st.lists(st.floats(-1e4, 0), min_size=2, max_size=6))
def test_a_softmax_sums_to_one_however_unlikely_its_terms(logs: list[float]) -> None:
    found = softmax(np.array(logs))
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()


def test_calibration_divides_by_what_a_neutral_text_gets() -> None:
    found = softmax(calibrated(np.log([0.5, 0.3, 0.1, 0.1]), np.log([0.4, 0.3, 0.2, 0.1])))
    ratios = np.array([1.25, 1.0, 0.5, 1.0])
    assert found == pytest.approx(ratios / ratios.sum())


def test_the_empty_text_is_calibrated_to_equal_shares(tiny_model: pocketlm.Model) -> None:
    found = classifier(tiny_model, calibrate=True).classify("")
    assert found.probabilities == pytest.approx([1 / 3] * 3)
    assert max(classifier(tiny_model).classify("").probabilities) > 0.4


def test_examples_stand_before_the_text_in_the_same_template(tiny_model: pocketlm.Model) -> None:
    examples = [("house", "other"), ("{text}", "rain and")]
    shown = "the house\nis: other\n\nthe {text}\nis: rain and\n\nthe story\nis:"
    scores = tiny_model.score(shown, [f" {label}" for label in LABELS])
    expected = softmax(np.array([score.loglikelihood for score in scores]))
    found = classifier(tiny_model, examples=examples).classify("story")
    assert found.probabilities == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("template", "context", "gap"),
    [
        ("{text}:", "rain:", " "),
        ("{text}: ", "rain: ", ""),
        ("{text}\n", "rain\n", ""),
        ("{text}:{label}", "rain:", ""),
        ("{text}: {label}", "rain: ", ""),
        ("{ {text}: {}", "{ rain: {}", " "),
    ],
)
def test_a_space_comes_before_a_label_unless_the_template_says_how(
    tiny_model: pocketlm.Model, template: str, context: str, gap: str
) -> None:
    scores = tiny_model.score(context, [gap + label for label in LABELS])
    expected = softmax(np.array([score.loglikelihood for score in scores]))
    found = classifier(tiny_model, template=template).classify("rain")
    assert found.probabilities == pytest.approx(expected, rel=1e-4)


def test_a_special_token_that_a_text_spells_is_text(tiny_model: pocketlm.Model) -> None:
    one = classifier(tiny_model)
    special = tiny_model.tokenizer.special_ids
    for text in ("a <|endoftext|>", "<|endoftext|>", "a \U000f0000<|endoftext|>\n"):
        (prompt, _), *_ = one.encode(text)
        assert not special & set(prompt)
        assert tiny_model.tokenizer.decode(prompt) == f"the {text}\nis:"
    assert special & set(classifier(tiny_model, template="<|endoftext|>{text}").encode("a")[0][0])


def test_what_examples_share_is_computed_once(
    tiny_model: pocketlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = classifier(tiny_model, examples=[("house", "other"), ("story", "rain and")])
    fed = []
    step = tiny_model.session.step

    def counted(ids: list[int], *others: object) -> object:
        fed.append(len(ids))
        return step(ids, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny_model.session, "step", counted)
    for text in ("went", "there"):
        one.classify(text)
    shared, *own = fed
    assert shared > 30
    assert len(own) == 2 and max(own) < 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": []}, "labels is empty, expected at least two labels"),
        ({"labels": ["a"]}, "labels is 'a', expected at least two labels"),
        ({"labels": "ab"}, "labels is 'ab', expected a sequence of strings"),
        ({"labels": ["a", 1]}, r"labels is \['a', 1\], expected a sequence of strings"),
        ({"labels": ["a", "b", "a"]}, "found the label 'a' twice, expected each label once"),
        ({"labels": ["a", " "]}, "found the label ' ', expected text"),
        ({"labels": ["a", ""]}, "found the label '', expected text"),
        ({"template": "what:"}, r"template is 'what:', expected \{text\} in it"),
        ({"template": "{text} {txt}:"}, r"found \{txt\} in it, expected \{text\}; correct the wo"),
        ({"template": "{label} {text}"}, r"expected \{label\} at its end, or not at all"),
        ({"examples": [("a", "sun")]}, "found the example label 'sun', expected other, rain and"),
    ],
)
def test_labels_and_templates_that_cannot_be_are_refused(
    tiny_model: pocketlm.Model, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        classifier(tiny_model, **options)


@pytest.mark.parametrize("labels", [["ab", "abab"], ["b", "zz", "ba", "b c"]])
def test_a_label_whose_tokens_begin_another_is_refused(
    tiny_model: pocketlm.Model, labels: list[str]
) -> None:
    with pytest.raises(RequestError, match=r"found the label '\w+', which begins the label '.*en"):
        classifier(tiny_model, labels=labels)
    ended = [f"{label}." for label in labels]
    assert classifier(tiny_model, labels=ended).labels == tuple(ended)


def test_a_text_that_does_not_fit_is_refused_with_its_tokens(tiny_model: pocketlm.Model) -> None:
    with pytest.raises(RequestError, match=r"the context has 207 tokens and the continuation \d"):
        classifier(tiny_model).classify("z" * 200)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"labels": None}, "labels is None, expected a sequence of strings"),
        ({"labels": 5}, "labels is 5, expected a sequence of strings"),
        ({"template": 3}, "template is 3 of type int, expected a string"),
        ({"examples": ["xy"]}, "found the example 'xy', expected a text and its label"),
        ({"examples": [(1, "other")]}, "found the example .*, expected a text and its label"),
        (
            {"examples": [("a", "other", "b")]},
            "found the example .*, expected a text and its label",
        ),
    ],
)
def test_other_types_are_refused(
    tiny_model: pocketlm.Model, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        classifier(tiny_model, **options)
    with pytest.raises(RequestError, match="text is 3 of type int, expected a string"):
        classifier(tiny_model).classify(3)  # type: ignore[arg-type]
