"""``pocketlm serve``: an OpenAI-compatible server on loopback."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import click

from pocketlm.commands.addresses import binding
from pocketlm.commands.api_key import KEY_VARIABLE, find_key
from pocketlm.commands.options import Place, debug_option, model_options
from pocketlm.export.errors import MissingExtraError, RequestError
from pocketlm.export.frozen import to_install
from pocketlm.export.importing import importing
from pocketlm.export.memory import free_bytes
from pocketlm.export.quantities import parse_size
from pocketlm.export.release import release

EXTRA = "serve"
SHARE_OF_FREE = 0.75  # what models may take of the memory that is free at the start
LEAST_BODY = 1000
# Options that are settings of the same name.
AS_THEY_ARE = (
    *("host", "port", "hosts", "origins", "parallel", "most_waiting"),
    *("kv_bytes", "max_seconds", "grace_seconds"),
)
LEAVING_SECONDS = 0.3  # that threads which have nothing to do take to end


def _size(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Bytes of "2GB"."""
    if text is None:
        return None
    try:
        return parse_size(text)
    except RequestError as error:
        raise click.BadParameter(str(error)) from error


class Seconds(click.FloatRange):
    """A duration, which is a number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """click's own, for what is finite."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"found {value}, expected a number of seconds", param, ctx)
        return found


@click.command("serve")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where to listen. Others than 127.0.0.1, ::1 and localhost need a key; 0.0.0.0 is every "
    "address of this machine.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen at; 0 takes one that is free.",
)
@click.option(
    "--api-key-file",
    type=Place(),
    metavar="FILE",
    help="Serve only those who send the key that FILE holds, as Authorization: Bearer KEY. "
    f"Default: the key in the variable {KEY_VARIABLE}, if it is set.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Answer also requests that were sent to NAME, such as pc.local or, behind a proxy, "
    "llm.example.org. May be given several times.",
)
@click.option(
    "--cors",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let the web pages of ORIGIN, such as http://localhost:3000, use the models. May be given "
    "several times.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 32),
    default=8,
    show_default=True,
    metavar="N",
    help="Texts of a model that are generated at the same time.",
)
@click.option(
    "--queue",
    "most_waiting",
    type=click.IntRange(0, 100_000),
    default=32,
    show_default=True,
    metavar="N",
    help="Texts of a model that wait for their turn; more are refused with 429.",
)
@click.option(
    "--kv-bytes",
    callback=_size,
    metavar="SIZE",
    help="What keys and values of a model's texts may take of memory, such as 2GB. Default: what "
    "--max-memory leaves beside the weights.",
)
@click.option(
    "--max-memory",
    "memory_bytes",
    callback=_size,
    metavar="SIZE",
    help="What all models that are open may come to take: who finds no room has others dropped "
    "that nobody uses. Default: three quarters of what is free at the start.",
)
@click.option(
    "--idle",
    "idle_seconds",
    type=Seconds(0),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Drop a model after so long without a request, until the next one; 0: never.",
)
@click.option(
    "--max-seconds",
    type=Seconds(0, min_open=True),
    metavar="SECONDS",
    help="Most time that a text may take; it ends with the next token. Default: no limit.",
)
@click.option(
    "--max-body",
    "most_body_bytes",
    callback=_size,
    default="4MB",
    show_default=True,
    metavar="SIZE",
    help="Refuse larger requests.",
)
@click.option(
    "--grace",
    "grace_seconds",
    type=Seconds(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="What answers under way have to end in, after Ctrl-C or SIGTERM; a second one ends all at "
    "once.",
)
@click.option(
    "--fastest",
    is_flag=True,
    help="Faster by up to a fifth, but a text with a seed may differ with what runs beside it.",
)
@click.option("--quiet", is_flag=True, help="Log only requests that failed.")
@model_options
@debug_option
def command(
    models: Sequence[str],
    api_key_file: Path | None,
    idle_seconds: float,
    most_body_bytes: int,
    fastest: bool,
    quiet: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Serve models to clients of OpenAI's API, and a page to try them.

    MODEL is a model folder, a checkpoint, a name on the hub (org/name) or demo; without any it is
    the demo in int8, fp32 and int4, to compare. Clients call a model by the last part of its path,
    by its name on the hub, or as NAME=MODEL says; the first is meant where they name none. All are
    fetched and made before the server listens, and opened when they are asked for; only the first
    is opened at once. The options of a model are for all of them.

    It listens on this machine alone unless --host says otherwise. The log goes to stderr, a line of
    JSON for each event, without what was asked and answered.

    \b
    Examples:
      pocketlm serve
      pocketlm serve out/ small=gpt2-int4/ --kv-bytes 2GB --parallel 4
      pocketlm serve out/ --host 0.0.0.0 --api-key-file key.txt --allow-host pc.local
    """
    _check_versions()
    with importing("a server", EXTRA):
        from pocketlm.commands.served_models import check_room, named_models, sources_of
        from pocketlm.commands.served_recipes import served_recipes
        from pocketlm.runtime.providers import FallbackWarning
        from pocketlm.runtime.server.connections.listening import Server, bound
        from pocketlm.runtime.server.log import Log
        from pocketlm.runtime.server.service import make_service
        from pocketlm.runtime.server.settings import Settings
    if most_body_bytes < LEAST_BODY:
        raise click.UsageError(f"found --max-body {most_body_bytes}, expected {LEAST_BODY} or more")
    given_memory = options.pop("memory_bytes")
    settings = Settings(
        api_key=find_key(api_key_file),
        idle_seconds=idle_seconds or None,
        most_body_bytes=most_body_bytes,
        reproducible=not fastest,
        memory_bytes=_default_memory() if given_memory is None else given_memory,
        open_first=True,
        **{name: options.pop(name) for name in AS_THEY_ARE},
    )
    named = named_models(models)
    with binding(settings.host, settings.port):
        listener = bound(settings)
    with listener:
        sources = sources_of(named, options)
        if given_memory is not None:
            check_room(sources, given_memory)
        service = make_service(sources, settings, Log(quiet=quiet), served_recipes())
        with binding(settings.host, settings.port):
            server = Server(service, listener)
        if sys.stderr.isatty():
            served = ", ".join(source.name for source in sources)
            click.echo(f"pocketlm: serving {served} at {server.url} - Ctrl-C ends it", err=True)
        warnings.simplefilter("ignore", FallbackWarning)  # the log has it
        others = set(threading.enumerate())
        server.run()
    _leave(set(threading.enumerate()) - others)


def _leave(threads: Set[threading.Thread]) -> None:
    """Ends the process at once where ``threads`` of the server still work.

    They open a model or prepare a request, which may take minutes, for nobody: Python would wait
    for them.
    """
    until = time.monotonic() + LEAVING_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        sys.stdout.flush()
        os._exit(0)


def _check_versions() -> None:
    """Raises MissingExtraError for a package of the extra that is older than it has to be.

    What is missing is told when it is imported.
    """
    from importlib.metadata import PackageNotFoundError

    from pocketlm.doctor.packages import installed, requirements

    try:
        needed = [package for package in requirements() if package.extra == EXTRA]
    except PackageNotFoundError:  # an application without the metadata of packages
        return
    for package in needed:
        version = installed(package.name)
        if version and package.floor and release(version) < release(package.floor):
            raise MissingExtraError(
                f"a server: found {package.name} {version}, expected {package.floor} or newer; "
                + to_install(f'pip install "{package.name}>={package.floor}"', "update it")
            )


def _default_memory() -> int | None:
    free = free_bytes()
    return None if free is None else int(free * SHARE_OF_FREE)
