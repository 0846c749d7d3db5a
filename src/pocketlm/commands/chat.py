"""``pocketlm chat``: lines go in, answers stream out, and the conversation is remembered."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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
from pocketlm.commands.terminal import print_stream, say, tell_lost, why_it_stopped
from pocketlm.export.errors import PocketLMError, RequestError, StorageError
from pocketlm.export.interrupts import on_interrupt
from pocketlm.export.output_file import OutputFile

if TYPE_CHECKING:
    from pocketlm.runtime.model import Model
    from pocketlm.runtime.request import ChatPrompt

PROMPT = "> "
PASTE_SECONDS = 0.02  # between lines of a paste; nobody types so fast
Messages = list[dict[str, str]]


@click.command("chat", context_settings={"default_map": {"max_tokens": 1024}})
@click.argument("model")
@system_option
@template_option
@sampling_options
@answer_form_options
@model_options
@debug_option
def command(
    model: str,
    system: str | None,
    template_args: dict[str, Any],
    stop: tuple[str, ...],
    debug: bool,
    **options: Any,
) -> None:
    """Talk with a model, which remembers the conversation.

    MODEL is a model folder, a checkpoint, a name on the hub (org/name) or demo; best one that was
    trained to chat. One that was not is given the conversation as a script to go on with. Each line
    of input is a message, with the next one if it ends in a backslash; lines that are pasted
    together are one message. They may also come from a file or a pipe. Commands begin with a slash,
    /help lists them; a message that does begins with two. Ctrl-C stops an answer, Ctrl-D ends.

    \b
    Examples:
      pocketlm chat llama-3.2-1b-instruct/
      pocketlm chat llama-3.2-1b-instruct/ --system "You answer in one sentence."
      pocketlm chat llama-3.2-1b-instruct/ --choice yes,no,maybe
      pocketlm chat Qwen/Qwen3-0.6B --template-arg enable_thinking=false
    """
    if sys.stdin.encoding == "ascii" and hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")  # the locale "C" has no accents
    opened = open_model(model, options)
    if template_args and opened.chat_template is None:
        raise click.UsageError(
            "found --template-arg, expected a model with a chat template; leave it out"
        )
    options["stop"] = [unescape(text) for text in stop]
    # Ctrl-C means something else here than in other verbs, until the conversation is over.
    with on_interrupt(signal.default_int_handler):
        Conversation(opened, system, options, template_args).run()


class Conversation:
    """The messages so far, and what a line of input does to them."""

    def __init__(
        self,
        model: Model,
        system: str | None,
        options: dict[str, Any],
        template_args: dict[str, Any] | None = None,
    ) -> None:
        """``options`` are those of ``Model.stream``, ``template_args`` of ``Model.chat_prompt``.

        Raises what that and ``Model.chat_prompt`` raise, before a line is read.
        """
        self.model = model
        self.options = options
        self.template_args = template_args or None
        self.transcript = model.chat_template is None
        self.cache = model.new_cache()
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
                say(str(error))

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
        tell_lost(self.model, text, "message")
        messages, prompt = self._fitting([*self.messages, {"role": "user", "content": text}])
        stream = self.model.stream(prompt, cache=self.cache, **self.options)
        if forgotten := len(self.messages) + 1 - len(messages):
            say(f"the context is full: forgot the oldest {forgotten} messages")
        with on_interrupt(lambda *_: stream.cancel()):
            answer = "".join(piece.text for piece in print_stream(stream))
        if answer or stream.finish_reason != "cancelled":
            self.messages = [*messages, {"role": "assistant", "content": answer}]
        if limit := why_it_stopped(stream, self._context_length):
            say(limit)

    def _fitting(self, messages: Messages) -> tuple[Messages, ChatPrompt]:
        """``messages`` and their prompt, without the oldest if there is no room for an answer.

        Then half of the context is freed at once: what the cache holds is of no use to a prompt
        that begins otherwise, and so that happens seldom.
        """
        prompt = self._prompt(messages)
        room = min(self.options["max_tokens"], self._context_length // 4)
        if len(prompt.token_ids) <= self._context_length - room:
            return messages, prompt
        kept = messages
        while len(prompt.token_ids) > self._context_length // 2 and (rest := _later(kept)):
            kept = rest
            prompt = self._prompt(kept)
        return kept, prompt

    def _prompt(self, messages: Messages) -> ChatPrompt:
        return self.model.chat_prompt(
            messages, transcript=self.transcript, template_args=self.template_args
        )

    @property
    def _context_length(self) -> int:
        return self.model.session.shape.context_length

    def reset(self, _: str) -> None:
        """Keeps what the model is told before a conversation."""
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def set_system(self, text: str) -> None:
        """Replaces the system message; RequestError, and no change, where the template has none."""
        told = [{"role": "system", "content": text}] if text else []
        tell_lost(self.model, text, "system message")
        # Nothing runs; what cannot be is refused here rather than with the next message.
        self.model.stream(self._prompt([*told, {"role": "user", "content": "?"}]), **self.options)
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
