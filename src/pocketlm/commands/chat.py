"""``pocketlm chat``: lines go in, answers stream out, and the conversation is remembered."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pocketlm.commands.option_names import with_options
from pocketlm.commands.options import (
    answer_form_options,
    debug_option,
    model_options,
    open_model,
    sampling_options,
    system_option,
    template_option,
    unescape,
)
from pocketlm.commands.remote_writer import find_server, remote_writer, server_options
from pocketlm.commands.terminal import print_stream, say, why_it_stopped
from pocketlm.commands.writer import OwnWriter, Writer
from pocketlm.export.errors import PocketLMError, RequestError, StorageError
from pocketlm.export.interrupts import on_interrupt
from pocketlm.export.output_file import OutputFile

PROMPT = "> "
PASTE_SECONDS = 0.02  # between lines of a paste; nobody types so fast
Messages = list[dict[str, str]]


@click.command("chat", context_settings={"default_map": {"max_tokens": 1024}})
@click.argument("model", required=False)
@system_option
@template_option
@sampling_options
@answer_form_options
@model_options
@server_options
@debug_option
@click.pass_context
def command(
    context: click.Context,
    /,
    model: str | None,
    system: str | None,
    template_args: dict[str, Any],
    stop: tuple[str, ...],
    server: str | None,
    api_key_file: Path | None,
    debug: bool,
    **options: Any,
) -> None:
    """Talk with a model, which remembers the conversation.

    MODEL is a model folder, a checkpoint, a name on the hub (org/name) or demo; best one that was
    trained to chat. One that was not is given the conversation as a script to go on with. Each line
    of input is a message, with the next one if it ends in a backslash; lines that are pasted
    together are one message. They may also come from a file or a pipe. Commands begin with a slash,
    /help lists them; a message that does begins with two. Ctrl-C stops an answer, Ctrl-D ends.
    With --server a server answers, and MODEL is one of its models by name: the first, if it is left
    out.

    \b
    Examples:
      pocketlm chat llama-3.2-1b-instruct/
      pocketlm chat llama-3.2-1b-instruct/ --system "You answer in one sentence."
      pocketlm chat llama-3.2-1b-instruct/ --choice yes,no,maybe
      pocketlm chat Qwen/Qwen3-0.6B --template-arg enable_thinking=false
      pocketlm chat --server http://127.0.0.1:8080
    """
    # The locale "C" has no accents, and lets bytes through that are no text.
    is_c = sys.stdin.encoding == "ascii" or sys.stdin.errors == "surrogateescape"
    if is_c and hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    remote = find_server(server, api_key_file)
    writer: Writer
    if remote is not None:
        writer = remote_writer(remote, model, context, options)
    elif model is not None:
        writer = OwnWriter(open_model(model, options), remembers=True)
    else:
        raise click.UsageError(
            "found neither a model nor --server, expected one of them; try: pocketlm chat demo"
        )
    if template_args and not writer.has_template:
        raise click.UsageError(
            "found --template-arg, expected a model with a chat template; leave it out"
        )
    options["stop"] = [unescape(text) for text in stop]
    # Ctrl-C means something else here than in other verbs, until the conversation is over.
    with on_interrupt(signal.default_int_handler):
        Conversation(writer, system, options, template_args, context.command).run()


class Conversation:
    """The messages so far, and what a line of input does to them."""

    def __init__(
        self,
        writer: Writer,
        system: str | None,
        options: dict[str, Any],
        template_args: dict[str, Any],
        command: click.Command,
    ) -> None:
        """``options`` are those of ``Model.stream``, as ``command`` calls them.

        Raises what ``Writer.check`` and ``Writer.chat_prompt`` raise, before a line is read.
        """
        self.writer = writer
        self.options = options
        self.template_args = template_args
        self.command = command
        self.transcript = not writer.has_template
        self.messages: Messages = []
        self.interactive = sys.stdin.isatty()
        if self.transcript:
            say("this is a base model, without a chat template: it continues a script of our talk")
        self.set_system(system or "")
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/reset": (self.reset, "forget the conversation, but not the system message"),
            "/save": (self.save, "FILE: write the messages to a new file, as JSON"),
            "/system": (self.set_system, "TEXT: tell the model something first; without TEXT: not"),
            "/help": (self.help, "list the commands"),
            "/exit": (self.exit, "end, as does Ctrl-D"),
        }

    def run(self) -> None:
        """Reads lines until they end."""
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (input edits lines with it, where there is one)
            say("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends")
        interrupted = False
        first = True
        while True:
            try:
                text = self._read()
                interrupted = False
                self.take(text.removeprefix("\ufeff") if first else text)
                first = False
            except KeyboardInterrupt:
                say("")
                if interrupted:
                    return
                interrupted = True
            except UnicodeDecodeError as error:
                raise RequestError(
                    f"stdin: found the byte {error.object[error.start]:#x}, expected UTF-8 text"
                ) from error
            except EOFError:
                if self.interactive:
                    say("")
                return
            except PocketLMError as error:
                if not self.interactive:
                    raise
                say(with_options(str(error), self.command))

    def _read(self) -> str:
        """A message or command: a line, and those that belong to it. EOFError at the end."""
        lines = [input(PROMPT if self.interactive and sys.stdout.isatty() else "")]
        while lines[-1].endswith("\\") or (self.interactive and _more_is_there()):
            lines[-1] = lines[-1].removesuffix("\\")
            try:
                lines.append(input())
            except EOFError:
                break
        return "\n".join(lines)

    def take(self, text: str) -> None:
        """Carries out a command, or answers a message; EOFError ends the conversation.

        A message begins with "//" for a slash; from a file or a pipe, what is no command is one.
        """
        name, _, rest = text.strip().partition(" ")
        if name in self.commands:
            self.commands[name][0](rest.strip())
        elif name.startswith("//"):
            self.answer(text.replace("/", "", 1))
        elif name.startswith("/") and self.interactive:
            say(
                f"found {name}, expected one of {', '.join(self.commands)}; for a message that "
                "begins so, write //"
            )
        elif text.strip():
            self.answer(text)

    def answer(self, text: str) -> None:
        """Prints the answer to ``text``; both are remembered, the answer as far as it came."""
        self.writer.tell_lost(text, "message")
        messages, prompt = self._fitting([*self.messages, {"role": "user", "content": text}])
        stream = self.writer.stream(prompt, **self.options)
        if forgotten := len(self.messages) + 1 - len(messages):
            say(f"the context is full: forgot the oldest {forgotten} messages")
        with on_interrupt(lambda *_: stream.cancel()):
            answer = "".join(piece.text for piece in print_stream(stream))
        if answer or stream.finish_reason != "cancelled":
            self.messages = [*messages, {"role": "assistant", "content": answer}]
        if limit := why_it_stopped(stream, self.writer.context_length):
            say(limit)

    def _fitting(self, messages: Messages) -> tuple[Messages, Any]:
        """``messages`` and their prompt, without the oldest if there is no room for an answer.

        Then half of the context is freed at once: what the cache holds is of no use to a prompt
        that begins otherwise, and so that happens seldom. Where nobody knows how long it is, the
        user is told that there is no room.
        """
        prompt, length = self._prompt(messages), self.writer.context_length
        room = min(self.options["max_tokens"], length // 4)
        if not length or self.writer.num_tokens(prompt) <= length - room:
            return messages, prompt
        kept = messages
        while self.writer.num_tokens(prompt) > length // 2 and (rest := _later(kept)):
            kept = rest
            prompt = self._prompt(kept)
        return kept, prompt

    def _prompt(self, messages: Messages) -> Any:
        return self.writer.chat_prompt(messages, self.template_args, self.transcript)

    def reset(self, _: str) -> None:
        """Keeps what the model is told before a conversation."""
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def set_system(self, text: str) -> None:
        """Replaces the system message; RequestError, and no change, where the template has none."""
        told = [{"role": "system", "content": text}] if text else []
        self.writer.tell_lost(text, "system message")
        # What cannot be is refused here rather than with the next message.
        self.writer.check(self._prompt([*told, {"role": "user", "content": "?"}]), **self.options)
        self.messages = told + [m for m in self.messages if m["role"] != "system"]

    def save(self, name: str) -> None:
        """Writes a file that was not there."""
        if not name:
            say("found no name, expected /save FILE")
            return
        path = Path(name).expanduser()
        text = json.dumps(self.messages, ensure_ascii=False, indent=1) + "\n"
        try:
            OutputFile(path).write(text.encode("utf-8", "backslashreplace"))
        except (RequestError, StorageError) as error:
            say(str(error))
        else:
            say(f"wrote {len(self.messages)} messages to {path}")

    def help(self, _: str) -> None:
        """Lists the commands."""
        for name, (_action, text) in self.commands.items():
            say(f"{name:8} {text}")

    def exit(self, _: str) -> None:
        """Ends as the end of the input does."""
        raise EOFError


def _more_is_there() -> bool:
    """Whether more lines wait on the terminal already, as those of a paste do."""
    try:
        return bool(select.select([sys.stdin], [], [], PASTE_SECONDS)[0])
    except (OSError, ValueError):  # Windows has this for sockets alone
        return False


def _later(messages: Messages) -> Messages:
    """Without the oldest question and its answer; [] where only the last question is left."""
    told = [message for message in messages if message["role"] == "system"]
    said = messages[len(told) :]
    questions = [index for index, message in enumerate(said) if message["role"] == "user"]
    return [*told, *said[questions[1] :]] if len(questions) > 1 else []
