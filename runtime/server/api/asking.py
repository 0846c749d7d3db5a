"""A body becomes what is to be computed: prompts, and a job for every text that follows one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ....export.errors import RequestError
from ... import openai_form
from ...cancellation import Cancellation, Cancelled
from ...logprobs import TopLogprobs
from ...model import Model
from ...openai_form import Echo, OpenAIRequest
from ...request import Request, checked_logprobs
from ...scheduler import Job, Listener
from ...scoring import Scorer, TextLogprobs
from ...sequence import Step
from ...text import Result, TextStream, Timings
from ...tool_forms import Form as CallForm
from ..errors import ApiError
from ..models.alone import AloneJob
from ..models.engine import MakeJob
from .bodies import Chat, Completion, Sampling, fields_of
from .conversation import read_conversation

MOST_ALTERNATIVES = 500_000  # of the tokens of one answer: about 30 MB of JSON
ALTERNATIVE_BYTES = 12  # that each takes until it has been written, see ``TopLogprobs``
# With which a text runs alone.
ALONE = ("lookup", "draft", "reproducible")
# Decided here, and not by the model.
OURS = {"stream", "stream_options", "n", "best_of", "echo", "suffix", "details", *ALONE}
OURS |= {"beams", "length_penalty"}
OF_CHATS = {"tools", "tool_choice", "parallel_tool_calls", "transcript", "chat_template_kwargs"}
# What a search for the likeliest texts takes.
OF_BEAMS = {"beams", "length_penalty", "n", "max_tokens", "max_completion_tokens", "ignore_eos"}
OF_BEAMS |= {"prompt", "messages", "echo", "details", *openai_form.WITHOUT_EFFECT}


@dataclass(frozen=True)
class Terms:
    """What a body says of the answer as a whole.

    prompts     of a completion; None is a conversation
    kept        texts that are told of each prompt
    computed    texts that are generated after each
    """

    prompts: Sequence[Any]
    kept: int
    computed: int
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
    def of(body: Completion | Chat) -> Terms:
        """Raises ApiError (400) for fields that contradict each other."""
        given = fields_of(body)
        _check_stream(body)
        kept = body.n or 1
        if isinstance(body, Chat):
            prompts, computed = [None], kept
        else:
            _check_suffix(body.suffix)
            prompts, computed = prompts_in(body.prompt), _best_of(body, kept)
        if body.beams is not None:
            _check_beams(body.beams, kept, given)
            computed = body.beams
        elif body.length_penalty is not None:
            raise _apart("length_penalty", "without beams, expected both; add beams")
        return Terms(
            prompts,
            kept,
            computed,
            body.beams,
            1.0 if body.length_penalty is None else body.length_penalty,
            echo=bool(given.get("echo")),
            scores_only=body.max_tokens == 0,
        )


@dataclass(frozen=True)
class Asked:
    """What is to be computed.

    form        the body, as ``openai_form`` reads it
    prompts     as ``Model.request`` takes them
    requests    one of each prompt
    makers      of the jobs of all texts, those of one prompt after the other
    echoes      of each prompt, its text if it is to be told
    calls       how calls of functions are written, where there may be any
    bytes_told  that the alternatives to its tokens may take until they have been written
    """

    form: OpenAIRequest
    prompts: Sequence[Any]
    requests: Sequence[Request]
    makers: Sequence[MakeJob]
    echoes: Sequence[Echo]
    calls: CallForm | None = None
    bytes_told: int = 0

    @property
    def logprobs(self) -> int | None:
        """That the answer tells, see ``Request``."""
        found: Any = self.form.options.get("logprobs")
        return checked_logprobs(found)


def make_asked(model: Model, body: Completion | Chat, terms: Terms, draft: Model | None) -> Asked:
    """May take its time: it tokenizes, renders and compiles. Raises RequestError and ApiError."""
    asked = _asked(model, body, terms, draft)
    return with_told(model, asked, terms, told_as_they_come=bool(body.stream))


def with_told(
    model: Model, asked: Asked, terms: Terms, *, told_as_they_come: bool = False
) -> Asked:
    """``asked`` with its ``bytes_told``.

    Raises ApiError (400) for more alternatives than an answer may have to hold at once.
    """
    context = model.session.shape.context_length
    prompts = [len(request.prompt_ids) for request in asked.requests]
    count = sum(prompts) * terms.kept if terms.echo else 0
    if not told_as_they_come:
        for request, length in zip(asked.requests, prompts, strict=True):
            slides = request.context == "slide"
            new = request.max_tokens if slides else min(request.max_tokens, context - length)
            count += max(0, new) * terms.computed
    return replace(asked, bytes_told=bytes_of_alternatives(count, asked.logprobs or 0))


def _asked(model: Model, body: Completion | Chat, terms: Terms, draft: Model | None) -> Asked:
    given = {name: value for name, value in fields_of(body).items() if name not in OURS}
    if isinstance(body, Chat):
        return _of_chat(model, body, terms, given, draft)
    if terms.scores_only:
        given["max_tokens"] = 1  # of which none is generated
    given["prompt"] = ""  # there may be several
    form = openai_form.read_request(openai_form.COMPLETION, given)
    prompts = terms.prompts
    requests = [model.request(prompt, **form.options) for prompt in prompts]
    if terms.computed > terms.kept and form.options.get("logprobs") is None:
        requests = [replace(request, logprobs=0) for request in requests]
    echoes = [Echo(_text(model, prompt)) if terms.echo else Echo() for prompt in prompts]
    makers = _makers(model, body, terms, form, prompts, requests, draft)
    return Asked(form, prompts, requests, makers, echoes)


def _of_chat(
    model: Model, body: Chat, terms: Terms, given: Mapping[str, Any], draft: Model | None
) -> Asked:
    given = {name: value for name, value in given.items() if name not in OF_CHATS}
    found = read_conversation(model, body, given)
    prompts, requests = [found.prompt], [found.request(model)]
    makers = _makers(model, body, terms, found.form, prompts, requests, draft)
    return Asked(found.form, prompts, requests, makers, [Echo()], found.calls)


def prompts_in(prompt: Any) -> list[Any]:
    """One or several; a list of token ids is one. Raises ApiError for ids among prompts."""
    if not isinstance(prompt, list):
        return [prompt or ""]
    of_ids = {isinstance(part, int) for part in prompt}
    if len(of_ids) > 1:
        raise ApiError(
            400,
            "prompt has token ids beside prompts, expected a text, token ids, or a list of several "
            "of either; put the ids into a list of their own",
            param="prompt",
        )
    return prompt if of_ids == {False} else [prompt]


def _makers(
    model: Model,
    body: Sampling,
    terms: Terms,
    form: OpenAIRequest,
    prompts: Sequence[Any],
    requests: Sequence[Request],
    draft: Model | None,
) -> list[MakeJob]:
    """Of all jobs; none for beams, which are found together."""
    if terms.beams is not None:
        return []
    alone = {name: given for name in ALONE if (given := getattr(body, name))}
    if draft is not None:
        alone["draft"] = draft
    found: list[MakeJob] = []
    for prompt, request in zip(prompts, requests, strict=True):
        for place in range(terms.computed):
            seeded = request.seeded(place)
            if terms.scores_only:
                found.append(partial(_ended, model, seeded))
            elif alone:
                options = {**form.options, "seed": seeded.sampling.seed}
                options |= {"logprobs": request.logprobs}
                stream = _streamed(model, prompt, options, alone)
                found.append(partial(AloneJob, seeded, stream, model.tokenizer))
            else:
                found.append(partial(_together, model, seeded))
    return found


def _streamed(
    model: Model, prompt: Any, options: dict[str, Any], alone: dict[str, Any]
) -> TextStream:
    try:
        return model.stream(prompt, **options, **alone)
    except RequestError as error:
        if not str(error).startswith("draft is"):
            raise
        raise ApiError(  # without the folders of the models
            400,
            "draft has other tokens than the model, expected the same; name a model with its "
            "tokenizer",
            param="draft",
        ) from error


def _together(model: Model, request: Request, listener: Listener) -> Job:
    """A text that is computed together with others."""
    return model.new_job(request, listener=listener)


def _ended(model: Model, request: Request, listener: Listener) -> Job:
    """A job of no tokens: the prompt is all that is looked at."""
    job = model.new_job(request, listener=listener)
    job.finish("length")
    return job


def _text(model: Model, prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return model.tokenizer.decode(prompt, skip_special_tokens=False)


def scored(model: Model, asked: Asked, cancellation: Cancellation) -> list[Echo]:
    """The echoes with the logprobs of their tokens.

    Raises RequestError for a prompt longer than the context, and Cancelled between two.
    """
    scorer = Scorer(model.session)
    top = asked.logprobs or 0
    found = []
    for echo, request in zip(asked.echoes, asked.requests, strict=True):
        if cancellation.cancelled:
            raise Cancelled
        first, *others = request.prompt_ids
        steps = [Step(first, None, 0.0)]
        if others:
            steps += steps_scored(scorer.logprobs([first], others, top))
        found.append(replace(echo, steps=steps))
    return found


def bytes_of_alternatives(num_tokens: int, top: int) -> int:
    """That the ``top`` alternatives to each of so many take until they have been written.

    Raises ApiError (400) for more than one answer is to hold.
    """
    if num_tokens * top > MOST_ALTERNATIVES:
        raise ApiError(
            400,
            f"found {num_tokens} tokens to be told, with {top} alternatives each, expected at most "
            f"{MOST_ALTERNATIVES:,} alternatives in all; ask for fewer, or for fewer tokens",
            param="logprobs",
        )
    return num_tokens * top * ALTERNATIVE_BYTES


def steps_scored(scores: TextLogprobs) -> list[Step]:
    """Tokens that were scored, as those of a text are told."""
    tops = map(TopLogprobs, scores.top_ids, scores.top_logprobs)
    return [
        Step(token, float(logprob), 0.0, top=top)
        for token, logprob, top in zip(scores.token_ids, scores.logprobs, tops, strict=True)
    ]


@dataclass(frozen=True)
class BeamResult(Result):
    """A text of a search for the likeliest, and what it was compared by: see ``Beam``."""

    logprob: float = 0.0
    score: float = 0.0


def beams_found(
    model: Model, asked: Asked, terms: Terms, cancellation: Cancellation
) -> list[BeamResult]:
    """The likeliest texts after each prompt, the best first, all that were asked to be followed."""
    found = []
    for prompt, request in zip(asked.prompts, asked.requests, strict=True):
        beams = model.beams(
            prompt,
            terms.computed,
            length_penalty=terms.length_penalty,
            max_tokens=request.max_tokens,
            ignore_eos=bool(asked.form.options.get("ignore_eos")),
            cancellation=cancellation,
        )
        for beam in beams:
            ids = list(beam.token_ids)
            timings = Timings(prompt_tokens=len(request.prompt_ids), new_tokens=len(ids))
            found.append(
                BeamResult(
                    *(beam.text, ids, beam.finish_reason, timings, None),
                    logprob=beam.logprob,
                    score=beam.score,
                )
            )
    return found


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
