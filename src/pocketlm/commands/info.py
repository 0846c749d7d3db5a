"""``pocketlm info``: what a model folder holds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console

from pocketlm.commands.options import Place, debug_option, made_folder
from pocketlm.commands.progress import (
    graph_maker,
    lost_before,
    precision_tables,
    prefill_text,
    wide_console,
)
from pocketlm.export.errors import MissingExtraError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph_check.graph import check_graph
from pocketlm.export.importing import importing
from pocketlm.export.manifest import INT8_KV_DECODER, PrecisionEntry, Source, TensorReport
from pocketlm.export.quantities import size_text
from pocketlm.quantize.precisions import FULL


@click.command("info")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option(
    "--verify",
    is_flag=True,
    help="Read every file again, and check bytes and graphs.",
)
@click.option(
    "--save-plan",
    type=Place(),
    metavar="FILE",
    help="Write the format of every weight to FILE, for --plan of `pocketlm export` and "
    "`pocketlm quantize`.",
)
@debug_option
def command(model: str, as_json: bool, verify: bool, save_plan: Path | None, debug: bool) -> None:
    """Show what a model folder holds: architecture, sizes, precision, files and their hashes.

    MODEL is a model folder that `pocketlm export` or `pocketlm quantize` wrote, or the name of a
    model in the cache (org/name, demo). Its sizes are compared with the manifest each time, with
    --verify also its bytes, and its graphs with what pocketlm can have written.

    \b
    Examples:
      pocketlm info gpt2-int4/ --verify
      pocketlm info demo --save-plan plan.json
    """
    opened = made_folder(model)
    if verify:
        opened.verify(remembered=False)
        for name in opened.manifest.graphs:
            check_graph(opened, name)
    if save_plan is not None:
        _save_plan(opened, save_plan)
    if as_json:
        click.echo(json.dumps(opened.manifest.to_json(), indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in _summary(opened):
        console.print(line, markup=False, emoji=False)
    for table in precision_tables(opened.manifest.precision):
        console.print()
        wide_console().print(table)
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
    lost = f"; {lost_before(source.quantized)}" if source.quantized else ""
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
        *_plan_lines(precision),
        *_prefill_lines(folder),
        f"size          {size_text(total)} in {len(folder.files)} files, "
        f"{8 * folder.weights_bytes / manifest.num_parameters:.2f} bits per weight",
        f"source        {source.format}: {', '.join(source.files)}{origin}{lost}",
        *_adapter_lines(source),
        f"provider      {_provider(folder)}",
    ]


def _adapter_lines(source: Source) -> Iterator[str]:
    for adapter in source.adapters or ():
        of = f", trained on {adapter.base_model}" if adapter.base_model else ""
        yield f"adapter       {adapter.name} merged with weight {adapter.weight:g}{of}"


def _plan_lines(precision: PrecisionEntry) -> Iterator[str]:
    """How many weights have each format, what was done before, and what that is to keep."""
    if report := precision.report:
        parts = _format_texts(report.tensors)
        parts += [f"{FULL} in {_weights(len(report.skipped))}"] if report.skipped else []
        yield f"plan          {'; '.join(parts) or 'nothing quantized'}"
    if rotation := precision.rotation:
        yield f"rotation      {', '.join(rotation.parts) or 'none'} of seed {rotation.seed}"
        for name, reason in rotation.skipped.items():
            yield f"              not {name}: {reason}"
    if calibration := precision.calibration:
        yield f"calibration   {calibration.kind}, {calibration.tokens:,} tokens"
    if promise := precision.promise:
        most = "" if promise.max_kl is None else f", asked for at most {promise.max_kl:g}"
        yield (
            f"promise       KL {promise.kl:g} nats per token{most}; measured on {promise.tokens:,} "
            f"tokens of {promise.text}"
        )


def _format_texts(tensors: Sequence[TensorReport]) -> list[str]:
    sizes: dict[str, list[int]] = defaultdict(list)
    for tensor in tensors:
        sizes[tensor.format].append(tensor.bytes_after)
    return [f"{name} in {_weights(len(s))}, {size_text(sum(s))}" for name, s in sizes.items()]


def _prefill_lines(folder: ModelFolder) -> Iterator[str]:
    """What the second set of weights is, and costs."""
    if second := folder.manifest.precision.prefill:
        cost = prefill_text(folder.prefill_bytes, folder.prefill_memory_bytes)
        yield f"prefill       {cost}"
        yield f"              {'; '.join(_format_texts(second.tensors))}"


def _weights(count: int) -> str:
    return f"{count:,} weight{'s' if count != 1 else ''}"


def _save_plan(folder: ModelFolder, file: Path) -> None:
    with importing("writing a plan", "export"):
        from pocketlm.quantize.run import plan_of
    plan_of(folder).write(file)


def _int8(folder: ModelFolder) -> str:
    """What the second graph, if there is one, makes of it."""
    if INT8_KV_DECODER not in folder.manifest.graphs:
        return ""
    return f", {size_text(folder.shape.kv_numbers_per_token)} with --kv int8"


def _provider(folder: ModelFolder) -> str:
    """Where ``--provider auto`` would run it on this machine."""
    try:
        from pocketlm.runtime.providers import cuda_obstacle  # not above: JSON needs none of it
    except MissingExtraError as error:
        return f"none: {str(error).partition(': ')[2]}"  # without "running a model"
    obstacle = cuda_obstacle(folder.decoder_formats)
    return "cuda" if obstacle is None else f"cpu: found {obstacle.found}"
