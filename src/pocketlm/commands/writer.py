"""Who writes the texts of ``run`` and ``chat``: a model that is opened here, or one of a server.

What is printed of a text, and how, is the same for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pocketlm.commands.options import open_model
from pocketlm.commands.terminal import tell_lost
from pocketlm.runtime.circumstances import Circumstances, circumstances_of

if TYPE_CHECKING:
    from pocketlm.runtime.beams import Beam
    from pocketlm.runtime.model import Model
    from pocketlm.runtime.prompt_cache import PromptCacheFile
    from pocketlm.runtime.request import ChatPrompt
    from pocketlm.runtime.text import Piece, Result, Timings


class Stream(Protocol):
    """A text as it comes: what is told of it is that of ``TextStream``."""

    finish_reason: str | None
    timings: Timings

    @property
    def prompt_cache(self) -> PromptCacheFile | None:
        """The file that keeps what was computed of the prompt, if one was asked for."""

    def __iter__(self) -> Iterator[Piece]: ...

    def cancel(self) -> None:
        """Ends it; may be called while it is waited for."""

    def result_of(self, pieces: Iterable[Piece]) -> Result:
        """The whole, of all its pieces."""


class Writer(Protocol):
    """Writes texts; the verbs of ``Model``, with its options and errors."""

    def tell_lost(self, text: str, name: str) -> None:
        """See ``terminal.tell_lost``."""

    @property
    def has_template(self) -> bool:
        """Whether messages have a form here; a base model can be given a script of them."""

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_args: Mapping[str, Any],
        transcript: bool = False,
    ) -> Any:
        """The prompt for an answer to ``messages``."""

    def num_tokens(self, prompt: Any) -> int:
        """Of what ``chat_prompt`` returns; 0 where nobody tells."""

    def check(self, prompt: Any, **options: Any) -> None:
        """Raises what ``stream`` would raise, as far as that can be known without a text."""

    def stream(self, prompt: Any, **options: Any) -> Stream:
        """One text."""

    def completions(self, prompt: Any, n: int, **options: Any) -> list[Result]:
        """Several."""

    def beams(self, prompt: Any, beams: int, **options: Any) -> list[Beam]:
        """The likeliest."""

    def spelled(self, token: int) -> str:
        """A token's text, "" for what is none by itself."""

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and text; 0 where it is not known until a text was written."""

    @property
    def circumstances(self) -> Circumstances:
        """By what the last text was made."""


class OwnWriter:
    """A model in this process; one that ``remembers`` computes only what a conversation adds."""

    def __init__(self, model: Model, *, remembers: bool = False) -> None:
        self._model = model
        self._cache = model.new_cache() if remembers else None
        model.prefix_cache.most_bytes = 0  # no other prompt comes

    def tell_lost(self, text: str, name: str) -> None:
        """On stderr, if there is anything to tell."""
        tell_lost(self._model, text, name)

    @property
    def has_template(self) -> bool:
        """Whether its folder has one."""
        return self._model.chat_template is not None

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_args: Mapping[str, Any],
        transcript: bool = False,
    ) -> ChatPrompt:
        """By the model's template."""
        return self._model.chat_prompt(
            messages, transcript=transcript, template_args=template_args or None
        )

    def num_tokens(self, prompt: ChatPrompt) -> int:
        """All of them."""
        return len(prompt.token_ids)

    def check(self, prompt: Any, **options: Any) -> None:
        """A stream runs when its first piece is asked for."""
        self.stream(prompt, **options)

    def stream(self, prompt: Any, **options: Any) -> Stream:
        """The model's."""
        return self._model.stream(prompt, cache=self._cache, **options)

    def completions(self, prompt: Any, n: int, **options: Any) -> list[Result]:
        """The model's."""
        return self._model.completions(prompt, n, **options)

    def beams(self, prompt: Any, beams: int, **options: Any) -> list[Beam]:
        """The model's."""
        return self._model.beams(prompt, beams, **options)

    def spelled(self, token: int) -> str:
        """Special tokens included, half characters as U+FFFD."""
        return self._model.tokenizer.token_text(token)

    @property
    def context_length(self) -> int:
        """The model's."""
        return self._model.session.shape.context_length

    @property
    def circumstances(self) -> Circumstances:
        """Of this process."""
        return circumstances_of(self._model)


def own_writer(path: str | None, draft: str | None, options: dict[str, Any]) -> Writer:
    """Opens the model at ``path``, and one to guess with; takes its options out of ``options``."""
    of_draft = {name: options[name] for name in ("threads", "provider", "offline")}
    model = open_model(path, options)
    if draft is not None:
        options["draft"] = open_model(draft, of_draft)
    return OwnWriter(model)
