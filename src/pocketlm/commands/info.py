"""``pocketlm info``: what a model folder holds."""

from __future__ import annotations

import json

import click
from rich.console import Console

from pocketlm.commands.options import debug_option, made_folder
from pocketlm.commands.progress import graph_maker, precision_table, wide_console
from pocketlm.export.errors import MissingExtraError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph_check.graph import check_graph
from pocketlm.export.manifest import INT8_KV_DECODER
from pocketlm.export.quantities import size_text


@click.command("info")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option(
    "--verify",
    is_flag=True,
    help="Read every file again, and check bytes and graphs.",
)
@debug_option
def command(model: str, as_json: bool, verify: bool, debug: bool) -> None:
    """Show what a model folder holds: architecture, sizes, precision, files and their hashes.

    MODEL is a model folder that `pocketlm export` or `pocketlm quantize` wrote, or the name of a
    model in the cache (org/name, demo). Its sizes are compared with the manifest each time, with
    --verify also its bytes, and its graphs with what pocketlm can have written.

    \b
    Examples:
      pocketlm info gpt2-int4/ --verify
      pocketlm info demo
    """
    opened = made_folder(model)
    if verify:
        opened.verify(remembered=False)
        for name in opened.manifest.graphs:
            check_graph(opened, name)
    if as_json:
        click.echo(json.dumps(opened.manifest.to_json(), indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in _summary(opened):
        console.print(line, markup=False, emoji=False)
    report = opened.manifest.precision.report
    if report is not None:
        console.print()
        wide_console().print(precision_table(report))
    console.print()
    for name, entry in opened.files.items():
        console.print(f"{entry.sha256}  {entry.bytes:>12,}  {name}", markup=False, emoji=False)
    if verify:
        console.print(
            "all files are as they were written"
            if opened.manifest.sha256
            else "all other files are as the manifest says"
        )


def _summary(folder: ModelFolder) -> list[str]:
    manifest, shape = folder.manifest, folder.shape
    precision, report, source = manifest.precision, manifest.precision.report, manifest.source
    total = sum(entry.bytes for entry in folder.files.values())
    blocks = f", blocks of {precision.block_size}" if precision.block_size else ""
    head = f", head in {precision.head}" if precision.head else ""
    share = ""
    if report is not None:
        share = f"; {100 * report.share_quantized:.1f} % of the parameters quantized"
    origin = f" of {source.repository} at {source.commit}" if source.repository else ""
    undetected = ""
    if manifest.sha256 is None:
        undetected = ", without a digest of itself: export again to have changes in it found"
    return [
        f"manifest      of version {manifest.format_version}{undetected}",
        f"architecture  {manifest.architecture}, {manifest.num_parameters:,} parameters",
        f"graph         {graph_maker(folder)}",
        f"decoder       {shape.num_layers} layers, width {shape.hidden_size}, {shape.num_heads} "
        f"heads of {shape.head_size}, vocabulary {shape.vocab_size:,}",
        f"context       {shape.context_length:,} tokens, "
        f"{size_text(shape.kv_bytes_per_token)} of KV cache each{_int8(folder)}",
        f"precision     {precision.name}{blocks}{head}{share}",
        f"size          {size_text(total)} in {len(folder.files)} files, "
        f"{8 * folder.weights_bytes / manifest.num_parameters:.2f} bits per weight",
        f"source        {source.format}: {', '.join(source.files)}{origin}",
        f"provider      {_provider(precision.name)}",
    ]


def _int8(folder: ModelFolder) -> str:
    """What the second graph, if there is one, makes of it."""
    if INT8_KV_DECODER not in folder.manifest.graphs:
        return ""
    return f", {size_text(folder.shape.kv_numbers_per_token)} with --kv int8"


def _provider(precision: str) -> str:
    """Where ``--provider auto`` would run it on this machine."""
    try:
        from pocketlm.runtime.providers import cuda_obstacle  # not above: JSON needs none of it
    except MissingExtraError as error:
        return f"none: {str(error).partition(': ')[2]}"  # without "running a model"
    obstacle = cuda_obstacle(precision)
    return "cuda" if obstacle is None else f"cpu: found {obstacle.found}"
