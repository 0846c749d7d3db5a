"""``python -m pocketlm.doctor``: the findings as text, where the command line is not installed."""

from __future__ import annotations

import sys

from pocketlm.doctor.examination import examine
from pocketlm.doctor.report import exit_code, finding_text, summary_text

if __name__ == "__main__":
    findings = []
    for finding in examine():
        findings.append(finding)
        print(finding_text(finding), flush=True)
    print(f"\n{summary_text(findings)}")
    sys.exit(exit_code(findings))
