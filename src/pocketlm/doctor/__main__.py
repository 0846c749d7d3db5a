"""``python -m pocketlm.doctor``: what ``pocketlm doctor`` prints, where that is not installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from pocketlm import streams
from pocketlm.doctor.examination import examine
from pocketlm.doctor.report import tell
from pocketlm.export.errors import StorageError
from pocketlm.export.interrupts import INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; takes the options of the command, and ends as that does."""
    parser = argparse.ArgumentParser(prog="python -m pocketlm.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON object, not lines")
    parser.add_argument("--quick", action="store_true", help="leave out the self-test")
    asked = parser.parse_args(arguments)
    streams.prepare()
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that cannot show a character gets an escape, not a crash.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return tell(examine(self_test=not asked.quick), asked.json, partial(print, flush=True))
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # of standard output: what a check meets is told by it
        streams.discard(sys.stdout)
        if isinstance(error, BrokenPipeError):  # the reader went away (``| head``): its right
            return 0
        print(f"standard output: {error.strerror}; free some space", file=sys.stderr)
        return StorageError.exit_code


if __name__ == "__main__":
    sys.exit(main())
