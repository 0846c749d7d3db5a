"""What this machine can do with pocketlm, what is wrong, and what to type.

    from pocketlm.doctor import examine
    for finding in examine():
        print(finding.state, finding.name, finding.found, finding.advice)

A file for each thing that is looked at; ``pocketlm doctor`` and ``python -m pocketlm.doctor`` print
what they find. None needs an extra: an application can show it in a window.
"""

from __future__ import annotations

from pocketlm.doctor.examination import examine
from pocketlm.doctor.finding import OK, UNKNOWN, WARNING, WRONG, Finding
from pocketlm.doctor.report import as_json, as_text, exit_code

__all__ = [
    "OK",
    "UNKNOWN",
    "WARNING",
    "WRONG",
    "Finding",
    "as_json",
    "as_text",
    "examine",
    "exit_code",
]
