"""Every family's graph, node by node and byte by byte, is the one of the folders already written.

Level: golden. ``graph_digests.json`` is made by ``python tests/graph_digests.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graph_digests import CASES, checkpoint_of, digests

GOLDEN = json.loads((Path(__file__).parent / "graph_digests.json").read_text(encoding="utf-8"))


def test_every_case_has_digests() -> None:
    assert list(GOLDEN) == CASES


@pytest.mark.parametrize("name", CASES)
def test_graph_is_that_of_the_digests(name: str) -> None:
    found, expected = digests(checkpoint_of(name)), GOLDEN[name]
    # Cosines and powers differ in their last bits from one processor to the next.
    assert found.pop("tables") == pytest.approx(expected.pop("tables"), abs=0.1)
    assert found == expected
