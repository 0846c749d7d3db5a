"""``load`` and ``Model``: a checkpoint or model folder goes in, text comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketlm.export.errors import ModelFolderError, RequestError
from pocketlm.export.folder import MANIFEST, ModelFolder
from pocketlm.export.memory import memory_errors
from pocketlm.placement import open_session
from pocketlm.runtime.cancellation import Cancellation
from pocketlm.runtime.chat import (
    TRANSCRIPT_STOPS,
    ChatPrompt,
    Message,
    answer_end_ids,
    template_ids,
    transcript_ids,
)
from pocketlm.runtime.chat_template import ChatTemplate
from pocketlm.runtime.generation_config import GenerationConfig
from pocketlm.runtime.reuse import ReusableCache
from pocketlm.runtime.sampling import SamplingOptions
from pocketlm.runtime.stopping import stop_strings
from pocketlm.runtime.text import (
    CHARACTERS_PER_TOKEN,
    TextOptions,
    TextStream,
    Timings,
    stream_text,
)
from pocketlm.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pocketlm.export.download import OnDownload

# For a model that does not say: a little below its own distribution.
SAMPLING_DEFAULTS = {"temperature": 0.8, "top_p": 0.95}


@dataclass(frozen=True)
class Result:
    """A finished generation."""

    text: str
    token_ids: list[int]  # the new ones; an end token, if that ended it, included
    finish_reason: str  # eos, stop, length, context or cancelled: see pocketlm.runtime.text
    timings: Timings
    logprobs: list[float] | None  # one per token, natural log; None unless asked for


class Model:
    """An open model folder: session, tokenizer and generation defaults."""

    def __init__(
        self, folder: ModelFolder, threads: int | None = None, provider: str = "auto"
    ) -> None:
        """Opens ``folder``; see ``load`` for what it raises."""
        started = time.perf_counter()
        self.folder = folder
        with memory_errors(f"{folder.path}: opening it", folder.weights_bytes):
            folder.verify()
            self.tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
            self.session, self.fallback = open_session(folder, threads, provider)
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
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        ignore_eos: bool = False,
        logprobs: bool = False,
        cancellation: Cancellation | None = None,
        cache: ReusableCache | None = None,
    ) -> TextStream:
        """Generates text after ``prompt`` (a string, token ids or a chat prompt), piece by piece.

        How tokens are chosen is the model's own default unless given, see ``sampling_defaults``;
        ``temperature=0`` is greedy. The same seed and settings give the same tokens on one machine.
        An empty prompt starts from the end-of-text token. ``cache`` comes from ``new_cache``: what
        it holds of the prompt is not computed again. Raises RequestError before anything runs when
        an argument is out of range or the prompt is longer than the context.
        """
        given = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        chat = prompt if isinstance(prompt, ChatPrompt) else ChatPrompt([])
        options = TextOptions(
            max_tokens=max_tokens,
            stop=stop_strings(stop, chat.stop),
            ignore_eos=ignore_eos,
            logprobs=logprobs,
        )
        return stream_text(
            self.session,
            self.tokenizer,
            self.end_ids | chat.end_ids,
            self.start_id,
            prompt.token_ids if isinstance(prompt, ChatPrompt) else prompt,
            SamplingOptions(**{**self.sampling_defaults, **chosen}, seed=seed),
            options,
            cancellation,
            cache,
        )

    def chat(
        self, messages: Sequence[Message], *, transcript: bool = False, **options: Any
    ) -> TextStream:
        """Answers ``messages``, piece by piece; takes the options of ``stream``.

        A message is {"role": "system", "user" or "assistant", "content": text}; roles and their
        order are up to the model's chat template. Nothing is remembered: give the whole
        conversation each time, and a ``cache``, if it goes on, so that only what is new is
        computed. For the whole answer at once: ``generate(chat_prompt(messages))``. Raises what
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
        """An empty cache for one conversation, to be given to one call after another."""
        return ReusableCache(self.session)

    def generate(self, prompt: str | Sequence[int] | ChatPrompt = "", **options: Any) -> Result:
        """The whole text at once; takes the options of ``stream``."""
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


def load(
    path: str | Path | None = None,
    *,
    precision: str | None = None,
    threads: int | None = None,
    provider: str = "auto",
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    offline: bool = False,
    keep_download: bool = False,
    on_export: Callable[[Path], dict[str, Any]] | None = None,
    on_download: OnDownload | None = None,
) -> Model:
    """Opens a model folder, or a checkpoint after exporting it; without ``path``, the demo model.

    A checkpoint is exported once to the cache folder with ``precision`` ("fp32", "int8",
    "int8-weight" or "int4"; "int8" unless given) and opened from there the next time; that needs
    the extra "export". ``threads`` None means the cores this process may use. ``provider`` is
    "cpu", "cuda" (needs the extra "cuda") or "auto": CUDA where it can be had, else the CPU, with
    a FallbackWarning if ONNX Runtime is built for CUDA. ``on_export`` is called when an export
    begins and returns keyword arguments for it, such as a progress callback.

    A ``path`` that does not exist and reads org/name (or org/name@revision) is a repository on the
    hub: its ``revision`` (a branch, tag or commit; "main" unless given) is looked up, and what the
    cache lacks is downloaded and exported; that needs the extra "hub". Without ``precision`` it is
    the one in the cache, else "int8". ``offline`` never touches the network. A download is removed
    after its export unless ``keep_download``. ``on_download`` is called with the repository and
    the number of bytes and returns a context with the progress callback.

    Raises ModelFolderError, CheckpointError, StorageError, RequestError, ProviderError,
    HubError or MissingExtraError.
    """
    folder = find_folder(
        path,
        precision=precision,
        tokenizer=tokenizer,
        revision=revision,
        offline=offline,
        keep_download=keep_download,
        on_export=on_export,
        on_download=on_download,
    )
    return Model(folder, threads, provider)


def find_folder(
    path: str | Path | None = None,
    *,
    precision: str | None = None,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    offline: bool = False,
    keep_download: bool = False,
    on_export: Callable[[Path], dict[str, Any]] | None = None,
    on_download: OnDownload | None = None,
) -> ModelFolder:
    """The model folder that ``load`` opens, exported if need be; raises what ``load`` raises."""
    if path is not None and _is_graph(Path(path)):
        folder = ModelFolder.open(path)
        found = folder.manifest["precision"]["name"]
        if precision not in (None, found):
            raise ModelFolderError(
                f"{path}: found a model folder in {found}, expected {precision}; leave precision "
                "out, or make another folder with: pocketlm quantize"
            )
        return folder
    from pocketlm.exported import HubOptions, export_once

    options = HubOptions(revision, offline, keep_download, on_download)
    return export_once(path, precision, tokenizer, on_export, options)


def _is_graph(path: Path) -> bool:
    """Whether ``path`` is a model folder, or others' ONNX that must be refused as such."""
    if (path / MANIFEST).is_file() or path.suffix == ".onnx":
        return True
    return any(path.glob("*.onnx")) and not any(path.glob("*.safetensors"))
