"""``pocketlm serve``: an OpenAI-compatible server on loopback."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import click

from pocketlm.commands.options import debug_option, model_options, open_model
from pocketlm.export.importing import importing
from pocketlm.models.reference import find_reference

LEAVING_SECONDS = 0.3  # that threads which have nothing to do take to end


@click.command("serve")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@model_options
@debug_option
def command(models: Sequence[str], host: str, port: int, debug: bool, **options: Any) -> None:
    """Serve models to clients of OpenAI's API, and a page to try them.

    \b
    Examples:
      pocketlm serve
      pocketlm serve out/ another/
    """
    with importing("a server", "serve"):
        from pocketlm.runtime.server.listening import Server, bound
        from pocketlm.runtime.server.log import Log
        from pocketlm.runtime.server.pool import Pool, Source
        from pocketlm.runtime.server.service import Service
        from pocketlm.runtime.server.settings import Settings
    settings = Settings(host=host, port=port)
    sources = []
    for model in models or ("demo",):
        find_reference(model)  # raises for what is none
        sources.append(Source(_name(model), partial(open_model, model, dict(options))))
    listener = bound(settings)
    others = set(threading.enumerate())
    Server(Service(Pool(sources, settings), settings, Log()), listener).run()
    _leave(set(threading.enumerate()) - others)


def _leave(threads: Set[threading.Thread]) -> None:
    """Ends the process at once where ``threads`` of the server still work.

    They open a model or prepare a request, which may take minutes, for nobody: Python would wait
    for them. What they write of a model is a beginning that the next opening clears away.
    """
    until = time.monotonic() + LEAVING_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        sys.stdout.flush()
        os._exit(0)


def _name(model: str) -> str:
    """What clients call it: the last part of a path, or the name on the hub."""
    path = Path(model)
    return path.resolve().name if path.exists() else model
