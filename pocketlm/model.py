"""``load`` and ``Model``: a checkpoint or model folder goes in, text comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketlm.export.errors import ModelFolderError
from pocketlm.export.folder import MANIFEST, ModelFolder
from pocketlm.export.strict_json import load_json_object, shown
from pocketlm.placement import open_session
from pocketlm.runtime.cancellation import Cancellation
from pocketlm.runtime.sampling import SamplingOptions
from pocketlm.runtime.text import TextOptions, TextStream, Timings, stream_text
from pocketlm.runtime.tokenizer import Tokenizer


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
        folder.verify()
        self.tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
        self.session, self.fallback = open_session(folder, threads, provider)
        file = folder.path / "generation_config.json"
        defaults = load_json_object(file, 10_000_000, ModelFolderError)
        self.end_ids = _ids(file, defaults, "eos_token_id")
        starts = _ids(file, defaults, "bos_token_id") or self.end_ids
        self.start_id = min(starts) if starts else None
        self.load_seconds = time.perf_counter() - started

    def stream(
        self,
        prompt: str | Sequence[int] = "",
        *,
        max_tokens: int = 256,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: bool = False,
        cancellation: Cancellation | None = None,
    ) -> TextStream:
        """Generates text after ``prompt`` (a string or token ids), piece by piece.

        The defaults sample a little below temperature 1; ``temperature=0`` is greedy. The same
        seed and settings give the same tokens on one machine. An empty prompt starts from the
        end-of-text token. Raises RequestError before anything runs when an argument is out of
        range or the prompt is longer than the context.
        """
        sampling = SamplingOptions(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        options = TextOptions(
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else stop,
            ignore_eos=ignore_eos,
            logprobs=logprobs,
        )
        return stream_text(
            self.session,
            self.tokenizer,
            self.end_ids,
            self.start_id,
            prompt,
            sampling,
            options,
            cancellation,
        )

    def generate(self, prompt: str | Sequence[int] = "", **options: Any) -> Result:
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
    on_export: Callable[[Path], dict[str, Any]] | None = None,
) -> Model:
    """Opens a model folder, or a checkpoint after exporting it; without ``path``, the demo model.

    A checkpoint is exported once to the cache folder with ``precision`` ("fp32", "int8",
    "int8-weight" or "int4"; "int8" unless given) and opened from there the next time; that needs
    the extra "export". ``threads`` None means the cores this process may use. ``provider`` is
    "cpu", "cuda" (needs the extra "cuda") or "auto": CUDA where it can be had, else the CPU, with
    a FallbackWarning if ONNX Runtime is built for CUDA. ``on_export`` is called when an export
    begins and returns keyword arguments for it, such as a progress callback.

    Raises ModelFolderError, CheckpointError, StorageError, RequestError, ProviderError or
    MissingExtraError.
    """
    if path is not None and _is_graph(Path(path)):
        folder = ModelFolder.open(path)
        found = folder.manifest["precision"]["name"]
        if precision not in (None, found):
            raise ModelFolderError(
                f"{path}: found a model folder in {found}, expected {precision}; leave precision "
                "out, or make another folder with: pocketlm quantize"
            )
        return Model(folder, threads, provider)
    from pocketlm.exported import export_once

    folder = export_once(path, precision or "int8", tokenizer, on_export)
    return Model(folder, threads, provider)


def _is_graph(path: Path) -> bool:
    """Whether ``path`` is a model folder, or others' ONNX that must be refused as such."""
    if (path / MANIFEST).is_file() or path.suffix == ".onnx":
        return True
    return any(path.glob("*.onnx")) and not any(path.glob("*.safetensors"))


def _ids(file: Path, defaults: dict[str, Any], name: str) -> frozenset[int]:
    """``eos_token_id`` and its like are null, one id or a list."""
    value = defaults.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for number in ids:
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ModelFolderError(
                f"{file}: {name} is {shown(value)}, expected a token id, a list of them or null; "
                "export the model again"
            )
    return frozenset(ids)
