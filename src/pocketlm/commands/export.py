"""``pocketlm export``: a checkpoint becomes a model folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pocketlm.commands.options import Place, hub_options, precision_options, writing_options
from pocketlm.commands.progress import downloading, print_plan, print_report, shown
from pocketlm.export.publishing import Target
from pocketlm.export.traced.process import check_packages
from pocketlm.exported import HubOptions, checkpoint_folder, headers_folder, opened_checkpoint
from pocketlm.quantize.precisions import PRECISIONS
from pocketlm.quantize.run import export_checkpoint, export_traced, plan_checkpoint
from pocketlm.reference import check_options, find_reference


@click.command("export")
@click.argument("checkpoint")
@click.argument("out", type=Place())
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Number format of the weights.",
)
@precision_options
@click.option(
    "--tokenizer",
    type=Place(),
    help="Folder with tokenizer.json, for a checkpoint that has none.",
)
@click.option(
    "--via",
    type=click.Choice(["optimum"]),
    help="Let Optimum trace the graph: for an architecture that pocketlm does not declare itself, "
    "and for torch .bin files.",
)
@click.option(
    "--no-rewrite",
    is_flag=True,
    help="With --via: leave the attention as it was traced, with a cache that grows.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only print the plan, from headers alone: bytes, disk, peak memory, time. A folder with "
    "nothing but config.json will do.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan of --dry-run as JSON.")
@hub_options
@writing_options
def command(
    checkpoint: str,
    out: Path,
    precision: str,
    block_size: int | None,
    head: str | None,
    tokenizer: Path | None,
    via: str | None,
    no_rewrite: bool,
    dry_run: bool,
    as_json: bool,
    revision: str | None,
    offline: bool,
    keep_download: bool,
    force: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Turn a checkpoint into a model folder, ready for `pocketlm run`.

    CHECKPOINT is a Hugging Face folder (config.json, *.safetensors, tokenizer.json), an llm.c .bin
    file, a name on the hub (org/name), which is downloaded first, or demo; with --via optimum also
    one of another architecture, or with pytorch_model.bin. OUT is a new folder; it appears when it
    is complete. The plan, a progress bar and the report go to stderr.

    \b
    Examples:
      pocketlm export gpt2/ gpt2-int4/ --precision int4
      pocketlm export meta-llama/Llama-3.2-1B out/ --precision int8
      pocketlm export Llama-3.1-405B/ out/ --precision int4 --dry-run
      pocketlm export bloom-560m/ bloom-int8/ --via optimum --precision int8
    """
    if via is None and no_rewrite:
        raise click.UsageError("found --no-rewrite, expected it with --via optimum only")
    if via is not None and dry_run:
        raise click.UsageError(
            "found --dry-run with --via, expected one of them: the graph of a trace is not known "
            "before it is made"
        )
    if as_json and not dry_run:
        raise click.UsageError("found --json without --dry-run, expected both; add --dry-run")
    for name, given in (("--quiet", quiet), ("--keep-download", keep_download)):
        if dry_run and given:
            raise click.UsageError(
                f"found {name} with --dry-run, expected one of them: a dry run prints its plan and "
                "fetches no weights"
            )
    reference = find_reference(checkpoint)
    check_options(reference, {"revision": revision, "keep_download": keep_download})
    hub = HubOptions(
        revision,
        offline,
        keep_download,
        lambda name, total: downloading(name, total, quiet),
    )
    options: dict[str, Any] = {"block_size": block_size, "head": head}
    target = Target(out, force=force)  # now: what follows may take hours
    if dry_run:
        with headers_folder(reference, hub) as folder:
            plan = plan_checkpoint(folder, out, precision, tokenizer=tokenizer, **options)
        if as_json:
            click.echo(json.dumps(asdict(plan) | {"out": str(out)}))
        else:
            print_plan(plan)
        return
    if via is not None:
        check_packages()
        with checkpoint_folder(reference, hub, for_torch=True) as (folder, origin):
            if not quiet:
                click.echo(f"tracing {checkpoint} with Optimum, in a process of its own", err=True)
            options |= {"tokenizer": tokenizer, "rewrite": not no_rewrite, "origin": origin}
            with shown(quiet) as callbacks:
                model = export_traced(folder, target, precision, **options, **callbacks)
    else:
        with opened_checkpoint(reference, tokenizer, hub) as opened, shown(quiet) as callbacks:
            model = export_checkpoint(opened, target, precision, **options, **callbacks)
    if not quiet:
        print_report(model)
