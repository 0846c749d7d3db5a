"""``pocketlm run``: a prompt goes in, text streams out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pocketlm.commands.options import (
    Place,
    context_options,
    debug_option,
    form_options,
    given,
    loop_options,
    model_options,
    sampling_options,
    system_option,
    template_option,
    unescape,
)
from pocketlm.commands.recipes import print_recipe_option, read_recipe
from pocketlm.commands.remote_writer import find_server, remote_writer, server_options
from pocketlm.commands.result import alternatives, statistics
from pocketlm.commands.result import as_json as told_as_json
from pocketlm.commands.several import several_options, tell_several
from pocketlm.commands.terminal import how_it_slid, print_stream, say, why_it_stopped
from pocketlm.commands.writer import own_writer
from pocketlm.export.utf8 import piped, utf8
from pocketlm.models.reference import hub_name, names_model
from pocketlm.runtime.limits import MOST_LOGPROBS

if TYPE_CHECKING:
    from pocketlm.remote.server import Server


@click.command("run")
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option("--chat", is_flag=True, help="Answer PROMPT, by the model's chat template.")
@system_option
@template_option
@click.option(
    "--recipe",
    metavar="FILE",
    help='Put PROMPT into this template: "assistant", which lets a model that only continues texts '
    "answer, or a TOML file of yours in its form.",
)
@print_recipe_option
@click.option(
    "--prompt-cache",
    type=Place(),
    metavar="FILE",
    help="Keep in FILE what was computed of PROMPT: the next time nothing of it is computed again, "
    "and of a prompt that begins alike only the rest.",
)
@context_options
@sampling_options
@form_options
@loop_options
@several_options
@click.option(
    "--logprobs",
    type=click.IntRange(0, MOST_LOGPROBS),
    metavar="N",
    help="After the text, a line for each token: the natural log of its probability, and the N "
    "likeliest tokens in its place.",
)
@model_options
@server_options
@click.option("--stats", is_flag=True, help="Print times, rates and peak memory to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@debug_option
@click.pass_context
def command(
    context: click.Context,
    /,
    words: tuple[str, ...],
    chat: bool,
    system: str | None,
    template_args: dict[str, Any],
    recipe: str | None,
    stop: tuple[str, ...],
    draft: str | None,
    server: str | None,
    api_key_file: Path | None,
    n: int | None,
    beams: int | None,
    length_penalty: float,
    stats: bool,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Generate text from a prompt, as it comes.

    MODEL is a model folder, a checkpoint (a Hugging Face folder, or a GGUF file as it lies on your
    disk), or a name on the hub (org/name, org/name@revision); without it, or by the name of demo,
    the demo model runs. A folder comes before a name: write ./demo for one that is called so. A
    checkpoint is exported once and kept in the cache folder; one on the hub is downloaded first,
    and runs without the network from then on. PROMPT is the text to continue; "-" reads it from
    stdin, and without one the text begins at the beginning. On a terminal the prompt is shown
    before its continuation. With --server the text comes from a server, and MODEL is one of its
    models by name: the first, if it is left out.

    \b
    Examples:
      pocketlm run "It was a dark and stormy night"
      pocketlm run meta-llama/Llama-3.2-1B "Why is the sky blue?"
      pocketlm run SmolLM2-135M-Instruct.Q4_1.gguf "Why is the sky blue?" --chat
      pocketlm run gpt2-int4/ "Once upon a time" --max-tokens 100 --seed 7 --stats
      pocketlm run llama-3.2-1b-instruct/ "Why is the sky blue?" --chat
      pocketlm run gpt2-int4/ "The date is " --regex "[0-9]{4}-[0-9]{2}-[0-9]{2}"
      pocketlm run gpt2-int8/ "Why is the sky blue?" --recipe assistant
      pocketlm run gpt2-int8/ "Once upon a time" --n 3 --seed 1
      echo "some prompt" | pocketlm run gpt2-int4/ - --json
      pocketlm run --server http://127.0.0.1:8080 demo "It was a dark and stormy night"
    """
    remote = find_server(server, api_key_file)
    path, prompt = _model_and_prompt(words, remote)
    prompt = utf8(prompt)  # not the path: that is looked up as the system spelled it
    if prompt == "-":
        prompt = _read_stdin()
    if system is not None and not chat:
        raise click.UsageError("found --system without --chat, expected both; add --chat")
    if template_args and not chat:
        raise click.UsageError("found --template-arg without --chat, expected both; add --chat")
    if chat and not prompt:
        raise click.UsageError("found --chat and no prompt, expected what the model shall answer")
    if chat and recipe is not None:
        raise click.UsageError("found --chat with --recipe, expected one of them: both are prompts")
    if beams is None and given(context, "length_penalty"):
        raise click.UsageError("found --length-penalty without --beams, expected both; add --beams")
    if recipe is not None and beams is not None:
        raise click.UsageError(
            "found --recipe with --beams, which cannot heed where a recipe stops; leave one out"
        )
    if stats and (n is not None or beams is not None):
        raise click.UsageError("found --stats with --n or --beams, expected one text; leave it out")
    options["stop"] = [unescape(text) for text in stop]
    shown = "" if chat or recipe is not None else prompt
    if recipe is not None:
        if not prompt:
            raise click.UsageError("found --recipe and no prompt, expected what goes into it")
        form = read_recipe(recipe, ("text",))
        prompt = form.fill({"text": prompt})
        options["stop"] += form.stop
    if remote is None:
        writer = own_writer(path, draft, options)
    else:
        writer = remote_writer(remote, path, context, options)
        options["draft"] = draft
    writer.tell_lost(prompt, "prompt")
    writer.tell_lost(system or "", "system message")
    asked_for: Any = prompt
    if chat:
        asked_for = writer.chat_prompt(conversation(system, prompt), template_args)
    if n is not None or beams is not None:
        tell_several(writer, asked_for, n, beams, length_penalty, options, as_json)
        return
    stream = writer.stream(asked_for, **options)
    pieces = list(stream) if as_json else print_stream(stream, shown)
    result = stream.result_of(pieces)
    if as_json:
        # In ASCII: right whatever the encoding of stdout.
        click.echo(json.dumps(told_as_json(writer.circumstances, result, prompt)))
    else:
        if slid := how_it_slid(stream, writer.context_length):
            say(slid)
        # A limit that was asked for is no news.
        asked = given(context, "max_tokens")
        limit = why_it_stopped(stream, writer.context_length)
        if limit and not (asked and stream.finish_reason == "length"):
            say(limit)
        for line in alternatives(writer, result):
            click.echo(line)
    if stats:
        click.echo(statistics(writer.circumstances, result, stream.prompt_cache), err=True)


def _model_and_prompt(words: tuple[str, ...], server: Server | None) -> tuple[str | None, str]:
    """One word is a prompt, unless it can only be a model: see ``names_model``.

    Of a server it is a model if that has one of the name.
    """
    if len(words) > 2:
        raise click.UsageError(
            f"found {len(words)} arguments, expected a model and a prompt; quote the prompt"
        )
    if len(words) == 2:
        return words[0], words[1]
    if not words:
        return None, ""
    word = words[0]
    if not word.strip():
        raise click.UsageError(
            "found one empty argument, expected a model or a prompt; is a variable not set? For an "
            'empty prompt leave it out, or name the model: pocketlm run demo ""'
        )
    if server is not None:
        return (word, "") if word in server.names else (None, word)
    if word != "-" and names_model(word):
        return word, ""
    if meant := hub_name(word):
        click.echo(
            f"pocketlm: {word} is taken for a prompt of the demo model; to run the model of that "
            f'name, give a prompt as well: pocketlm run {meant} ""',
            err=True,
        )
    return None, word


def conversation(system: str | None, prompt: str) -> list[dict[str, str]]:
    """The messages of one question."""
    told = [] if system is None else [{"role": "system", "content": system}]
    return [*told, {"role": "user", "content": prompt}]


def _read_stdin() -> str:
    """The prompt, without the newline that ``echo`` adds, and what Windows adds: see ``piped``."""
    data = sys.stdin.buffer.read()
    try:
        return piped(data).removesuffix("\n")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"stdin: found the byte {data[error.start]:#x} at {error.start}, expected UTF-8 text"
        ) from error
