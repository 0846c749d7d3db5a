"""``--server``: the model that writes is one of a server, and what is asked of it goes there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pocketlm.commands.api_key import KEY_VARIABLE, find_key
from pocketlm.commands.options import MODEL_OPTIONS, Place, given
from pocketlm.commands.writer import Writer
from pocketlm.export.errors import RequestError

if TYPE_CHECKING:
    from pocketlm.remote.server import Server

Command = Callable[..., Any]

# What is said of a text beside its characters, which not every server can.
NEED_DETAILS = {"stats": "--stats", "as_json": "--json", "logprobs": "--logprobs"}
NEED_DETAILS |= {"beams": "--beams"}


def server_options(command: Command) -> Command:
    """Adds what names a server, and shows it a key."""
    for option in (
        click.option(
            "--api-key-file",
            type=Place(),
            metavar="FILE",
            help=f"Of --server: the file with the key that it asks for. Default: {KEY_VARIABLE} of "
            "the environment, if it is set.",
        ),
        click.option(
            "--server",
            metavar="URL",
            help="Let a server write the text, such as http://127.0.0.1:8080: what `pocketlm "
            "serve` started, or another with OpenAI's API. MODEL is one of its models then.",
        ),
    ):
        command = option(command)
    return command


def find_server(url: str | None, key_file: Path | None) -> Server | None:
    """The server at ``url``, to which nothing was sent yet; None where none is asked for.

    Raises RequestError, and click's UsageError for a key without a server.
    """
    if url is None:
        if key_file is not None:
            raise click.UsageError(
                "found --api-key-file without --server, expected both; add --server"
            )
        return None
    from pocketlm.remote.address import Address
    from pocketlm.remote.server import Server

    return Server(Address.parse(url), find_key(key_file))


def remote_writer(
    server: Server, name: str | None, context: click.Context, options: dict[str, Any]
) -> Writer:
    """The model ``name`` of ``server``, the first where there is none, as ``context`` asks of it.

    Takes what the server decides out of ``options``. Raises click's UsageError where that was
    given, or what the server cannot tell.
    """
    from pocketlm.remote.model import RemoteModel

    for parameter in context.command.params:
        if parameter.name in (*MODEL_OPTIONS, "prompt_cache") and given(context, parameter.name):
            raise click.UsageError(
                f"found {parameter.opts[0]} with --server, which decides that itself; leave it out"
            )
    for field in MODEL_OPTIONS:
        options.pop(field, None)
    if not server.names:
        raise RequestError(f"server: {server} has no model, expected one")
    asked = [option for field, option in NEED_DETAILS.items() if given(context, field)]
    if asked and not server.is_ours:
        raise click.UsageError(
            f"found {asked[0]} of {server}, expected it of a server that pocketlm serves with: "
            "another one tells no more than a text; leave it out"
        )
    return RemoteModel(server, name or server.names[0])
