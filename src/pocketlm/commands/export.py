"""``pocketlm export``: a checkpoint becomes a model folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from pocketlm.commands.options import (
    Place,
    calibration_options,
    chosen_change,
    hub_options,
    precision_options,
    writing_options,
)
from pocketlm.commands.progress import print_plan, print_report, shown
from pocketlm.export.foreign.folder import open_foreign
from pocketlm.export.foreign.opened import foreign_decoder, with_first_load
from pocketlm.export.lora.adapter import open_adapter
from pocketlm.export.lora.merging import merged
from pocketlm.export.plan import open_headers
from pocketlm.export.publishing import Target
from pocketlm.export.traced.process import check_packages
from pocketlm.export.via_optimum import traced
from pocketlm.export.writing import export_model, plan_export
from pocketlm.models.making import HubOptions, checkpoint_folder, headers_folder, opened_checkpoint
from pocketlm.models.reference import check_options, find_reference, foreign_path
from pocketlm.quantize.precisions import FULL, PRECISIONS


@click.command("export")
@click.argument("checkpoint")
@click.argument("out", type=Place())
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help=f"Number format of the weights. Default: {FULL}.",
)
@precision_options
@calibration_options
@click.option(
    "--tokenizer",
    type=Place(),
    help="Folder with tokenizer.json, for a checkpoint that has none.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIR[:WEIGHT]",
    help="Folder of a LoRA adapter of peft, merged in float32 before anything is quantized. May be "
    "given several times, each with a weight as in lora/:0.5; default: 1, as it was trained.",
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
    "--allow-foreign",
    is_flag=True,
    help="Take the ONNX graph of another runtime (onnxruntime-genai, transformers.js, optimum): "
    "CHECKPOINT is its model folder, or the file of one of its graphs.",
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
    precision: str | None,
    block_size: int | None,
    head: str | None,
    plan: Path | None,
    prefill: str | None,
    calibrate: tuple[str, ...],
    statistics: Path | None,
    max_kl: float | None,
    max_bytes: str | None,
    tokenizer: Path | None,
    adapters: tuple[str, ...],
    via: str | None,
    no_rewrite: bool,
    allow_foreign: bool,
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

    CHECKPOINT is a Hugging Face folder (config.json, *.safetensors, tokenizer.json), a GGUF file of
    llama.cpp (which needs the extra gguf), an llm.c .bin file, a name on the hub (org/name), which
    is downloaded first, or demo; with --via optimum also one of another architecture, or with
    pytorch_model.bin. OUT is a new folder; it appears when it is complete. The plan, a progress bar
    and the report go to stderr.

    \b
    Examples:
      pocketlm export gpt2/ gpt2-int4/ --precision int4
      pocketlm export SmolLM2-135M-Instruct.Q4_1.gguf out/ --precision int8
      pocketlm export meta-llama/Llama-3.2-1B out/ --precision int8
      pocketlm export meta-llama/Llama-3.2-1B out/ --precision int4 --prefill int8
      pocketlm export meta-llama/Llama-3.2-1B out/ --max-bytes 800MB
      pocketlm export meta-llama/Llama-3.2-1B out/ --plan plan.json
      pocketlm export Llama-3.1-405B/ out/ --precision int4 --dry-run
      pocketlm export base-model/ out/ --adapter lora/ --precision int8
      pocketlm export bloom-560m/ bloom-int8/ --via optimum --precision int8
    """
    if via is None and no_rewrite:
        raise click.UsageError("found --no-rewrite, expected it with --via optimum only")
    if no_rewrite and prefill is not None:
        raise click.UsageError(
            "found --no-rewrite with --prefill, expected one of them: a cache that grows is not "
            "shared by two graphs"
        )
    if via is not None and dry_run:
        raise click.UsageError(
            "found --dry-run with --via, expected one of them: the graph of a trace is not known "
            "before it is made"
        )
    if via is not None and adapters:
        raise click.UsageError(
            "found --adapter with --via, expected one of them: Optimum traces the base as it is; "
            "merge the adapter with peft (merge_and_unload), and export the result"
        )
    for name, given in (("--via", via), ("--adapter", adapters), ("--dry-run", dry_run)):
        if allow_foreign and given:
            raise click.UsageError(
                f"found {name} with --allow-foreign, expected one of them: there is a graph already"
            )
    if as_json and not dry_run:
        raise click.UsageError("found --json without --dry-run, expected both; add --dry-run")
    for name, given in (("--quiet", quiet), ("--keep-download", keep_download)):
        if dry_run and given:
            raise click.UsageError(
                f"found {name} with --dry-run, expected one of them: a dry run prints its plan and "
                "fetches no weights"
            )
    change = chosen_change(
        precision, block_size, head, plan, calibrate, statistics, max_kl, max_bytes, prefill
    )
    reference = find_reference(checkpoint)
    check_options(reference, {"revision": revision, "keep_download": keep_download})
    opened_adapters = tuple(open_adapter(asked) for asked in adapters)
    with shown(quiet) as observer:
        hub = HubOptions(revision, offline, keep_download, opened_adapters, observer)
        target = Target(out, force=force)  # now: what follows may take hours
        if dry_run:
            with headers_folder(reference, hub) as folder:
                headers = merged(open_headers(folder, tokenizer), hub.adapters, observer.message)
                planned = plan_export(headers, out, change)
            if as_json:
                click.echo(json.dumps(asdict(planned) | {"out": str(out)}))
            else:
                print_plan(planned)
            return
        if via is not None:
            check_packages()
            tracing = partial(traced, tokenizer=tokenizer, rewrite=not no_rewrite)
            with checkpoint_folder(reference, hub, for_torch=True) as (folder, origin):
                observer.message(f"tracing {checkpoint} with Optimum, in a process of its own")
                with tracing(folder, target, origin=origin) as decoder:
                    model = export_model(decoder, target, change, observer=observer)
        elif allow_foreign:
            decoder = foreign_decoder(open_foreign(foreign_path(reference)), tokenizer)
            checked = with_first_load(decoder, change, precision)
            model = export_model(decoder, target, checked, observer=observer)
        else:
            with opened_checkpoint(reference, tokenizer, hub) as opened:
                model = export_model(opened, target, change, observer=observer)
    if not quiet:
        print_report(model)
