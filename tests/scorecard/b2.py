"""B2: schemathesis over /openapi.json; of what it makes up, valid and not, nothing fails.

    0 failures of at least 100 examples of each operation, beside those of its limits

Its command runs in a process of its own, by the address of a server in this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from figure import Conditions, Figure, NotRun
from tiny_server import tiny_server

EXAMPLES, LEAST = 100, 30  # of each operation
KEY = "sesame"
SECONDS = 900
# Checks that are left out, each for what it does not know.
LEFT_OUT = {
    # A schema says what each field may be, not which go together (``beams`` without ``stream``,
    # ``text`` or ``continuations``), what the model's context holds, or that a form is one.
    "positive_data_acceptance": "rules between fields, and those of the model, are no JSON schema's"
}


def measure(conditions: Conditions) -> Figure:
    """Runs it with the seed; NotRun where schemathesis is not installed."""
    if find_spec("schemathesis") is None:
        raise NotRun("schemathesis is not installed: pip install schemathesis")
    figure = Figure("failures", 0)
    with tiny_server(api_key=KEY) as server:
        report, output = _run(f"{server.url}/openapi.json", conditions)
        lived, _ = server.send("GET", "/health")
    cases = report["test_cases"]
    figure.ok = cases["generated"] - cases["with_failures"]
    figure.worst = figure.fail = cases["with_failures"] + cases["errored"] + len(report["errors"])
    figure.notes = {
        "operations": report["operations"]["tested"],
        "left_out": LEFT_OUT,
        "failures": [failure["title"] for failure in report["failures"]],
    }
    whole = report["complete"] and report["operations"]["tested"] == report["operations"]["total"]
    figure.check(bool(whole and lived.status == 200), conditions, "schemathesis", output)
    if figure.fail:
        conditions.out.mkdir(parents=True, exist_ok=True)
        (conditions.out / "schemathesis.txt").write_text(output, "utf-8")
    return figure


def _run(url: str, conditions: Conditions) -> tuple[dict[str, Any], str]:
    """What its report says, and what it prints: each failure with what reproduces it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "schemathesis.cli", "run", url]
        # Its coverage of every bound of every field are 2,000 cases, however few examples follow.
        phases = "fuzzing" if conditions.quick else "coverage,fuzzing"
        command += ["--max-examples", str(conditions.count(EXAMPLES, LEAST)), "--phases", phases]
        command += ["--seed", str(conditions.seed), "--header", f"Authorization: Bearer {KEY}"]
        command += ["--exclude-checks", ",".join(LEFT_OUT)]
        command += ["--continue-on-failure", "--max-failures", "20", "--output-sanitize", "false"]
        command += ["--report", "json", "--report-json-path", str(report)]
        ended = subprocess.run(
            command,
            cwd=folder,  # where it keeps what it found
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env={**os.environ, "NO_COLOR": "1"},
        )
        if not report.exists():
            raise NotRun(f"schemathesis wrote no report: {(ended.stdout + ended.stderr)[-500:]}")
        return json.loads(report.read_text("utf-8")), ended.stdout + ended.stderr
