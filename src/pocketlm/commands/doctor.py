"""``pocketlm doctor``: what this machine can do, what is wrong, and what to type."""

from __future__ import annotations

import click

from pocketlm.commands.options import debug_option
from pocketlm.doctor import examine
from pocketlm.doctor.report import tell


@click.command("doctor")
@click.option("--json", "as_object", is_flag=True, help="Print a JSON object instead of lines.")
@click.option("--quick", is_flag=True, help="Leave out the self-test, which runs the demo model.")
@debug_option
def command(as_object: bool, quick: bool, debug: bool) -> int:
    """Tell what this machine can do, what is wrong with it, and what to type.

    It looks at Python, packages and ONNX Runtime, at the processor and what it means for each
    precision, at memory, disk and the cache folder, and runs the demo model for about two seconds:
    its tokens, the promise that what is computed beside a text does not change it, and its speed.
    Nothing is mended, and no model is left on the disk. The exit code is 1 if something is wrong;
    warnings are no fault.

    \b
    Examples:
      pocketlm doctor
      pocketlm doctor --quick --json
    """
    return tell(examine(self_test=not quick), as_object, click.echo)
