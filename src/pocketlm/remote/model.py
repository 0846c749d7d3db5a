"""A model of a server, with the verbs of ``Model`` that the command line uses.

Everything beyond a text's characters comes from fields that a server of ours adds where a request
says "details": the tokens, what ended the text, what it took. Of another server there is the text.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pocketlm.export.errors import RequestError
from pocketlm.remote.server import Answer, Server, ServerError
from pocketlm.runtime.beams import Beam, check_beams
from pocketlm.runtime.circumstances import Circumstances
from pocketlm.runtime.model import Model
from pocketlm.runtime.openai_form import CHAT, COMPLETION, OPTIONS
from pocketlm.runtime.requests import check_number_of_texts, check_options
from pocketlm.runtime.sequence import Step
from pocketlm.runtime.text import Piece, Result, Timings
from pocketlm.streams import printable

# What nobody needs to say. How many tokens there may be is told in any case: servers differ there.
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(Model.stream).parameters.items()
    if name != "max_tokens"
}
TEMPLATE_FIELD = "chat_template_kwargs"  # our template_args
NOTHING: tuple[Any, ...] = (None, (), [], {}, math.inf)  # an endless time is no limit

Got = TypeVar("Got")


@dataclass(frozen=True)
class Conversation:
    """Messages for the server's chat template."""

    messages: Sequence[Mapping[str, Any]]
    template_args: Mapping[str, Any]
    transcript: bool = False


class RemoteModel:
    """The model ``name`` of ``server``; a ``Writer``.

    context_length  most tokens of prompt and text, 0 until the server has told it
    has_template    whether it has a chat template, as far as the server tells
    """

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        told = server.told_of(name) if server.is_ours else {}
        length = told.get("context_length")
        self.context_length = length if isinstance(length, int) else 0
        self.has_template = told.get("chat") is not False
        self._circumstances: Circumstances | None = None
        self._spelled: dict[int, str] = {}

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_args: Mapping[str, Any],
        transcript: bool = False,
    ) -> Conversation:
        """What ``stream`` takes for a prompt. RequestError for a base model without a script."""
        if not (self.has_template or transcript):
            raise RequestError(
                f"{self.path}: found no chat template, expected one to chat by: this is a base "
                "model, which continues a text; leave --chat out, or talk to it with: pocketlm chat"
            )
        return Conversation(messages, template_args, transcript)

    def num_tokens(self, prompt: Conversation) -> int:
        """Of a server of ours; 0 for what another has no word for."""
        if not self.server.is_ours:
            return 0
        answer = self._ask("/tokenize", {"model": self.name} | _prompt_fields(prompt))
        whole = answer.whole()
        return read(answer, lambda: int(number(whole["count"])))

    def check(self, prompt: Any, **options: Any) -> None:
        """Raises what ``stream`` does. Another server than ours is not asked, for that costs."""
        if self.server.is_ours:
            self._begun(prompt, options).close()
        else:
            self._body(prompt, options)

    @property
    def path(self) -> str:
        """Where the server tells of it."""
        return f"{self.server}/v1/models/{self.name}"

    def tell_lost(self, text: str, name: str) -> None:
        """Nothing: only the server has the tokenizer."""

    @property
    def circumstances(self) -> Circumstances:
        """What the server told with the last text."""
        assert self._circumstances is not None
        return self._circumstances

    @property
    def is_known(self) -> bool:
        """Whether it has told that."""
        return self._circumstances is not None

    def learn(self, told: Mapping[str, Any]) -> None:
        """Takes what is told of the model; KeyError where something is not there."""
        note, fallback = told["prefill_note"], told["fallback"]
        self.context_length = int(number(told["context_length"]))
        self._circumstances = Circumstances(
            path=self.path,
            architecture=shown(told["architecture"]),
            precision=shown(told["precision"]),
            load_seconds=number(told["load_seconds"]),
            threads=int(number(told["threads"])),
            provider=shown(told["provider"]),
            kv=shown(told["kv"]),
            prefill=shown(told["prefill"]),
            prefill_note=None if note is None else shown(note),
            fallback=None if fallback is None else shown(fallback),
            peak_rss_bytes=int(number(told["peak_rss_bytes"])),
        )

    def spelled(self, token: int) -> str:
        """The text of a token that was told, "" for what is none by itself."""
        return self._spelled.get(token, "")

    def stream(self, prompt: Any, **options: Any) -> RemoteStream:
        """A text as it comes; the options of ``Model.stream``, and "draft" a name.

        The request is sent, and the answer has begun. Raises RequestError, before anything is sent
        for options that no model takes, and ServerError.
        """
        return RemoteStream(self, self._begun(prompt, options), options.get("logprobs"))

    def completions(self, prompt: Any, n: int, **options: Any) -> list[Result]:
        """``n`` texts after one prompt; raises what ``stream`` does."""
        body = self._body(prompt, options) | {"n": check_number_of_texts(n)}
        answer = self._ask(_path(prompt), body)
        whole = answer.whole()
        return read(answer, partial(self._results, whole, options.get("logprobs")))

    def beams(self, prompt: Any, beams: int, **options: Any) -> list[Beam]:
        """The likeliest texts that the server finds; raises what ``stream`` does."""
        width = check_beams(beams, options.get("length_penalty", 1.0))
        body = self._body(prompt, options) | {"beams": width, "n": width}
        answer = self._ask(_path(prompt), body)
        whole = answer.whole()
        return read(answer, partial(self._beams, whole))

    def _begun(self, prompt: Any, options: Mapping[str, Any]) -> Answer:
        """The answer of ``stream``."""
        body = self._body(prompt, options) | {"stream": True}
        if not self.server.is_ours:
            body["stream_options"] = {"include_usage": True}
        return self._ask(_path(prompt), body)

    def _ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        try:
            return self.server.ask("POST", path, body)
        except RequestError as error:
            message = str(error).replace(TEMPLATE_FIELD, "template_args")
            raise type(error)(message) from error

    def _body(self, prompt: Any, options: Mapping[str, Any]) -> dict[str, Any]:
        check_options(**{name: options[name] for name in OPTIONS & options.keys()})
        body: dict[str, Any] = {"model": self.name} | _prompt_fields(prompt)
        for name, value in options.items():
            if value not in NOTHING and value != DEFAULTS.get(name):
                body[name] = value
        asked = body.get("logprobs")
        if asked is not None and isinstance(prompt, Conversation):
            body |= {"logprobs": True, "top_logprobs": asked}
        if self.server.is_ours:
            body["details"] = True
        return body

    def _results(self, whole: Any, logprobs: int | None) -> list[Result]:
        ordered = sorted(whole["choices"], key=lambda choice: choice["index"])
        if not self.server.is_ours:
            return [
                Result(text_of(choice), [], choice["finish_reason"], Timings(), None, index=index)
                for index, choice in enumerate(ordered)
            ]
        self.learn(whole["details"]["model"])
        ends = whole["details"]["choices"]
        return [
            result_of(
                text_of(choice),
                self.steps(choice),
                shown(end["finish_reason"]),
                timings_of(end["timings"]),
                logprobs,
                index,
            )
            for index, (choice, end) in enumerate(zip(ordered, ends, strict=True))
        ]

    def _beams(self, whole: Any) -> list[Beam]:
        ends = whole["details"]["choices"]
        return [
            Beam(
                token_ids=tuple(step.token for step in self.steps(choice)),
                logprob=number(end["logprob"]),
                score=number(end["score"]),
                finish_reason=shown(end["finish_reason"]),
                text=text_of(choice),
            )
            for choice, end in zip(whole["choices"], ends, strict=True)
        ]

    def steps(self, choice: Mapping[str, Any]) -> list[Step]:
        """The tokens of a choice."""
        found = []
        for token in choice.get("tokens") or ():
            top = token.get("top") or ()
            self._spelled |= {int(one["id"]): str(one["text"]) for one in (token, *top)}
            pairs = tuple((int(one["id"]), number(one["logprob"])) for one in top)
            logprob = token["logprob"]
            if logprob is not None:
                logprob = number(logprob)
            found.append(Step(int(token["id"]), logprob, 0.0, top=pairs))
        return found


class RemoteStream:
    """A text that a server generates, as ``TextStream``.

    finish_reason   what ended it; None while it goes on
    timings         seconds and rates that the server measured; all there at the end
    prompt_cache    None: a server has no file of its clients
    """

    prompt_cache = None

    def __init__(self, model: RemoteModel, answer: Answer, logprobs: int | None) -> None:
        self.finish_reason: str | None = None
        self.timings = Timings()
        self._model = model
        self._answer = answer
        self._logprobs = logprobs
        self._cancelled = False

    def cancel(self) -> None:
        """Ends it, as the handler of a signal may while it is waited for."""
        self._cancelled = True
        self._answer.cut()

    def __iter__(self) -> Iterator[Piece]:
        try:
            for event in self._answer.events():
                piece = read(self._answer, partial(self._piece, event))
                if piece is not None:
                    yield piece
        except ServerError:  # what has been cut breaks
            if not self._cancelled:
                raise
        if self._cancelled:
            self.finish_reason = self.finish_reason or "cancelled"
        elif self._model.server.is_ours and not self._model.is_known:
            raise self._answer.unknown("the field details at its end")

    def _piece(self, event: Mapping[str, Any]) -> Piece | None:
        if (details := event.get("details")) is not None:
            (end,) = details["choices"]
            self.finish_reason = shown(end["finish_reason"])
            self.timings = timings_of(end["timings"])
            self._model.learn(details["model"])
        elif usage := event.get("usage"):
            self.timings.prompt_tokens = int(usage["prompt_tokens"])
            self.timings.new_tokens = int(usage["completion_tokens"])
        for choice in event["choices"][:1]:
            self.finish_reason = self.finish_reason or choice.get("finish_reason")
            text, steps = text_of(choice), tuple(self._model.steps(choice))
            if text or steps:
                return Piece(text, steps)
        return None

    def result_of(self, pieces: Iterable[Piece]) -> Result:
        """The whole, of all its pieces."""
        pieces = list(pieces)
        return result_of(
            "".join(piece.text for piece in pieces),
            [step for piece in pieces for step in piece.steps],
            str(self.finish_reason),
            self.timings,
            self._logprobs,
        )


def result_of(
    text: str,
    steps: Sequence[Step],
    finish_reason: str,
    timings: Timings,
    logprobs: int | None,
    index: int = 0,
) -> Result:
    """A result as the engine makes it, where ``logprobs`` were asked for or not."""
    known = [step.logprob for step in steps if step.logprob is not None]
    return Result(
        text=text,
        token_ids=[step.token for step in steps],
        finish_reason=finish_reason,
        timings=timings,
        logprobs=None if logprobs is None else known,
        tops=[step.top for step in steps] if logprobs else None,
        index=index,
    )


def shown(told: Any) -> str:
    """A word as it may be shown: a server does not drive a terminal."""
    return printable(str(told))


def number(told: Any) -> float:
    """A number that can be reckoned with; TypeError and ValueError for what is none."""
    found = float(told)
    if not math.isfinite(found):
        raise ValueError(f"found the number {told}")
    return found


def text_of(choice: Mapping[str, Any]) -> str:
    """Of a completion, a chat, or a piece of one."""
    if "text" in choice:
        return str(choice["text"] or "")
    said = choice.get("delta") or choice.get("message") or {}
    return str(said.get("content") or "")


def timings_of(told: Mapping[str, Any]) -> Timings:
    """What the server measured."""
    found = Timings()
    for name, none in vars(found).items():
        setattr(found, name, type(none)(number(told[name])))
    return found


def read(answer: Answer, make: Callable[[], Got]) -> Got:
    """What ``make`` makes of an answer; ServerError for one that has not what is expected."""
    try:
        return make()
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise answer.unknown("its fields, and those of details") from error


def _prompt_fields(prompt: Any) -> dict[str, Any]:
    if not isinstance(prompt, Conversation):
        return {"prompt": prompt}
    fields: dict[str, Any] = {"messages": prompt.messages}
    if prompt.template_args:
        fields[TEMPLATE_FIELD] = prompt.template_args
    if prompt.transcript:
        fields["transcript"] = True
    return fields


def _path(prompt: Any) -> str:
    return CHAT if isinstance(prompt, Conversation) else COMPLETION
