"""Models of ours for simonw/llm, which finds this module by the entry point "llm".

    llm -m pocketlm/out "Once upon a time"      # out/ is a model folder in this folder
    llm -m pocketlm/demo "Once upon a time" -o temperature 0 -o max_tokens 40
    llm pocketlm add path/to/folder             # pocketlm/folder, wherever one is

An id is "pocketlm/" and a name. llm knows only what is registered when it starts, so these are, the
first of a name: model folders in the current folder and that folder itself, what ``llm pocketlm
add`` was given, models of the hub in the cache (pocketlm/org/name), other models in the cache
(pocketlm/NAME-PRECISION) and the demo model. Registering opens no model and imports no ONNX
Runtime.

A model with a chat template answers the conversation. A base model continues a prompt, and gets
a conversation, or a prompt with a system prompt, as a script to go on with. There are no
embeddings: the graphs give logits and no hidden states.

Source: docs/plugins/advanced-model-plugins.md of llm.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import llm
from pydantic import Field

from pocketlm.export.errors import PocketLMError, RequestError

if TYPE_CHECKING:
    from pocketlm.runtime.model import Model
    from pocketlm.runtime.request import ChatPrompt

MANIFEST = "pocketlm.json"
LOADING = ("precision", "threads", "provider", "kv", "prefill")  # options of ``pocketlm.load``
PREFIX = "pocketlm/"


class Options(llm.Options):  # type: ignore[misc]
    """What ``-o NAME VALUE`` may say; ranges are checked by the model."""

    max_tokens: int | None = Field(None, description="Most tokens to generate; 256 unless given")
    max_seconds: float | None = Field(None, description="Ends it once they are over")
    temperature: float | None = Field(None, description="0 takes the likeliest token")
    top_k: int | None = Field(None, description="From so many of the likeliest tokens only")
    top_p: float | None = Field(None, description="From the likeliest that reach this probability")
    min_p: float | None = Field(None, description="From those with this share of the likeliest's")
    repetition_penalty: float | None = Field(
        None, description="Above 1 makes tokens that appeared less likely"
    )
    seed: int | None = Field(None, description="The same one gives the same tokens")
    stop: str | list[str] | None = Field(None, description="Ends before this text appears")
    regex: str | None = Field(None, description="The answer is of this form")
    plain: bool | None = Field(None, description="Continue the text, without a chat template")
    precision: str | None = Field(None, description="fp32, int8, int8-weight or int4")
    threads: int | None = Field(None, description="All cores unless given")
    provider: str | None = Field(None, description="cpu, cuda or auto")
    kv: str | None = Field(None, description="The KV cache in fp32 or int8")
    prefill: str | None = Field(None, description="Second weights for prompts: int8, none, auto")


class Opening:
    """A model that is opened by the first prompt, and again when its options ask for another."""

    def __init__(self, source: str | Path) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._model: Model | None = None
        self._options: Mapping[str, Any] = {}

    def model(self, options: Mapping[str, Any]) -> Model:
        """The model; raises what ``pocketlm.load`` raises."""
        wanted = {name: options[name] for name in LOADING if name in options}
        with self._lock:
            if self._model is None or wanted != self._options:
                from pocketlm.models.loading import load

                self._model = None  # not two of them in memory
                self._model, self._options = load(self._source, **wanted), wanted
            return self._model


def _begun(opening: Opening, prompt: Any) -> tuple[Model, str | ChatPrompt, dict[str, Any]]:
    """The model, what it is asked and how tokens are chosen, of a ``Prompt`` of llm."""
    options = prompt.options.model_dump(exclude_none=True)
    model = opening.model(options)
    asked = _asked(model, prompt, options.pop("plain", False))
    choosing = {name: value for name, value in options.items() if name not in LOADING}
    if prompt.schema:
        choosing["json_schema"] = prompt.schema
    return model, asked, choosing


def _asked(model: Model, prompt: Any, plain: bool) -> str | ChatPrompt:
    messages = [
        {"role": message.role, "content": content}
        for message in prompt.messages
        if (content := "".join(getattr(part, "text", "") for part in message.parts))
    ]
    is_text = [message["role"] for message in messages] in ([], ["user"])
    if plain or (model.chat_template is None and is_text):
        return "".join(message["content"] for message in messages)
    return model.chat_prompt(messages, transcript=model.chat_template is None)


class PocketLM(llm.Model):  # type: ignore[misc]
    """One of ours, for ``llm.get_model``."""

    can_stream = True
    supports_schema = True
    Options = Options

    def __init__(self, model_id: str, opening: Opening) -> None:
        self.model_id = model_id
        self._opening = opening

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        """The answer in pieces; raises PocketLMError, which llm tells in a line."""
        model, asked, choosing = _begun(self._opening, prompt)
        pieces = model.stream(asked, **choosing)
        try:
            for piece in pieces:
                yield piece.text
        finally:
            timings = pieces.timings
            response.set_usage(input=timings.prompt_tokens, output=timings.new_tokens)
            response.response_json = {"finish_reason": pieces.finish_reason}


class AsyncPocketLM(llm.AsyncModel):  # type: ignore[misc]
    """The same for ``llm.get_async_model``; prompts that are there at once run together."""

    can_stream = True
    supports_schema = True
    Options = Options

    def __init__(self, model_id: str, opening: Opening) -> None:
        self.model_id = model_id
        self._opening = opening

    async def execute(
        self, prompt: Any, stream: bool, response: Any, conversation: Any
    ) -> AsyncIterator[str]:
        """The answer in pieces, as ``Model.astream`` has them."""
        model, asked, choosing = await asyncio.to_thread(_begun, self._opening, prompt)
        request, count = model.request(asked, **choosing), 0
        async for piece in model.astream(request):
            count += len(piece.steps)
            yield piece.text
        response.set_usage(input=len(request.prompt_ids), output=count)


# Which models there are ---------------------------------------------------------------------------


def sources() -> dict[str, str | Path]:
    """What ``pocketlm.load`` is to open, by the name behind "pocketlm/"."""
    from pocketlm.export.cache_folder import cache_folder

    found: dict[str, str | Path] = {}
    with contextlib.suppress(OSError):  # the current folder is gone
        here = Path.cwd()
        for folder in (*_folders(here, "*"), *_folders(here, ".")):
            found.setdefault(folder.name, folder)
    try:
        found = {**_added(), **found}
    except RequestError as error:  # llm is to go on with its other models
        click.echo(f"pocketlm: {error}", err=True)
    if cache := cache_folder():
        for folder in _folders(cache, "hub/*/[!.]*"):
            name = folder.parent.name.replace("--", "/", 1)
            found.setdefault(name, name)
        for folder in sorted(_folders(cache, "models/[!.]*"), key=_modified, reverse=True):
            found.setdefault(folder.name.rpartition("-")[0], folder)
    found.setdefault("demo", "demo")
    return found


def _folders(root: Path, pattern: str) -> list[Path]:
    """Those that have a manifest; none where ``root`` cannot be read."""
    return sorted(file.parent for file in root.glob(f"{pattern}/{MANIFEST}"))


def _modified(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # it has just gone
        return 0.0


def _added_file() -> Path:
    return Path(llm.user_dir()) / "pocketlm-models.json"


def _added() -> dict[str, str]:
    """The models that were added, by name."""
    file = _added_file()
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
        return {str(name): str(source) for name, source in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise RequestError(
            f"{file}: found no list of added models ({error}), expected what llm pocketlm add "
            "wrote; remove the file"
        ) from error


def _keep(added: Mapping[str, str]) -> None:
    file = _added_file()
    written = file.with_name(f".{file.name}.{os.getpid()}")
    written.write_text(json.dumps(added, indent=2), "utf-8")
    os.replace(written, file)


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Any) -> None:
    """Every model of ``sources``, for programs with and without an event loop."""
    for name, source in sources().items():
        opening, model_id = Opening(source), PREFIX + name
        register(PocketLM(model_id, opening), AsyncPocketLM(model_id, opening))


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_commands(cli: click.Group) -> None:
    """``llm pocketlm add`` and ``remove``."""

    @cli.group()
    def pocketlm() -> None:
        """Models of pocketlm that llm is to know wherever it is called"""

    @pocketlm.command()
    @click.argument("model")
    @click.option("--name", help="What follows pocketlm/ in the id; the folder's name unless given")
    def add(model: str, name: str | None) -> None:
        """MODEL is a model folder, a checkpoint, or a name on the hub, which is made at once"""
        from pocketlm.models.loading import find_folder

        try:
            find_folder(model)
            path = Path(model).expanduser()
            source = str(path.resolve()) if path.exists() else model
            name = (name or "").removeprefix(PREFIX) or (
                Path(source).name if path.exists() else model
            )
            _keep(_added() | {name: source})
        except (PocketLMError, OSError) as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"added {PREFIX}{name}")

    @pocketlm.command()
    @click.argument("name")
    def remove(name: str) -> None:
        """Forgets NAME; no file of the model is touched"""
        try:
            added = _added()
            if added.pop(name.removeprefix(PREFIX), None) is None:
                known = ", ".join(added) or "none"
                raise click.ClickException(
                    f"{name}: found no added model of this name, expected one of: {known}"
                )
            _keep(added)
        except (PocketLMError, OSError) as error:
            raise click.ClickException(str(error)) from error
