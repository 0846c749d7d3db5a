"""A peer from the package index computes what we do: environment, conversion, rounds and judge.

One is enough to see that the whole way works, and CTranslate2's is the smallest that needs no
compiler. ``tests/benchmarks/test_peers.py`` has the rest, on adapters that the tests write.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketlm.benchmarks.peers import __main__ as command

pytestmark = pytest.mark.peers
DEMO = Path(__file__).parents[2] / "pocketlm" / "demo"


def test_ctranslate2_runs_the_same_model_from_its_pins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(DEMO), "--folder", str(tmp_path), "--rounds", "1"]
    options += ["--prompt", "32", "--generation", "8", "--json", str(tmp_path / "results.json")]
    assert command.main([*options, "--peer", "ctranslate2"]) == 0
    (results,) = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["peer"], row["level"]): row for row in results["rows"]}
    assert {level for peer, level in rows if peer == "CTranslate2"} == {"fp32", "int8"}
    for row in rows.values():
        assert row["failure"] is None
        assert row["agreement"] >= (0.95 if row["level"] == "fp32" else 0.5)
        assert all(row["tests"][test]["tokens_per_second"]["median"] > 0 for test in row["tests"])
    assert "| CTranslate2 | 4." in capsys.readouterr().out
