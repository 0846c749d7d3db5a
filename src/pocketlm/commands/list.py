"""``pocketlm list``: what the cache folder holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime

import click

from pocketlm.commands.options import debug_option
from pocketlm.export.cache_folder import cache_folder
from pocketlm.export.quantities import size_text
from pocketlm.models.reference import DEMO
from pocketlm.models.store import MODEL, Entry, entries


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
@debug_option
def command(as_json: bool, debug: bool) -> None:
    """List the models and downloads in the cache folder.

    There are models of the hub, exports of checkpoints on this disk and of the demo, and downloads
    that are kept or were not finished. FROM is the commit of a repository, or the place of a
    checkpoint on this disk. `pocketlm remove` takes the NAME, the ID or that place. The cache
    folder is pocketlm's own among the platform's caches, or what POCKETLM_CACHE names.

    \b
    Example:
      pocketlm list --json
    """
    root = cache_folder()
    found = entries(root) if root else []
    if as_json:
        click.echo(json.dumps([asdict(e) | {"path": str(e.path)} for e in found], indent=1))
        return
    if found:
        rows = [("NAME", "PRECISION", "SIZE", "WHEN", "ID", "FROM"), *map(_row, found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            click.echo("  ".join(map(str.ljust, row, widths)).rstrip())
        click.echo(f"{size_text(sum(entry.num_bytes for entry in found))} in {root}")
    else:
        click.echo(f"nothing in {root or 'the cache: no home folder, and no POCKETLM_CACHE'}")
    if not any(entry.name == DEMO and entry.source is None for entry in found):
        click.echo(f"{DEMO}: comes with pocketlm; exported to the cache when it first runs")


def _row(entry: Entry) -> tuple[str, ...]:
    when = datetime.fromtimestamp(entry.modified, UTC).astimezone()
    return (
        entry.name,
        str(entry.precision) if entry.kind == MODEL else f"({entry.kind})",
        size_text(entry.num_bytes),
        f"{when:%Y-%m-%d %H:%M}",
        entry.id,
        entry.commit[:12] if entry.commit else entry.source or "-",
    )
