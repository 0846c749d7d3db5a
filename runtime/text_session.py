"""A text that is held: appended to, gone on with by the model, taken back, forked, saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..export.errors import RequestError
from ..export.later import later
from ..export.output_file import OutputFile
from ..export.whole_number import brief, whole_number
from .decode import begin
from .prefix import Prefix
from .prompt_cache import MAGIC, Owner, prefix_bytes, read_prefix
from .request import GREEDY, Request
from .requests import check_ids, check_spelled
from .reuse import ReusableCache
from .text import Result, TextStream

if TYPE_CHECKING:
    from .model import Model
else:
    Model = later("pocketlm.runtime.model.Model")


class TextSession:
    """A text, its tokens, and what was computed of them; ``Model.new_session`` makes one.

        chat = model.new_session()
        chat.append("Once upon a time")
        chat.generate(max_tokens=20, seed=1).text
        fork = chat.fork()
        fork.rewind(10)
        fork.text, fork.length

    Tokens that are appended are computed when the model is to go on. What was generated is held as
    it was: with the token that ended it, and with a stop string; ``rewind`` takes them back. One
    thread at a time may use a session; its forks are free of it.

    A generation gets the tokens that ``Model.generate(session.token_ids)`` gets, up to rounding:
    what was generated one token at a time stays so, and a last bit may differ from that of a
    prompt, which may in time decide a token. With ``reproducible=True`` it is the very same, and
    what the session itself generated is computed once more, as a prompt.
    """

    def __init__(self, model: Model, file: str | os.PathLike[str] | None = None) -> None:
        """``file`` is what ``save`` wrote; RequestError where it is of no use to ``model``."""
        self._model = model
        prefix = None if file is None else read_prefix(Path(file), self._owner)
        self._cache = ReusableCache(model.session, prefix)
        found = [] if prefix is None else list(prefix.computed.token_ids)
        self._ids = check_ids(found, model.session.shape.vocab_size)
        self._stream: TextStream | None = None  # what it has generated is not in _ids yet

    @property
    def token_ids(self) -> list[int]:
        """All tokens of the text."""
        if self._stream is None:
            return list(self._ids)
        return [*self._stream.prompt_ids, *self._stream.token_ids]

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return len(self.token_ids)

    @property
    def text(self) -> str:
        """The text, without special tokens."""
        return self._model.tokenizer.decode(self.token_ids)

    def append(self, text: str | Sequence[int]) -> None:
        """Adds a text, or token ids, at the end; nothing is computed yet.

        A text becomes tokens by itself, so that these may be others than those of the whole. Raises
        RequestError for what is neither.
        """
        vocab_size = self._model.session.shape.vocab_size
        if isinstance(text, str):
            first = not self.length
            ids = self._model.tokenizer.encode(text, add_special_tokens=first)
            check_spelled(ids, self._model.tokenizer, vocab_size)
        else:
            ids = check_ids(text, vocab_size)
        self._settle()
        self._ids += ids

    def stream(self, **options: Any) -> TextStream:
        """Goes on with the text, piece by piece; what comes is appended.

        Takes the options of ``Model.stream`` but ``cache`` and ``prompt_cache``, and raises the
        same errors. Whatever is done to the session next ends a stream that goes on.
        """
        stream = self._model.stream(self.token_ids, cache=self._cache, **options)
        self._settle()
        self._stream = stream
        return stream

    def generate(self, **options: Any) -> Result:
        """The same at once."""
        stream = self.stream(**options)
        return stream.result_of(stream)

    def fork(self) -> TextSession:
        """Another session with the same text, computed as far; ResourceError without memory."""
        self._settle()
        made = TextSession(self._model)
        made._ids = list(self._ids)
        made._cache = self._cache.copy()
        return made

    def rewind(self, count: int) -> None:
        """Takes the last ``count`` tokens back; RequestError if there are fewer."""
        self.truncate(self.length - self._checked("count", count))

    def truncate(self, length: int) -> None:
        """Keeps the first ``length`` tokens; RequestError if there are fewer."""
        kept = self._checked("length", length)
        self._settle()
        del self._ids[kept:]

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the tokens and what was computed of them to ``file``, for ``Model.new_session``.

        What was not, is first. It replaces no other file than one of this kind. Raises RequestError
        for another, and for a text that is empty or longer than the context; StorageError where
        the disk is full.
        """
        output = OutputFile(file, lambda data: data[:8] == MAGIC)
        self.compute()
        cache = self._cache
        output.write(prefix_bytes(Prefix(cache.computed, cache.cache.values()), self._owner))

    def compute(self) -> None:
        """Computes now what else the next generation would: a long text that was appended.

        Raises RequestError for a text that is empty or longer than the context.
        """
        self._settle()
        if self._ids and list(self._cache.computed.token_ids) == self._ids:
            return
        session = self._model.session
        sequence = begin(session, Request(self._ids, GREEDY), self._cache)
        while sequence.in_prompt:
            sequence.prompt_logits = session.step(sequence.feed(), sequence.cache)

    @property
    def _owner(self) -> Owner:
        return Owner.of(self._model.folder, self._model.session)

    def _settle(self) -> None:
        """Ends what goes on, so that nobody else changes the text."""
        if self._stream is not None:
            self._ids = self.token_ids
            if self._stream.finish_reason is None:
                self._stream.cancel()
            self._stream = None

    def _checked(self, name: str, asked: object) -> int:
        number = whole_number(asked)
        if number is None or not 0 <= number <= self.length:
            raise RequestError(
                f"{name} is {brief(asked)}, expected an integer from 0 to {self.length}, the "
                "tokens that there are"
            )
        return number
