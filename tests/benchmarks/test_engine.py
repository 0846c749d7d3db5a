"""The benchmark of the engine measures every test, of the model that it was given."""

from __future__ import annotations

import pytest

from pocketlm.benchmarks import engine
from pocketlm.runtime.model import Model


def test_every_test_has_its_rows(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "DEPTHS", (8,))
    monkeypatch.setattr(engine, "NEW_TOKENS", 6)
    monkeypatch.setattr(engine, "SHORTEST", 4)
    monkeypatch.setattr(engine, "LONGEST", 9)
    monkeypatch.setattr(engine, "COPY_PROMPT", "the the the")
    rows = list(engine.measure(tiny_model, [*engine.TESTS], 2, 3))
    names = [*["rows"] * 5, "pairs", "requests", "busy", "busy", "lookup"]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows[:2]] == ["2 rows after 8 tokens", "4 rows after 8 tokens"]
    assert all(float(row[2]) > 0 and float(row[3].split()[0]) > 0 for row in rows)
