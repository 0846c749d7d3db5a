"""What pocketlm promises of files, requests, faults and load, figure by figure.

    python -m tests.scorecard [--quick] [--seed N] [ID]...

Each figure is a module of this folder, called by its id, with a function ``measure``. Prints a line
of JSON for each, and exits with 0 only if all that were asked for ran and passed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # what tests import, and figures each other

from figure import Conditions, Measure, NotRun  # noqa: E402


def figures() -> list[str]:
    """The ids of all, in order."""
    return sorted(path.stem for path in HERE.glob("[a-g][0-9]*.py"))


def main() -> int:
    """Measures what the command line asks for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.scorecard", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"of {', '.join(figures())}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the cases")
    parser.add_argument("--seed", type=int, help="fresh unless given")
    parser.add_argument(
        "--tries",
        type=int,
        default=1,
        help="how often a figure may be measured until it is good enough, where nothing but the "
        "clock is against it: other work on the machine shows there; each try has its line",
    )
    parser.add_argument("--out", type=Path, default=Path("bar-out"), help="for what failed")
    asked = parser.parse_args()
    seed = random.randrange(1 << 31) if asked.seed is None else asked.seed
    chosen = [name.lower() for name in asked.ids] or figures()
    if unknown := set(chosen) - set(figures()):
        parser.error(f"found {', '.join(sorted(unknown))}, expected {', '.join(figures())}")
    passed = [
        _measured(name, Conditions(asked.quick, seed, asked.out / name), asked.tries)
        for name in chosen
    ]
    return 0 if all(passed) else 1


def _measured(name: str, conditions: Conditions, tries: int) -> bool:
    measure: Measure = importlib.import_module(name).measure
    for _ in range(tries):
        started = time.perf_counter()
        try:
            figure = measure(conditions)
        except NotRun as error:
            print(json.dumps({"id": name, "pass": False, "not_run": str(error)}), flush=True)
            return False
        print(figure.line(name, conditions.seed, time.perf_counter() - started), flush=True)
        if figure.passed or figure.fail:
            break
    return figure.passed


if __name__ == "__main__":
    sys.exit(main())
