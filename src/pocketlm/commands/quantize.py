"""``pocketlm quantize``: an fp32 model folder becomes a smaller one."""

from __future__ import annotations

from pathlib import Path

import click

from pocketlm.commands.options import (
    Place,
    calibration_options,
    chosen_change,
    made_folder,
    precision_options,
    writing_options,
)
from pocketlm.commands.progress import print_report, shown
from pocketlm.export.publishing import Target
from pocketlm.export.writing import export_model
from pocketlm.quantize.precisions import FULL, PRECISIONS


@click.command("quantize")
@click.argument("model")
@click.argument("out", type=Place())
@click.option(
    "--to",
    "precision",
    type=click.Choice([name for name in PRECISIONS if name != FULL]),
    help="Number format of the weights; this, --plan, --max-kl or --max-bytes is needed.",
)
@precision_options
@calibration_options
@writing_options
def command(
    model: str,
    out: Path,
    precision: str | None,
    block_size: int | None,
    head: str | None,
    plan: Path | None,
    prefill: str | None,
    calibrate: tuple[str, ...],
    statistics: Path | None,
    max_kl: float | None,
    max_bytes: str | None,
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
    Examples:
      pocketlm quantize gpt2-fp32/ gpt2-int8/ --to int8
      pocketlm quantize gpt2-fp32/ gpt2-int4/ --to int4 --calibrate my-text.txt
      pocketlm quantize gpt2-fp32/ gpt2-close/ --max-kl 0.01
      pocketlm quantize gpt2-fp32/ gpt2-mixed/ --plan plan.json
    """
    if precision is None and plan is None and max_kl is None and max_bytes is None:
        raise click.UsageError(
            "found no --to, expected one of --to, --plan, --max-kl and --max-bytes"
        )
    change = chosen_change(
        precision, block_size, head, plan, calibrate, statistics, max_kl, max_bytes, prefill
    )
    source = made_folder(model, FULL)
    with shown(quiet) as observer:
        result = export_model(source, Target(out, force=force), change, observer=observer)
    if not quiet:
        print_report(result)
