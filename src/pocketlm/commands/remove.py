"""``pocketlm remove``: a model leaves the cache folder."""

from __future__ import annotations

import click

from pocketlm.commands.options import debug_option
from pocketlm.export.cache_folder import cache_folder
from pocketlm.export.errors import RequestError
from pocketlm.export.observer import to_stderr
from pocketlm.export.quantities import size_text
from pocketlm.models import store
from pocketlm.quantize.precisions import PRECISIONS


@click.command("remove")
@click.argument("name")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Only the model in this precision. Default: all of them, and the download.",
)
@debug_option
def command(name: str, precision: str | None, debug: bool) -> None:
    """Remove a model from the cache folder.

    NAME is one that `pocketlm list` shows, an ID there, the place of a checkpoint, or the last word
    of a name if no other has the same. The checkpoint itself stays, and so do model folders that
    `pocketlm export` wrote elsewhere.

    \b
    Examples:
      pocketlm remove meta-llama/Llama-3.2-1B
      pocketlm remove Llama-3.2-1B --precision int4
      pocketlm remove models/gpt2
    """
    if not name.strip():
        raise RequestError(
            "NAME: found an empty one, expected one that `pocketlm list` shows; is a variable not "
            "set?"
        )
    root = cache_folder()
    gone = store.named(root, name) if root else []
    if precision is not None:
        gone = [entry for entry in gone if entry.precision == precision]
    wanted = f"{name} in {precision}" if precision else name
    if root is None or not gone:
        known = sorted({entry.name for entry in store.entries(root)}) if root else []
        raise RequestError(
            f"{wanted}: found nothing of this name in {root}, expected one of: "
            f"{', '.join(known) or '(the cache is empty)'}; see: pocketlm list"
        )
    places = sorted({entry.source for entry in gone if entry.source})
    if len(places) > 1:
        raise RequestError(
            f"{wanted}: found models of {len(places)} checkpoints of this name, expected one; "
            f"write {' or '.join(places)}, or an ID of: pocketlm list"
        )
    store.remove(root, gone, lambda holder: to_stderr(f"waiting for {holder}, which uses it"))
    freed = sum(entry.num_bytes for entry in gone)
    kinds = ", ".join(
        str(entry.precision) if entry.kind == store.MODEL else entry.kind for entry in gone
    )
    click.echo(f"removed {gone[0].name} ({kinds}): {size_text(freed)} freed")
