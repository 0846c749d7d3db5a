"""The command line: lists the verbs, loads only the one that was asked for, ends every error well.

Exit codes: 0 success, 1 a bug of ours, 2 bad input or option, 3 the hub or a server refuses or
cannot be reached, 4 out of disk or memory, 5 address in use, 130 interrupted.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from pocketlm import __version__, streams
from pocketlm.export.errors import PocketLMError
from pocketlm.export.importing import import_failure, importing
from pocketlm.export.interrupts import INTERRUPTED, on_interrupt
from pocketlm.export.memory import exhausted, is_exhaustion

if TYPE_CHECKING:
    import click

# Verb -> what ``pocketlm --help`` says of it; each is a module of ``pocketlm.commands``.
VERBS = {
    "run": "Generate text from a prompt.",
    "chat": "Talk with a model.",
    "serve": "Serve models to clients of OpenAI's API, and a page to try them.",
    "batch": "Answer a file of prompts, many at once, and go on where it ended.",
    "classify": "Tell which label fits each line of a file.",
    "score": "Tell how likely a model finds each continuation of a file.",
    "translate": "Translate a file line by line, after examples.",
    "export": "Turn a checkpoint into a model folder.",
    "quantize": "Make a smaller model folder from an fp32 one.",
    "eval": "Measure how good a model is, and how far it diverges from another.",
    "bench": "Measure models side by side.",
    "info": "Show what a model folder holds.",
    "list": "List the models and downloads in the cache folder.",
    "remove": "Remove a model from the cache folder.",
    "doctor": "Tell what this machine can do, what is wrong, and what to type.",
}
BUG, BAD_INPUT, DISK = 1, 2, 4
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(arguments: list[str] | None = None) -> None:
    """Runs ``pocketlm`` with ``arguments`` (default: those of the process) and exits."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    atexit.register(gc.freeze)  # what is left at the end is not searched for cycles: it goes anyway
    streams.prepare()
    try:
        code = _run_interruptibly(arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader went away (``| head``): its right, not an error.
        streams.discard(sys.stdout)
        code = 0
    except Exception as error:
        if debug:
            raise
        code, message = _told(error)
        _complain(message)
    sys.exit(code)


def _told(error: Exception) -> tuple[int, str]:
    """The exit code of an error, and what is said of it."""
    if is_exhaustion(error):
        error = exhausted("memory ran out")
    if isinstance(error, PocketLMError):
        return error.exit_code, str(error)
    if isinstance(error, OSError):
        streams.discard(sys.stdout)
        code = DISK if error.errno in DISK_ERRORS else BAD_INPUT
        advice = "free some space" if code == DISK else "check path and permissions"
        return code, (
            f"{error.filename or 'standard output'}: found {str(error.strerror or error)!r}, "
            f"expected to read or write it; {advice}"
        )
    if isinstance(error, ImportError) and (told := import_failure(error, "this command", "cli")):
        # Another package may have brought click, but not the rest of what a verb needs.
        return told.exit_code, str(told)
    return BUG, (
        f"this is a bug in pocketlm: {type(error).__name__}: {error}; "
        "run it again with --debug and report what it prints"
    )


def _complain(message: str) -> None:
    """One line on stderr; what a file's content put into it may not drive the terminal."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    print(f"pocketlm: {line}", file=sys.stderr, flush=True)


def _run_interruptibly(arguments: list[str]) -> int:
    """A Ctrl-C is one whatever became of it: C extensions make an ImportError of it."""
    interrupted = False

    def interrupt(*_: object) -> NoReturn:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    with on_interrupt(interrupt):
        try:
            return _run(arguments)
        except Exception:
            if interrupted:
                return INTERRUPTED
            raise


def _run(arguments: list[str]) -> int:
    with importing("the command line", "cli"):
        import click
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that cannot show a character gets an escape, not a crash.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _group().main(arguments or ["--help"], prog_name="pocketlm", standalone_mode=False)
        sys.stdout.flush()
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        command = (
            error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        )
        _complain(f"{error.format_message().rstrip('.')}; see: {command or 'pocketlm'} --help")
        return BAD_INPUT
    except SystemExit:
        # How click ends when stdout's reader went away.
        return 0
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    return code if isinstance(code, int) else 0


def _group() -> click.Group:
    import click

    class Verbs(click.Group):
        """Imports a verb's module when it is asked for."""

        def list_commands(self, context: Any) -> list[str]:
            return list(VERBS)

        def get_command(self, context: Any, name: str) -> click.Command | None:
            if name not in VERBS:
                return None
            # NumPy prints a traceback of its own when its import is interrupted; at this point
            # nothing has been written, so that there is nothing to tidy up.
            with on_interrupt(lambda *_: os._exit(INTERRUPTED)):
                with importing("this command", "cli"):
                    module = importlib.import_module(f"pocketlm.commands.{name}")
            command: click.Command = module.command
            return command

        def invoke(self, context: Any) -> Any:
            try:
                return super().invoke(context)
            except PocketLMError as error:
                from pocketlm.commands.option_names import with_options

                command = self.get_command(context, context.invoked_subcommand)
                if command is not None:
                    error.args = (with_options(str(error), command),)
                raise

        def format_commands(self, context: Any, formatter: Any) -> None:
            with formatter.section("Commands"):
                formatter.write_dl(list(VERBS.items()))

    group = Verbs(
        "pocketlm",
        help="Run GPT-2 and its kin on an ordinary CPU: export a checkpoint to ONNX, quantize it "
        'to int8 or int4, generate text.\n\nTry it: pocketlm run "It was a dark and stormy night"',
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    group.params.append(
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")
    )
    return click.version_option(__version__, message="pocketlm %(version)s")(group)
