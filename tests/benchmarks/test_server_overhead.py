"""The benchmark of the server measures every test, with clients of another process."""

from __future__ import annotations

import pytest

import pocketlm
from pocketlm.export.folder import ModelFolder

pytestmark = pytest.mark.serve


def test_every_test_of_the_server_has_its_rows(
    tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pocketlm.benchmarks import server

    monkeypatch.setattr(server, "PROMPT_TOKENS", 4)
    monkeypatch.setattr(server, "NEW_TOKENS", 6)
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.05)
    with pocketlm.Model(tiny_folder, threads=1, prefix_cache_bytes=0) as model:
        rows = list(server.measure(model, server.TESTS, 2, 3))
    assert [row[0] for row in rows] == ["one", "one", "many", "first", "idle"]
    assert all(float(row[2]) > 0 and float(row[3].split()[0]) > 0 for row in rows[:-1])
    assert rows[2][1].startswith("3 streams") and rows[3][1].endswith("beside 2 streams: ms")
