"""``pocketlm run``: a prompt goes in, text streams out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from pocketlm.commands.options import (
    debug_option,
    model_options,
    open_model,
    sampling_options,
    unescape,
)
from pocketlm.export.memory import peak_rss_bytes
from pocketlm.model import Model
from pocketlm.runtime.text import TextStream


@click.command("run")
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]")
@sampling_options
@model_options
@click.option("--stats", is_flag=True, help="Print times, rates and peak memory to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@debug_option
def command(
    words: tuple[str, ...],
    stop: tuple[str, ...],
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
    model = open_model(path, options)
    stream = model.stream(prompt, stop=[unescape(text) for text in stop], **options)
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
        "provider": model.session.place.name,
        "fallback": model.fallback,
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
        f"peak memory {peak_rss_bytes() / 1e6:.0f} MB, {model.session.threads} threads "
        f"on {model.session.place.name}, "
        f"finished by {stream.finish_reason}"
    )
