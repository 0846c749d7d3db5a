"""``Model``: a model folder that is open; text goes in, text comes out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from ..export.errors import RequestError
from ..export.folder import ModelFolder
from ..export.memory import memory_errors
from ..export.whole_number import brief
from .banned_strings import BannedStrings, TokenTexts
from .cancellation import Cancellation
from .chat import (
    TRANSCRIPT_STOPS,
    ChatPrompt,
    Message,
    answer_end_ids,
    template_ids,
    transcript_ids,
)
from .chat_template import ChatTemplate
from .constraint import Vocabulary, make_grammar, one_form
from .generation_config import GenerationConfig
from .placement import open_session
from .request import Request
from .reuse import ReusableCache
from .sampling import SamplingOptions
from .stopping import stop_strings
from .text import (
    CHARACTERS_PER_TOKEN,
    TextStream,
    Timings,
    encoded,
)
from .tokenizer import Tokenizer

SAMPLING_NAMES = frozenset(field.name for field in fields(SamplingOptions))

# For a model that does not say: a little below its own distribution.
SAMPLING_DEFAULTS = {"temperature": 0.8, "top_p": 0.95}


@dataclass(frozen=True)
class Result:
    """A finished generation, as ``Model.generate`` returns it.

    text            what was generated, without the prompt and without a stop string
    token_ids       the new tokens; an end token, if that ended it, included
    finish_reason   what ended it:
                      "eos"        the model produced an end token, or a constraint lets nothing
                                   else follow
                      "stop"       a stop string appeared; neither it nor what follows is returned
                      "length"     ``max_tokens`` tokens were produced
                      "context"    the context length was reached
                      "cancelled"  ``cancel()`` was called, or the process is ending
    timings         seconds and rates: a ``Timings``
    logprobs        natural log of each token's probability; None unless asked for
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    timings: Timings
    logprobs: list[float] | None


class Model:
    """A model that is open: text goes in, text comes out. ``pocketlm.load`` makes one.

        model = pocketlm.load()
        for piece in model.stream("Once upon a time", max_tokens=20):
            print(piece.text, end="", flush=True)
        text = model.generate("Once upon a time", temperature=0, max_tokens=20).text

    ``stream`` and ``generate`` continue a text, ``chat`` answers messages; what they have in common
    is described at ``stream``. Threads may share a model: their steps take turns. Ctrl-C ends a
    generation of the main thread with KeyboardInterrupt; one in a daemon thread ends with the
    process.

    session             token ids to logits, the rung below: see ``session.step``
    tokenizer           ``encode`` and ``decode``
    folder              the model folder: its ``path``, ``manifest`` and ``shape``
    sampling_defaults   how tokens are chosen where a call does not say
    end_ids, start_id   the tokens with which a text ends, and begins if the prompt is empty
    fallback            why it is on the CPU although ONNX Runtime is built for CUDA, else None
    load_seconds        what opening it took
    """

    def __init__(
        self,
        folder: ModelFolder,
        threads: int | None = None,
        provider: str = "auto",
        kv: str = "auto",
    ) -> None:
        """Opens ``folder``; ``threads``, ``provider``, ``kv`` and errors are those of ``load``."""
        started = time.perf_counter()
        self.folder = folder
        with memory_errors(f"{folder.path}: opening it", folder.weights_bytes):
            folder.verify()
            self.tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
            self.session, self.fallback = open_session(folder, threads, provider, kv)
            config = GenerationConfig.read(folder.path / "generation_config.json")
        self.end_ids = config.end_ids
        self.start_id = config.start_id
        self.sampling_defaults = {**SAMPLING_DEFAULTS, **config.sampling}
        self._answer_end_ids: frozenset[int] | None = None  # asked of the template when needed
        self.load_seconds = time.perf_counter() - started

    def stream(
        self,
        prompt: str | Sequence[int] | ChatPrompt = "",
        *,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        penalty_window: int | None = None,
        no_repeat_ngram_size: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        banned_tokens: Sequence[int] | None = None,
        banned_strings: Sequence[str] | None = None,
        min_tokens: int = 0,
        seed: int | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
        stop: str | Sequence[str] | None = (),
        ignore_eos: bool = False,
        logprobs: bool | int = False,
        cancellation: Cancellation | None = None,
        cache: ReusableCache | None = None,
    ) -> TextStream:
        """Generates text after ``prompt``, piece by piece, as it comes.

        prompt              a string, a sequence of token ids, or what ``chat_prompt`` returns; an
                            empty one starts from the token a text begins with
        max_tokens          most tokens to generate
        temperature         0 takes the likeliest token (greedy); above it, the larger the wilder
        top_k               sample from the ``top_k`` likeliest tokens only
        top_p               from the likeliest that together reach this probability, up to 1
        min_p               from those with at least this share, 0 to 1, of the likeliest's
        typical_p           from those whose surprise is nearest to the expected one, that together
                            reach this probability, up to 1
        repetition_penalty  above 1 makes tokens that already appeared less likely
        frequency_penalty   taken from a token's logit for every time it was generated
        presence_penalty    taken once if it was generated; both -100 to 100, as OpenAI's
        penalty_window      the last so many tokens are all that these three penalties look at
        no_repeat_ngram_size  so many tokens in a row appear once only
        logit_bias          {token id: number}, added to its logit; -100 all but bans it
        banned_tokens       token ids that are never chosen
        banned_strings      strings that the output does not contain: no token is chosen that would
                            complete one
        min_tokens          no token that ends a text before so many were generated
        seed                an integer: the same one and the same settings give the same tokens on
                            one machine; None takes fresh randomness
        json_schema         a mapping, or its text: the output is JSON that satisfies this schema,
                            written as Python's ``json.dumps`` does
        regex               the output is matched by this regular expression as a whole
        choices             the output is one of these strings
        grammar             the output has the form that this Lark grammar says
        stop                a string, or several, before whose first appearance the text ends
        ignore_eos          go on after a token that ends a text
        logprobs            True: each step has the natural log of its token's probability, by the
                            model alone, before any option; a number, up to 100: in ``top`` those of
                            so many of the likeliest tokens in its place, too
        cancellation        a ``Cancellation``, to end it from another thread; ``cancel()`` of the
                            stream does the same
        cache               from ``new_cache``: what it holds of the prompt is not computed again

        How tokens are chosen is the model's own default where it is None: ``sampling_defaults``.
        Nothing runs before the first piece is asked for. Of the four forms of output one may be
        given; they need the extra "grammar". A text ends where its form is complete: with an end
        token where it could go on, else at once; one that ``max_tokens`` or a stop string cuts is
        a beginning only.

        Raises RequestError, before anything runs, for an argument out of range, a prompt longer
        than the context, or a form that is wrong or that no text satisfies; MissingExtraError for a
        form without the extra; ResourceError when memory runs out, and NumericsError for a model
        whose numbers are not finite.
        """
        request = self.request(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repetition_penalty=repetition_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            penalty_window=penalty_window,
            no_repeat_ngram_size=no_repeat_ngram_size,
            logit_bias=logit_bias,
            banned_tokens=banned_tokens,
            banned_strings=banned_strings,
            min_tokens=min_tokens,
            seed=seed,
            json_schema=json_schema,
            regex=regex,
            choices=choices,
            grammar=grammar,
            stop=stop,
            ignore_eos=ignore_eos,
            logprobs=logprobs,
        )
        return TextStream(self.session, self.tokenizer, request, cancellation, cache)

    def request(
        self,
        prompt: str | Sequence[int] | ChatPrompt = "",
        *,
        max_tokens: int = 256,
        banned_strings: Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
        stop: str | Sequence[str] | None = (),
        ignore_eos: bool = False,
        logprobs: bool | int = False,
        **sampling: Any,
    ) -> Request:
        """A request of the options of ``stream``, to be run by ``generate_many``.

        Raises RequestError for an argument out of range, a prompt longer than the context, or a
        form that is wrong; MissingExtraError for a form without the extra "grammar".
        """
        chat = prompt if isinstance(prompt, ChatPrompt) else ChatPrompt([])
        if not isinstance(ignore_eos, bool | np.bool_):
            raise RequestError(
                f"ignore_eos is {brief(ignore_eos)}, expected True or False: a truth value, no "
                "number; leave it out for False"
            )
        unknown = [name for name in sampling if name not in SAMPLING_NAMES]
        if unknown:
            raise RequestError(
                f"found the option {unknown[0]!r:.40}, expected one of those of Model.stream"
            )
        chosen = {name: value for name, value in sampling.items() if value is not None}
        forms: dict[str, Any] = {
            "json_schema": json_schema,
            "regex": regex,
            "choices": choices,
            "grammar": grammar,
        }
        return Request(
            encoded(
                self.tokenizer,
                prompt.token_ids if isinstance(prompt, ChatPrompt) else prompt,
                self.start_id,
                self.session.shape,
            ),
            sampling=SamplingOptions(**{**self.sampling_defaults, **chosen}),
            max_tokens=max_tokens,
            end_ids=frozenset() if ignore_eos else self.end_ids | chat.end_ids,
            grammar=make_grammar(self._vocabulary, **forms) if one_form(**forms) else None,
            banned=None
            if banned_strings is None
            else BannedStrings(self._token_texts, banned_strings),
            stop=stop_strings(stop, chat.stop),
            logprobs=logprobs,
        )

    @cached_property
    def _token_texts(self) -> TokenTexts:
        return TokenTexts(self.tokenizer.all_bytes(self.session.shape.vocab_size))

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        """The tokens as a constraint sees them. Raises MissingExtraError without llguidance."""
        return Vocabulary(self.tokenizer, self.session.shape.vocab_size)

    def chat(
        self, messages: Sequence[Message], *, transcript: bool = False, **options: Any
    ) -> TextStream:
        """Answers ``messages``, piece by piece; takes the options of ``stream``.

        A message is {"role": "system", "user" or "assistant", "content": text}; roles and their
        order are up to the model's chat template. A base model has none: ``transcript=True`` gives
        it the conversation as a script to go on with. Nothing is remembered: give the whole
        conversation each time, and a ``cache``, if it goes on, so that only what is new is
        computed.

            cache = model.new_cache()
            messages = [{"role": "user", "content": "Why is the sky blue?"}]
            stream = model.chat(messages, transcript=True, cache=cache, max_tokens=20)
            answer = "".join(piece.text for piece in stream)
            messages += [{"role": "assistant", "content": answer}]

        For the whole answer at once: ``generate(chat_prompt(messages))``. Raises what
        ``chat_prompt`` and ``stream`` raise.
        """
        return self.stream(self.chat_prompt(messages, transcript=transcript), **options)

    def chat_prompt(self, messages: Sequence[Message], *, transcript: bool = False) -> ChatPrompt:
        """``messages`` as the model was trained to read them: token ids, and what ends an answer.

        A message that spells a special token is read as that text. A model without a chat template
        is a base model: with ``transcript`` it gets the conversation as a script to go on with.

        Raises RequestError for a model without a template, and for messages that are none, do not
        fit or are refused by the template; ModelFolderError for a template that fails or takes too
        much time or memory; MissingExtraError without the extra "chat".
        """
        longest = CHARACTERS_PER_TOKEN * self.session.shape.context_length
        if transcript:
            ids = transcript_ids(self.tokenizer, messages, longest)
            return ChatPrompt(ids, stop=TRANSCRIPT_STOPS)
        template = self.chat_template
        if template is None:
            raise RequestError(
                f"{self.folder.path}: found no chat template (chat_template.jinja, or in "
                "tokenizer_config.json), expected one to chat by: this is a base model, which "
                "continues a text; leave --chat out, or talk to it with: pocketlm chat (in Python: "
                "transcript=True)"
            )
        if self._answer_end_ids is None:
            self._answer_end_ids = answer_end_ids(template, self.tokenizer)
        ids = template_ids(template, self.tokenizer, messages, longest)
        return ChatPrompt(ids, end_ids=self._answer_end_ids)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The template of the model folder; None for a base model. Raises ModelFolderError."""
        return ChatTemplate.open(self.folder)

    def new_cache(self) -> ReusableCache:
        """An empty cache for one conversation, to be given to one call after another.

        A call computes its prompt from where that differs from what the cache holds. One call at a
        time may use it: RequestError otherwise.
        """
        return ReusableCache(self.session)

    def generate(self, prompt: str | Sequence[int] | ChatPrompt = "", **options: Any) -> Result:
        """The whole text at once.

            result = model.generate("Once upon a time", max_tokens=20, seed=1, logprobs=True)
            result.text, result.finish_reason, result.timings.decode_rate, result.logprobs

        Takes the options of ``stream``, and raises the same errors.
        """
        stream = self.stream(prompt, **options)
        pieces = list(stream)
        steps = [step for piece in pieces for step in piece.steps]
        logprobs = [step.logprob for step in steps if step.logprob is not None]
        return Result(
            text="".join(piece.text for piece in pieces),
            token_ids=stream.token_ids,
            finish_reason=str(stream.finish_reason),
            timings=stream.timings,
            logprobs=logprobs if options.get("logprobs") else None,
        )
