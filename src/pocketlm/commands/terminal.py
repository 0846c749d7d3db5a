"""How generated text reaches stdout, a terminal or not."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from pocketlm.export.errors import PocketLMError
from pocketlm.export.strict_json import quoted
from pocketlm.streams import printable

if TYPE_CHECKING:
    from pocketlm.commands.writer import Stream
    from pocketlm.runtime.model import Model
    from pocketlm.runtime.text import Piece


def print_stream(stream: Iterable[Piece], prompt: str = "") -> list[Piece]:
    """Prints the pieces as they come, on a terminal after ``prompt``; returns them."""
    terminal = sys.stdout.isatty()
    if terminal and prompt:
        click.secho(printable(prompt), dim=True, nl=False)
    pieces = []
    try:
        for piece in stream:
            pieces.append(piece)
            sys.stdout.write(printable(piece.text) if terminal else piece.text)
            sys.stdout.flush()
    except PocketLMError:
        if pieces:  # what is said of it begins a line
            sys.stdout.write("\n")
            sys.stdout.flush()
        raise
    sys.stdout.write("\n")
    return pieces


def why_it_stopped(stream: Stream, context_length: int) -> str | None:
    """Which limit cut a text short, if one did."""
    if stream.finish_reason == "length":
        return f"stopped after {stream.timings.new_tokens} tokens, see --max-tokens"
    if stream.finish_reason == "context":
        return f"stopped: the context of {context_length} tokens is full"
    return None


def how_it_slid(stream: Stream, context_length: int) -> str | None:
    """What became of a text that outgrew the context, if it did."""
    timings = stream.timings
    if not timings.slides:
        return None
    times = "once" if timings.slides == 1 else f"{timings.slides} times"
    return (
        f"the context of {context_length} tokens was full {times}: the model "
        "went on with the first tokens (see --keep) and the newest, "
        f"{timings.recomputed_tokens:,} of them computed again"
    )


def tell_lost(model: Model, text: str | Sequence[str], name: str) -> None:
    """A line on stderr for characters of a ``text`` called ``name`` that do not reach the model.

    Or of several texts, which are one thing to the reader.
    """
    from pocketlm.runtime.lost_characters import lost_characters
    from pocketlm.runtime.tokenizer import MAX_CHARACTERS

    # A longer one is refused, whatever is in it.
    texts = [part for part in _several(text) if len(part) <= MAX_CHARACTERS]
    if lost := "".join(lost_characters(model.tokenizer, part) for part in texts):
        say(
            f"pocketlm: the model has no token for {len(lost):,} of the {name}'s "
            f"{sum(map(len, texts)):,} "
            f"characters, which are left out: {quoted(lost, 40)}"
        )


def _several(text: str | Sequence[str]) -> Sequence[str]:
    return [text] if isinstance(text, str) else text


def say(text: str) -> None:
    """What is not the model's goes to stderr."""
    click.echo(text, err=True)
