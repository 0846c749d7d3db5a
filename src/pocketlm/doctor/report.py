"""Findings for people, as lines, and for programs, as JSON; with the same content."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

import pocketlm
from pocketlm.doctor.finding import OK, UNKNOWN, WARNING, WRONG, Finding

WORDS = {OK: "ok", WARNING: "warning", WRONG: "WRONG", UNKNOWN: "unknown"}
STATE_WIDTH, NAME_WIDTH, WIDTH = 9, 13, 100
INDENT = " " * (STATE_WIDTH + NAME_WIDTH)


def finding_text(finding: Finding) -> str:
    """Its lines: state, name and what was found; under it what to do, in one line to be copied."""
    words = f"{WORDS[finding.state]:{STATE_WIDTH}}{finding.name:{NAME_WIDTH}}"
    found = textwrap.fill(
        _printable(finding.found),
        WIDTH,
        initial_indent=words,
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{found}\n{INDENT}-> {_printable(finding.advice)}" if finding.advice else found


def summary_text(findings: Sequence[Finding]) -> str:
    """One line on all of them."""
    counted = list(_counts(findings))
    return ", ".join(counted) if counted else "all is well"


def as_text(findings: Sequence[Finding]) -> str:
    """All that ``pocketlm doctor`` prints."""
    return "\n".join([*map(finding_text, findings), "", summary_text(findings), ""])


def as_json(findings: Sequence[Finding]) -> str:
    """The same for programs: docs/doctor.md has the keys."""
    state = next((s for s in (WRONG, WARNING) if any(f.state == s for f in findings)), OK)
    report = {
        "pocketlm": pocketlm.__version__,
        "state": state,
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(report, indent=1)


def tell(findings: Iterable[Finding], as_object: bool, say: Callable[[str], object]) -> int:
    """Says what is found as it is found, or all of it as an object; the exit code."""
    told = []
    for finding in findings:
        told.append(finding)
        if not as_object:
            say(finding_text(finding))
    say(as_json(told) if as_object else f"\n{summary_text(told)}")
    return exit_code(told)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if something is wrong, else 0: a warning, or what could not be checked, is no fault."""
    return int(any(finding.state == WRONG for finding in findings))


def _counts(findings: Sequence[Finding]) -> Iterator[str]:
    for state, one, many in (
        (WRONG, "thing is wrong", "things are wrong"),
        (WARNING, "warning", "warnings"),
        (UNKNOWN, "thing could not be checked", "things could not be checked"),
    ):
        if count := sum(finding.state == state for finding in findings):
            yield f"{count} {one if count == 1 else many}"


def _printable(text: str) -> str:
    """Names of files and messages of others may not drive the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
