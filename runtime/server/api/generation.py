"""A body becomes what is to be generated: prompts, and a job for every text that follows one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ... import openai_form
from ...cancellation import Cancellation, Cancelled
from ...logprobs import TopLogprobs
from ...model import Model
from ...openai_form import Echo, OpenAIRequest
from ...request import Request, checked_logprobs
from ...scheduler import Job, Listener
from ...scoring import Scorer, TextLogprobs
from ...sequence import Step
from ...text import Result, Timings
from ...tool_forms import Form as CallForm
from ..errors import ApiError
from ..models.alone import AloneJob
from ..models.engine import MakeJob
from .bodies import Chat, Completion, Sampling, fields_of
from .conversation import read_conversation
from .terms import Terms

MOST_ALTERNATIVES = 500_000  # of the tokens of one answer: about 30 MB of JSON
# What a token that has alternatives takes until it has been written, and each: ``TopLogprobs``.
TOKEN_BYTES, ALTERNATIVE_BYTES = 500, 12
# With which a text runs alone.
ALONE = ("lookup", "draft", "reproducible")
# Decided here, and not by the model.
OURS = {"stream", "stream_options", "n", "best_of", "echo", "suffix", "details", *ALONE}
OURS |= {"beams", "length_penalty"}
OF_CHATS = {"tools", "tool_choice", "parallel_tool_calls", "transcript", "chat_template_kwargs"}


@dataclass(frozen=True)
class Generation:
    """What is to be generated.

    form        the body, as ``openai_form`` reads it
    prompts     as ``Model.request`` takes them
    requests    one of each prompt
    makers      of the jobs of all texts, those of one prompt after the other
    echoes      of each prompt, its text if it is to be told
    calls       how calls of functions are written, where there may be any
    answer_bytes  that the alternatives to its tokens may take until they have been written
    """

    form: OpenAIRequest
    prompts: Sequence[Any]
    requests: Sequence[Request]
    makers: Sequence[MakeJob]
    echoes: Sequence[Echo]
    calls: CallForm | None = None
    answer_bytes: int = 0

    @property
    def logprobs(self) -> int | None:
        """That the answer tells, see ``Request``."""
        found: Any = self.form.options.get("logprobs")
        return checked_logprobs(found)


def make_generation(
    model: Model, body: Completion | Chat, terms: Terms, draft: Model | None
) -> Generation:
    """May take its time: it tokenizes, renders and compiles. Raises RequestError and ApiError."""
    generation = _generation(model, body, terms, draft)
    top, field = generation.logprobs or 0, "top_logprobs" if isinstance(body, Chat) else "logprobs"
    num_tokens = _num_held(model, generation, terms, streams=bool(body.stream))
    return replace(generation, answer_bytes=bytes_of_alternatives(num_tokens, top, field))


def _num_held(model: Model, generation: Generation, terms: Terms, *, streams: bool) -> int:
    """The tokens that the answer may have to hold at once: of a stream those of its echoes."""
    context = model.session.shape.context_length
    prompts = [len(request.prompt_ids) for request in generation.requests]
    count = sum(prompts) * terms.kept if terms.echo else 0
    if not streams:
        for request, length in zip(generation.requests, prompts, strict=True):
            slides = request.context == "slide"
            new = request.max_tokens if slides else min(request.max_tokens, context - length)
            count += max(0, new) * terms.computed
    return count


def _generation(
    model: Model, body: Completion | Chat, terms: Terms, draft: Model | None
) -> Generation:
    given = {name: value for name, value in fields_of(body).items() if name not in OURS}
    if terms.max_seconds is not None:
        given["max_seconds"] = terms.max_seconds
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
    return Generation(form, prompts, requests, makers, echoes)


def _of_chat(
    model: Model, body: Chat, terms: Terms, given: Mapping[str, Any], draft: Model | None
) -> Generation:
    given = {name: value for name, value in given.items() if name not in OF_CHATS}
    found = read_conversation(model, body, given)
    prompts, requests = [found.prompt], [found.request(model)]
    makers = _makers(model, body, terms, found.form, prompts, requests, draft)
    return Generation(found.form, prompts, requests, makers, [Echo()], found.calls)


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
                stream = model.stream(prompt, **options, **alone)
                found.append(partial(AloneJob, seeded, stream, model.tokenizer))
            else:
                found.append(partial(_together, model, seeded))
    return found


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


def scored_echoes(model: Model, generation: Generation, cancellation: Cancellation) -> list[Echo]:
    """The echoes with the logprobs of their tokens.

    Raises RequestError for a prompt longer than the context, and Cancelled between two.
    """
    scorer = Scorer(model.session)
    top = generation.logprobs or 0
    found = []
    for echo, request in zip(generation.echoes, generation.requests, strict=True):
        if cancellation.cancelled:
            raise Cancelled
        first, *others = request.prompt_ids
        steps = [Step(first, None, 0.0)]
        if others:
            steps += scored_steps(scorer.logprobs([first], others, top))
        found.append(replace(echo, steps=steps))
    return found


def bytes_of_alternatives(num_tokens: int, top: int, field: str) -> int:
    """That the ``top`` alternatives to each of so many take until they have been written.

    Raises ApiError (400), about the ``field`` that asks for them, for more than one answer is to
    hold.
    """
    if num_tokens * top > MOST_ALTERNATIVES:
        raise ApiError(
            400,
            f"found {num_tokens} tokens to be told, with {top} alternatives each, expected at most "
            f"{MOST_ALTERNATIVES:,} alternatives in all; ask for fewer, or for fewer tokens",
            param=field,
        )
    return num_tokens * (TOKEN_BYTES + top * ALTERNATIVE_BYTES) if top else 0


def scored_steps(scores: TextLogprobs) -> list[Step]:
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


def search_beams(
    model: Model, generation: Generation, terms: Terms, cancellation: Cancellation
) -> list[BeamResult]:
    """The likeliest texts after each prompt, the best first, all that were asked to be followed."""
    found = []
    for prompt, request in zip(generation.prompts, generation.requests, strict=True):
        beams = model.beams(
            prompt,
            terms.computed,
            length_penalty=terms.length_penalty,
            max_tokens=request.max_tokens,
            ignore_eos=bool(generation.form.options.get("ignore_eos")),
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
