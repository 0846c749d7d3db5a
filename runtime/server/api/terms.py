"""What a body says of its answer as a whole: how many texts after which prompts, told how.

Fields that contradict each other are refused here, before a model is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ... import openai_form
from ..errors import ApiError
from .bodies import Chat, Completion, Sampling, fields_of

# What a search for the likeliest texts takes.
OF_BEAMS = {"beams", "length_penalty", "n", "max_tokens", "max_completion_tokens", "ignore_eos"}
OF_BEAMS |= {"prompt", "messages", "echo", "details", *openai_form.WITHOUT_EFFECT}


@dataclass(frozen=True)
class Terms:
    """What a body says of the answer as a whole.

    prompts      of a completion; None is a conversation
    kept         texts that are told of each prompt
    computed     texts that are generated after each
    max_seconds  that each may take; None: any
    """

    prompts: Sequence[Any]
    kept: int
    computed: int
    max_seconds: float | None = None
    beams: int | None = None
    length_penalty: float = 1.0
    echo: bool = False
    scores_only: bool = False

    @property
    def num_texts(self) -> int:
        """That there must be room for."""
        return len(self.prompts) * self.computed

    @property
    def most_by(self) -> str:
        """The field that asks for most of them."""
        if len(self.prompts) > self.computed:
            return "prompt"
        if self.beams is not None:
            return "beams"
        return "best_of" if self.computed > self.kept else "n"

    @staticmethod
    def of(body: Completion | Chat, most_seconds: float | None = None) -> Terms:
        """Of ``body``, where a text may take ``most_seconds``.

        Raises ApiError (400) for fields that contradict each other.
        """
        given = fields_of(body)
        _check_stream(body)
        kept = body.n or 1
        if isinstance(body, Chat):
            prompts, computed = [None], kept
        else:
            _check_suffix(body.suffix)
            prompts, computed = _prompts(body.prompt), _best_of(body, kept)
        if body.beams is not None:
            _check_beams(body.beams, kept, given)
            computed = body.beams
        elif body.length_penalty is not None:
            raise _apart("length_penalty", "without beams, expected both; add beams")
        return Terms(
            prompts,
            kept,
            computed,
            _least(body.max_seconds, most_seconds),
            body.beams,
            1.0 if body.length_penalty is None else body.length_penalty,
            echo=bool(given.get("echo")),
            scores_only=body.max_tokens == 0,
        )


def _prompts(prompt: Any) -> list[Any]:
    """One or several; a list of token ids is one. Raises ApiError for ids among prompts."""
    if not isinstance(prompt, list):
        return [prompt or ""]
    of_ids = {kind is int for kind in set(map(type, prompt))}  # a million take milliseconds
    if len(of_ids) > 1:
        raise ApiError(
            400,
            "prompt has token ids beside prompts, expected a text, token ids, or a list of several "
            "of either; put the ids into a list of their own",
            param="prompt",
        )
    return prompt if of_ids == {False} else [prompt]


def _least(*bounds: float | None) -> float | None:
    """Of several, of which None is none."""
    return min((bound for bound in bounds if bound is not None), default=None)


def _best_of(body: Completion, kept: int) -> int:
    asked = body.best_of or kept
    if asked < kept:
        raise ApiError(
            400,
            f"best_of is {asked}, expected at least n, which is {kept}; raise it, or lower n",
            param="best_of",
        )
    if asked > kept and body.stream:
        raise _apart(
            "best_of",
            "with stream, expected one of them: which texts are the best is "
            "known when all have ended; leave one out",
        )
    return asked


def _check_stream(body: Sampling) -> None:
    if body.stream_options is not None and not body.stream:
        raise _apart("stream_options", "without stream, expected both; add stream, or leave it out")


def _check_suffix(suffix: str | None) -> None:
    if suffix:
        raise _apart(
            "suffix",
            "in the body, expected none: these models go on with a text and fill no gap; leave it "
            "out",
        )


def _check_beams(beams: int, kept: int, given: dict[str, Any]) -> None:
    others = [name for name, value in given.items() if name not in OF_BEAMS and value is not False]
    if others:
        raise _apart(
            others[0],
            "with beams, expected none: the likeliest texts are not sampled, and are known when "
            "all have ended; leave one out",
        )
    if kept > beams:
        raise ApiError(
            400,
            f"beams is {beams}, expected at least n, which is {kept}; raise it, or lower n",
            param="beams",
        )


def _apart(name: str, rest: str) -> ApiError:
    """For a field that cannot be beside another one, or not be without it."""
    return ApiError(400, f"found {name} {rest}", param=name)
