"""``pocketlm quantize``: an fp32 model folder becomes a smaller one."""

from __future__ import annotations

from pathlib import Path

import click

from pocketlm.commands.options import Place, made_folder, precision_options, writing_options
from pocketlm.commands.progress import print_report, shown
from pocketlm.quantize.precisions import FULL, PRECISIONS
from pocketlm.quantize.run import quantize_model


@click.command("quantize")
@click.argument("model")
@click.argument("out", type=Place())
@click.option(
    "--to",
    "precision",
    type=click.Choice([name for name in PRECISIONS if name != FULL]),
    required=True,
    help="Number format of the weights.",
)
@precision_options
@writing_options
def command(
    model: str,
    out: Path,
    precision: str,
    block_size: int | None,
    head: str | None,
    force: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Make a smaller model folder from an fp32 one, the same as exporting in that precision.

    MODEL is a model folder that `pocketlm export` wrote in fp32, or the name of one in the cache
    (org/name, demo), and stays as it is. OUT is a new folder; it appears when it is complete. Every
    tensor's format, bits per weight and error are printed to stderr and stored in
    OUT/pocketlm.json.

    \b
    Example:
      pocketlm quantize gpt2-fp32/ gpt2-int8/ --to int8
    """
    source = made_folder(model, FULL)
    with shown(quiet) as callbacks:
        result = quantize_model(
            source, out, precision, block_size=block_size, head=head, force=force, **callbacks
        )
    if not quiet:
        print_report(result)
