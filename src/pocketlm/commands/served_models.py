"""What models a server has: the names that clients use, found and made before it listens.

Nothing is fetched or made later: what a request names is one of these, or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pocketlm.commands.options import open_folder, open_folders
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.quantities import size_text
from pocketlm.export.strict_json import quoted
from pocketlm.models.local import DEFAULT_PRECISION
from pocketlm.models.reference import DEMO, Demo, OnHub, find_reference

if TYPE_CHECKING:
    from pocketlm.runtime.model import Model
    from pocketlm.runtime.server.models.pool import Source

# Without a model: the demo as most use it, and what to compare it with.
DEMOS = {DEMO: DEFAULT_PRECISION, f"{DEMO}-fp32": "fp32", f"{DEMO}-int4": "int4"}
OPENING = ("threads", "provider", "kv", "prefill")  # options of ``Model``; others find its folder
LONGEST_NAME = 200


@dataclass(frozen=True)
class NamedModel:
    """A model of the command line, and what clients call it."""

    name: str
    model: str


def named_models(words: Sequence[str]) -> list[NamedModel]:
    """Of MODEL or NAME=MODEL, each; nothing is fetched or made.

    Raises click's UsageError for names that are none, or twice, and what ``find_reference`` raises
    for what is no model.
    """
    named = [_named(word) for word in words]
    by_name: dict[str, list[str]] = {}
    for each in named:
        by_name.setdefault(each.name, []).append(each.model)
    for name, models in by_name.items():
        if len(models) > 1:
            raise click.UsageError(
                f"found two models of the name {name} ({', '.join(models)}), expected a name for "
                f"each; give one another: {name}-2={models[1]}"
            )
    return named


def _named(word: str) -> NamedModel:
    name, equals, model = word.partition("=")
    if not equals or os.path.exists(word):
        return NamedModel(_checked(_own_name(word), word), word)
    find_reference(model)
    return NamedModel(_checked(name, model), model)


def _own_name(model: str) -> str:
    reference = find_reference(model)
    if isinstance(reference, Demo):
        return DEMO
    if isinstance(reference, OnHub):
        revision = f"@{reference.revision}" if reference.revision else ""
        return reference.repository + revision
    path = reference.path.resolve()
    return path.stem if path.is_file() else path.name


def _checked(name: str, model: str) -> str:
    if not name.isprintable() or name != name.strip() or not 0 < len(name) <= LONGEST_NAME:
        raise click.UsageError(
            f"found {quoted(name, LONGEST_NAME)} as the name of a model, expected up to "
            f"{LONGEST_NAME} printable characters; give it one, as in my-model={model}"
        )
    return name


def sources_of(models: Sequence[NamedModel], options: Mapping[str, Any]) -> list[Source]:
    """Of ``models``, or of the demo where nothing is; downloaded and made if need be.

    ``options`` are the values of ``model_options``. Raises what ``load`` raises.
    """
    opening = {name: options[name] for name in OPENING}
    finding = {name: value for name, value in options.items() if name not in OPENING}
    if models:
        folders = open_folders([each.model for each in models], [finding] * len(models))
        named = {each.name: folder for each, folder in zip(models, folders, strict=True)}
    elif finding["precision"] is not None:
        named = {DEMO: open_folder(DEMO, **finding)}
    else:
        named = {
            name: open_folder(DEMO, **{**finding, "precision": precision})
            for name, precision in DEMOS.items()
        }
    return [_source(name, folder.anchored(), opening) for name, folder in named.items()]


def _source(name: str, folder: ModelFolder, opening: Mapping[str, Any]) -> Source:
    """Raises what can be told before it is opened: damage, and options it cannot have."""
    from pocketlm.export.threads import check_threads
    from pocketlm.runtime.opening import check_version
    from pocketlm.runtime.providers import ON_CUDA, cuda_obstacle
    from pocketlm.runtime.server.models.facts import facts_of
    from pocketlm.runtime.server.models.pool import Source

    folder.verify()
    check_version(folder)
    check_threads(opening["threads"])
    if opening["provider"] == ON_CUDA and (obstacle := cuda_obstacle(folder.decoder_formats)):
        raise obstacle.error()
    facts = facts_of(folder, opening["kv"], opening["prefill"])
    return Source(name, partial(_open, folder.path, opening), facts)


def _open(path: Path, opening: Mapping[str, Any]) -> Model:
    from pocketlm.runtime.model import Model

    return Model(ModelFolder.open(path), **opening)


def check_room(sources: Sequence[Source], memory_bytes: int) -> None:
    """Raises RequestError where one of them alone takes more."""
    for source in sources:
        if source.facts is not None and source.facts.weights_bytes > memory_bytes:
            raise RequestError(
                f"memory_bytes is {size_text(memory_bytes)}, expected at least the "
                f"{size_text(source.facts.weights_bytes)} of the weights of {source.name}; give "
                "more, or leave that model out"
            )
