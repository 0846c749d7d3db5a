"""The command line: lists the verbs, loads only the one that was asked for, ends every error well.

Exit codes: 0 success, 1 a bug of ours, 2 bad input or option, 4 out of disk, 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from pocketlm import __version__
from pocketlm.export.errors import PocketLMError, missing_extra

if TYPE_CHECKING:
    import click

# Verb -> what ``pocketlm --help`` says of it; each is a module of ``pocketlm.commands``.
VERBS = {
    "run": "Generate text from a prompt.",
    "export": "Turn a checkpoint into a model folder.",
    "quantize": "Make a smaller model folder from an fp32 one.",
    "info": "Show what a model folder holds.",
}
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> None:
    """Runs ``pocketlm`` with ``arguments`` (default: those of the process) and exits."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        code = _run(arguments)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except PocketLMError as error:
        if debug:
            raise
        print(f"pocketlm: {error}", file=sys.stderr)
        code = error.exit_code
    except Exception as error:
        if debug:
            raise
        print(
            f"pocketlm: this is a bug in pocketlm: {type(error).__name__}: {error}; "
            "run it again with --debug and report what it prints",
            file=sys.stderr,
        )
        code = 1
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        import click
    except ImportError as error:
        raise missing_extra("cli", "the command line", error) from error
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        # A terminal that cannot show a character gets an escape, not a crash.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _group().main(arguments, prog_name="pocketlm", standalone_mode=False)
        sys.stdout.flush()
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return 2
    except SystemExit:
        # How click ends when stdout's reader went away (``| head``): its right, not an error.
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
            module = importlib.import_module(f"pocketlm.commands.{name}")
            command: click.Command = module.command
            return command

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
