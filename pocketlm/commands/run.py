"""``pocketlm run``: a prompt goes in, text streams out."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from pocketlm import load
from pocketlm.export.memory import peak_rss_bytes
from pocketlm.model import Model
from pocketlm.quantize.precisions import PRECISIONS
from pocketlm.runtime.text import TextStream

ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}


@click.command("run")
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Most new tokens.")
@click.option(
    "--temperature", type=float, default=0.8, show_default=True, help="0 takes the likeliest token."
)
@click.option("--top-k", type=int, help="Sample from the K likeliest tokens. Default: all.")
@click.option(
    "--top-p",
    type=float,
    default=0.95,
    show_default=True,
    help="Sample from the likeliest tokens that together reach this probability.",
)
@click.option(
    "--min-p",
    type=float,
    default=0.0,
    show_default=True,
    help="Leave out tokens less likely than this share of the likeliest.",
)
@click.option(
    "--repetition-penalty",
    type=float,
    default=1.0,
    show_default=True,
    help="Above 1 makes tokens that already appeared less likely.",
)
@click.option("--seed", type=int, help="Makes sampling repeatable on this machine.")
@click.option(
    "--stop",
    multiple=True,
    metavar="TEXT",
    help=r"End before this text; \n and \t are understood. May be given several times.",
)
@click.option("--ignore-eos", is_flag=True, help="Go on after an end-of-text token.")
@click.option("--threads", type=int, help="CPU threads. Default: the cores at hand.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="For a checkpoint and the demo: the precision to export it in. Default: int8.",
)
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="For a checkpoint without its own."
)
@click.option("--stats", is_flag=True, help="Print times, rates and peak memory to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(
    words: tuple[str, ...],
    stop: tuple[str, ...],
    threads: int | None,
    precision: str | None,
    tokenizer: Path | None,
    stats: bool,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Generate text from a prompt, as it comes.

    MODEL is a model folder or a checkpoint; without it the demo model runs. A checkpoint is
    exported once and kept in the cache folder. PROMPT is the text to continue; "-" reads it from
    stdin, and without one the text begins at the beginning. On a terminal the prompt is shown
    before its continuation.

    \b
    Examples:
      pocketlm run "It was a dark and stormy night"
      pocketlm run gpt2-int4/ "Once upon a time" --max-tokens 100 --seed 7 --stats
      echo "some prompt" | pocketlm run gpt2-int4/ - --json
    """
    path, prompt = _model_and_prompt(words)
    if prompt == "-":
        prompt = _read_stdin()
    with ExitStack() as drawing:

        def on_export(out: Path) -> dict[str, Any]:
            # Imported only now: drawing and exporting cost memory that a run does not need.
            from pocketlm.commands.progress import shown

            return drawing.enter_context(shown(quiet=not sys.stderr.isatty()))

        model = load(
            path, precision=precision, threads=threads, tokenizer=tokenizer, on_export=on_export
        )
    stream = model.stream(prompt, stop=[_unescape(text) for text in stop], **options)
    if as_json:
        text = "".join(piece.text for piece in stream)
        # In ASCII: right whatever the encoding of stdout.
        click.echo(json.dumps(_result(model, stream, prompt, text)))
    else:
        _print_stream(prompt, stream)
    if stats:
        click.echo(_stats(model, stream), err=True)


def _model_and_prompt(words: tuple[str, ...]) -> tuple[Path | None, str]:
    """One word is a prompt for the demo, unless it names something that exists."""
    if len(words) > 2:
        raise click.UsageError(
            f"found {len(words)} arguments, expected a model and a prompt; quote the prompt"
        )
    if len(words) == 2:
        return Path(words[0]), words[1]
    if words and words[0] not in ("", "-") and _exists(words[0]):
        return Path(words[0]), ""
    return None, words[0] if words else ""


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # longer than a file name may be, or with a NUL: a prompt
        return False


def _read_stdin() -> str:
    """The prompt, without the newline that ``echo`` adds."""
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"stdin: found the byte {data[error.start]:#x} at {error.start}, expected UTF-8 text"
        ) from error


def _unescape(text: str) -> str:
    r"""Backslash escapes of the shell's literal text: \n \t \r \\."""
    result, i = "", 0
    while i < len(text):
        pair = text[i : i + 2]
        result += ESCAPES.get(pair, text[i])
        i += 2 if pair in ESCAPES else 1
    return result


def _print_stream(prompt: str, stream: TextStream) -> None:
    terminal = sys.stdout.isatty()
    if terminal:
        click.secho(printable(prompt), dim=True, nl=False)
    for piece in stream:
        sys.stdout.write(printable(piece.text) if terminal else piece.text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def printable(text: str) -> str:
    """Control characters but newline and tab as U+FFFD: a model may not drive the terminal."""
    return "".join(
        "\ufffd" if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 else c for c in text
    )


def _result(model: Model, stream: TextStream, prompt: str, text: str) -> dict[str, Any]:
    timings = stream.timings
    return {
        "text": text,
        "prompt": prompt,
        "token_ids": stream.token_ids,
        "finish_reason": stream.finish_reason,
        "prompt_tokens": timings.prompt_tokens,
        "new_tokens": timings.new_tokens,
        "timings": {
            "load_seconds": model.load_seconds,
            "first_token_seconds": timings.first_token_seconds,
            "prefill_seconds": timings.prefill_seconds,
            "decode_seconds": timings.decode_seconds,
            "prefill_tokens_per_second": timings.prefill_rate,
            "decode_tokens_per_second": timings.decode_rate,
        },
        "peak_rss_bytes": peak_rss_bytes(),
        "threads": model.session.threads,
        "model": {
            "path": str(model.folder.path),
            "architecture": model.folder.manifest["architecture"],
            "precision": model.folder.manifest["precision"]["name"],
        },
    }


def _stats(model: Model, stream: TextStream) -> str:
    timings = stream.timings
    return (
        f"load {model.load_seconds:.2f} s, first token {1e3 * timings.first_token_seconds:.0f} ms, "
        f"prefill {timings.prefill_rate:.0f} tokens/s ({timings.prompt_tokens} tokens), "
        f"decode {timings.decode_rate:.0f} tokens/s ({timings.new_tokens} tokens), "
        f"peak memory {peak_rss_bytes() / 1e6:.0f} MB, {model.session.threads} threads, "
        f"finished by {stream.finish_reason}"
    )
