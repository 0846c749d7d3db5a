r"""Which label fits a text: a text goes in, the probability of each label comes out.

A template says what is around the text. The prompt is the examples, if there are any, and the text,
each in the template; the label comes after it:

    Review: {text}\nSentiment:        ->  "Review: I loved it.\nSentiment:" + " positive"
    리뷰: {text}\n감정:{label}           ->  "리뷰: 좋아요.\n감정:" + "긍정"

The label is what follows a space, unless the template ends in whitespace or says by {label}, at its
end, where the label goes. Its probability is that of its whole text, all its tokens, made to sum to
1 over the labels:

    p_i = exp(s_i) / Σ_j exp(s_j),        s_i = Σ log p(token | those before it)

A model that prefers a label whatever the text is calibrated: q_i ∝ p_i / c_i, where c is p for a
text that says nothing, the empty one. Source: Zhao et al. 2021, "Calibrate Before Use", section 5
(arXiv 2102.09690): W = diag(c)^-1, b = 0 in their equation of q. Theirs is softmax(W p + b); here W
p is divided by its sum, so that a text that says nothing gets 1 / number of labels. Both name the
same label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.errors import RequestError
from ..export.strict_json import quoted
from ..export.whole_number import brief
from .placeholders import check_places, fill
from .quoted_texts import quoting
from .scoring import TextScorer, check_text
from .session import Session
from .shared_beginning import shared_beginning
from .tokenizer import Tokenizer

LABEL = "{label}"
BETWEEN = "\n\n"  # from one example to the next

Pairs = list[tuple[list[int], list[int]]]  # for each label the ids of the prompt and its own


@dataclass(frozen=True)
class LabelDistribution:
    """How likely each label is for one text.

    labels         in the order in which they were given
    probabilities  of each; they sum to 1
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str:
        """The likeliest; of equally likely ones the first."""
        return self.labels[self.probabilities.index(self.probability)]

    @property
    def probability(self) -> float:
        """The likeliest label's."""
        return max(self.probabilities)


class Classifier:
    """Tells which label fits a text; for one thread at a time. ``Model.classifier`` makes one.

        classifier = model.classifier(["positive", "negative"], "Review: {text}\\nSentiment:")
        found = classifier.classify("I loved it.")
        found.label, found.probability, found.probabilities

    What the prompts of two texts begin with alike, such as the examples, is computed once, and
    leaves no trace: a text's probabilities depend on nothing that was classified before.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        start_id: int | None,
        labels: Sequence[str],
        template: str,
        examples: Sequence[tuple[str, str]] = (),
        calibrate: bool = False,
    ) -> None:
        """``examples`` are texts and their labels; ``start_id`` is the token a text begins with.

        Raises RequestError for fewer than two labels, one that is there twice, of no text or the
        beginning of another; for a template without {text}; and for an example of another label.
        """
        self._tokenizer = tokenizer
        self.labels = checked_labels(labels)
        self.calibrate = calibrate
        self._before, self._gap = checked_template(template)
        for example in examples:
            _check_example(example)
        for _, label in examples:
            if label not in self.labels:
                raise RequestError(
                    f"found the example label {quoted(label)}, expected "
                    f"{', '.join(self.labels)}; correct it, or add it to the labels"
                )
        self._examples = "".join(
            f"{self._prompt(text)}{self._gap}{label}{BETWEEN}" for text, label in examples
        )
        self._scorer = TextScorer(session, tokenizer, start_id)
        prompt, other = (self.encode(text)[0][0] for text in ("a", "b"))
        # Even, as chunks are: what is fed apart then leaves the least trace.
        shared = shared_beginning(prompt, other) // 2 * 2
        if calibrate:
            self.encode("")
        self._scorer = TextScorer(session, tokenizer, start_id, prompt[:shared])

    def classify(self, text: str) -> LabelDistribution:
        """The distribution over the labels. Raises what ``encode`` does, and NumericsError."""
        logs = self._loglikelihoods(self.encode(text))
        if self.calibrate:
            logs = calibrated(logs, self._neutral)
        return LabelDistribution(self.labels, tuple(softmax(logs).tolist()))

    def encode(self, text: str) -> Pairs:
        """Token ids of prompt and label, for every label; runs nothing.

        A special token that ``text`` spells is read as that text.

        Raises RequestError for a text that is too long, or one after which a label has no token or
        is the beginning of another.
        """
        check_text("text", text)
        hide, encode = quoting(self._tokenizer, [text])
        prompt = self._examples + self._prompt(hide(text))
        pairs = [self._scorer.encode(prompt, self._gap + label, encode) for label in self.labels]
        _check_beginnings(self.labels, [ids for _, ids in pairs])
        return pairs

    def _prompt(self, text: str) -> str:
        return fill(self._before, {"text": text})

    def _loglikelihoods(self, pairs: Pairs) -> NDArray[np.float64]:
        return np.array([score.loglikelihood for score in self._scorer.score_pairs(pairs)])

    @cached_property
    def _neutral(self) -> NDArray[np.float64]:
        return self._loglikelihoods(self.encode(""))


def _check_example(example: Any) -> None:
    is_pair = isinstance(example, Sequence) and not isinstance(example, str) and len(example) == 2
    if not is_pair or not all(isinstance(text, str) for text in example):
        raise RequestError(
            f"found the example {brief(example)}, expected a text and its label; give pairs of "
            "strings"
        )


def softmax(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities that sum to 1, of their logarithms but for a common term."""
    weights = np.exp(logs - logs.max())
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def calibrated(logs: NDArray[np.float64], neutral: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of p_i / c_i, but for a common term, from those of p and c."""
    return logs - neutral


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """``labels``, if there can be such; else RequestError."""
    several = isinstance(labels, Iterable) and not isinstance(labels, str)
    if not several or not all(isinstance(label, str) for label in labels):
        raise RequestError(
            f"labels is {labels!r:.60}, expected a sequence of strings; put them in a list"
        )
    if len(labels) < 2:
        found = quoted(labels[0]) if labels else "empty"
        raise RequestError(
            f"labels is {found}, expected at least two labels; name all that there are to choose "
            "from"
        )
    for i, label in enumerate(labels):
        if not label.strip():
            raise RequestError(
                f"found the label {quoted(label)}, expected text; leave it out, or give it a name"
            )
        if label in labels[:i]:
            raise RequestError(
                f"found the label {quoted(label)} twice, expected each label once; leave one out"
            )
    return tuple(labels)


def checked_template(template: str) -> tuple[str, str]:
    """The template before the label, and what stands between the two; RequestError for none."""
    check_text("template", template)
    before = template.removesuffix(LABEL)
    if LABEL in before:
        raise RequestError(
            f"template is {quoted(template)}, expected {LABEL} at its end, or not at all; leave "
            "out what follows it"
        )
    check_places("template", before, ("text",))
    spaced = before != template or before[-1:].isspace()
    return before, "" if spaced else " "


def _check_beginnings(labels: Sequence[str], ids: Sequence[list[int]]) -> None:
    """Raises RequestError where the tokens of a label begin another's.

    The longer one could never be the likelier, since a model does not say where a label ends.
    """
    # Sorted, a label stands right before one that begins with it.
    for (first, short), (second, long) in pairwise(sorted(zip(ids, labels, strict=True))):
        if second[: len(first)] == first:
            raise RequestError(
                f"found the label {quoted(short)}, which begins the label {quoted(long)} (token "
                f"ids {first} and {second}), expected labels of which none begins another: the "
                "longer one could never win; rename one, or end each in the same way, as with a "
                "full stop"
            )
