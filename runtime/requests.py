"""What a user says becomes a ``Request``: texts become token ids, options what they mean here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..export.errors import ContextLengthError, RequestError
from ..export.folder import DecoderShape
from ..export.whole_number import brief, whole_number
from .banned_strings import BannedStrings, TokenTexts, check_banned
from .concatenating import ConcatenatingCache
from .constraint import Grammar, Vocabulary, make_grammar, one_form
from .context_policy import ERROR, check_policy
from .generation_config import GenerationConfig
from .request import ChatPrompt, Request
from .sampling import SamplingOptions
from .session import Session
from .stopping import stop_strings
from .tokenizer import MAX_CHARACTERS, Tokenizer

SAMPLING_NAMES = frozenset(field.name for field in fields(SamplingOptions))
CHARACTERS_PER_TOKEN = 16  # a prompt with more than this per context token cannot fit


class Requests:
    """Makes the requests of one model; threads may share it."""

    def __init__(self, session: Session, tokenizer: Tokenizer) -> None:
        self._session = session
        self._shape = session.shape
        self._tokenizer = tokenizer
        self._trial: Callable[[str, str], None] | None = None

    def try_forms_apart(self) -> None:
        """As ``Model.try_forms_apart``."""
        from .form_process import shared_process

        self._trial = shared_process().try_out
        self.__dict__.pop("_vocabulary", None)  # it was made without

    def make(
        self,
        config: GenerationConfig,
        prompt: str | Sequence[int] | ChatPrompt,
        *,
        banned_strings: Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
        context: str = ERROR,
        keep: int = 1,
        **options: Any,
    ) -> Request:
        """The request of the options of ``Model.request``, which says what it raises.

        ``config`` says where texts begin and end, and how tokens are chosen where nobody says.
        """
        check_policy(context, keep)
        chat = prompt if isinstance(prompt, ChatPrompt) else ChatPrompt([])
        text = prompt.token_ids if isinstance(prompt, ChatPrompt) else prompt
        request = _request(
            encoded(self._tokenizer, text, config.start_id, self._shape, context),
            config,
            chat,
            context=context,
            keep=keep,
            **options,
        )
        form = self._grammar(json_schema=json_schema, regex=regex, choices=choices, grammar=grammar)
        request = replace(request, grammar=form, banned=self._banned(banned_strings))
        self.check(request)
        return request

    def check(self, request: Request) -> None:
        """Raises RequestError for a prompt that does not fit, unless its ``context`` lets it."""
        context_length = self._shape.context_length
        if not request.stops_at_once(context_length):
            empty = ConcatenatingCache(self._shape)  # of whatever kind: it takes no memory
            self._session.check_step(request.seen(context_length).token_ids, empty)

    def _grammar(self, **forms: Any) -> Grammar | None:
        return make_grammar(self._vocabulary, **forms) if one_form(**forms) else None

    def _banned(self, strings: Sequence[str] | None) -> BannedStrings | None:
        return None if strings is None else BannedStrings(self._token_texts, strings)

    @cached_property
    def _token_texts(self) -> TokenTexts:
        return TokenTexts(self._tokenizer.all_bytes(self._shape.vocab_size))

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        """The tokens as a constraint sees them. Raises MissingExtraError without llguidance."""
        return Vocabulary(self._tokenizer, self._shape.vocab_size, self._trial)


def check_options(
    *,
    banned_strings: Sequence[str] | None = None,
    json_schema: Mapping[str, Any] | str | None = None,
    regex: str | None = None,
    choices: Sequence[str] | None = None,
    grammar: str | None = None,
    **options: Any,
) -> None:
    """Raises RequestError for options of ``Model.request`` that no model takes, as that does."""
    one_form(json_schema=json_schema, regex=regex, choices=choices, grammar=grammar)
    if banned_strings is not None:
        check_banned(banned_strings)
    _request([0], GenerationConfig(frozenset(), None, {}), ChatPrompt([]), **options)


def check_number_of_texts(n: object) -> int:
    """How many texts are asked for; RequestError for what is no such number."""
    number = whole_number(n)
    if number is None or number < 1:
        raise RequestError(f"n is {brief(n)}, expected an integer from 1 up; give how many")
    return number


def _request(
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    chat: ChatPrompt,
    *,
    max_tokens: int = 256,
    max_seconds: float | None = None,
    stop: str | Sequence[str] | None = (),
    ignore_eos: bool = False,
    logprobs: bool | int | None = None,
    context: str = ERROR,
    keep: int = 1,
    **sampling: Any,
) -> Request:
    """With all that needs no model to be understood."""
    check_truth("ignore_eos", ignore_eos)
    unknown = [name for name in sampling if name not in SAMPLING_NAMES]
    if unknown:
        raise RequestError(
            f"found the option {unknown[0]!r:.40}, expected one of those of Model.request"
        )
    chosen = {name: value for name, value in sampling.items() if value is not None}
    return Request(
        prompt_ids,
        sampling=SamplingOptions(**{**config.sampling, **chosen}),
        max_tokens=max_tokens,
        end_ids=frozenset() if ignore_eos else config.end_ids | chat.end_ids,
        stop=stop_strings(stop, chat.stop),
        logprobs=logprobs,
        max_seconds=max_seconds,
        context=context,
        keep=keep,
    )


def encoded(
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    start_id: int | None,
    shape: DecoderShape,
    context: str = ERROR,
) -> list[int]:
    """The token ids of ``prompt``; ``start_id`` is what an empty one begins with.

    Raises RequestError for a prompt that is not text or ids, or empty without a start id, and
    ContextLengthError for one longer than the context where the policy ``context`` is "error".
    """
    vocab_size, context_length = shape.vocab_size, shape.context_length
    if isinstance(prompt, str):
        most = CHARACTERS_PER_TOKEN * context_length
        if context != ERROR:
            most = max(most, MAX_CHARACTERS)
        elif len(prompt) > most:
            raise ContextLengthError(
                f"text has {len(prompt)} characters, expected at most {most}: no more fit into "
                f"{context_length} tokens (the context length); shorten it",
                slides=True,
            )
        ids = tokenizer.encode(prompt, max_characters=most)
        check_spelled(ids, tokenizer, vocab_size)
    else:
        ids = check_ids(prompt, vocab_size)
    if not ids:
        if start_id is None:
            raise RequestError(
                "the prompt is empty, expected at least one token: this model has no end-of-text "
                "token to start from; give it a prompt"
            )
        ids = [start_id]
    if len(ids) > context_length and context == ERROR:
        raise ContextLengthError(
            f"the prompt has {len(ids)} tokens, expected at most {context_length} "
            "(the context length); shorten it",
            slides=True,
        )
    return ids


def check_ids(prompt: Any, vocab_size: int) -> list[int]:
    """``prompt`` as a list; RequestError if it is no sequence of ids of the vocabulary."""
    is_row = isinstance(prompt, np.ndarray) and prompt.ndim == 1
    no_row = not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray))
    if no_row and not is_row:
        raise RequestError(
            f"prompt is {prompt!r:.40} of type {type(prompt).__name__}, expected a string or a "
            "sequence of token ids"
        )
    ids = []
    for value in prompt:
        number = whole_number(value)
        if number is None or not 0 <= number < vocab_size:
            raise RequestError(
                f"prompt has the token id {brief(value)}, expected 0 to {vocab_size - 1}; "
                "use ids of this model's tokenizer"
            )
        ids.append(number)
    return ids


def check_spelled(ids: Sequence[int], tokenizer: Tokenizer, vocab_size: int) -> None:
    """RequestError for a token beyond the embedding among those that a text spells."""
    beyond = next((token for token in ids if token >= vocab_size), None)
    if beyond is not None:
        raise RequestError(
            f"the prompt spells the token {tokenizer.spelling(beyond)!r}, whose id {beyond} has "
            f"no row in the model, expected ids 0 to {vocab_size - 1}; leave it out"
        )


def check_truth(name: str, value: object) -> None:
    """RequestError, by the ``name`` of an option, for what is no truth value."""
    if not isinstance(value, bool | np.bool_):
        raise RequestError(
            f"{name} is {brief(value)}, expected True or False: a truth value, no number; leave it "
            "out for its default"
        )
