"""/compare: what models say of a text, beside a softmax of every row written out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from numpy.typing import NDArray
from served import Served, served

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.cancellation import Cancellation, Cancelled
from pocketlm.runtime.comparing import compare, divergence
from pocketlm.runtime.scoring import Scorer

pytestmark = pytest.mark.serve

TEXT = "the quick brown fox a bc é the quick"


@pytest.fixture(scope="module")
def other_folder(tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in int4."""
    out = tmp_path_factory.mktemp("int4") / "out"
    return export_model(tiny_folder, out, precision_of("int4")).path


@pytest.fixture(scope="module")
def stranger_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of other tokens."""
    folder = tmp_path_factory.mktemp("stranger")
    return export_model(open_checkpoint(write_checkpoint(folder / "in")), folder / "out").path


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder, other_folder: Path, stranger_folder: Path) -> Iterator[Served]:
    paths = {"fp32": tiny_folder.path, "int4": other_folder, "stranger": stranger_folder}
    models = {name: partial(pocketlm.load, path, threads=1) for name, path in paths.items()}
    with served(models) as running:
        yield running


def log_softmax_rows(model: pocketlm.Model, ids: list[int]) -> NDArray[np.float64]:
    """(S, V): a step for every token, and the formula."""
    cache, rows = model.session.new_cache(), []
    for token in ids[:-1]:
        logits = model.session.step([token], cache).astype(np.float64)
        rows.append(logits - np.log(np.exp(logits).sum()))
    return np.array(rows)


@pytest.fixture(scope="module")
def both(tiny_model: pocketlm.Model, other_folder: Path) -> list[NDArray[np.float64]]:
    ids = tiny_model.tokenizer.encode(TEXT)
    with pocketlm.load(other_folder, threads=1) as other:
        return [log_softmax_rows(model, ids) for model in (tiny_model, other)]


def test_divergence_is_the_sum_over_the_whole_vocabulary(
    server: Served, tiny_model: pocketlm.Model, both: list[NDArray[np.float64]]
) -> None:
    ids = tiny_model.tokenizer.encode(TEXT)
    status, found = server.post("/compare", {"models": ["fp32", "int4"], "text": TEXT})
    assert status == 200
    first, *tokens = found["tokens"]
    assert (first["id"], first["kl"], first["logprobs"]) == (ids[0], None, [None, None])
    assert [token["id"] for token in tokens] == ids[1:]
    p, q = both
    expected = (np.exp(p) * (p - q)).sum(axis=1)
    assert expected.max() > 1e-6
    # Rows computed together differ from those computed one by one in the last bits of float32.
    assert [token["kl"] for token in tokens] == pytest.approx(expected, 1e-2, 1e-7)
    assert found["mean_kl"] == pytest.approx(expected.mean(), 1e-2)
    for place, rows in enumerate(both):
        picked = rows[np.arange(len(rows)), ids[1:]]
        assert [token["logprobs"][place] for token in tokens] == pytest.approx(picked, 1e-3)
        best = [token["best"][place]["id"] for token in tokens]
        assert best == rows.argmax(axis=1).tolist()


def test_joined_the_tokens_are_the_text(server: Served) -> None:
    _, found = server.post("/compare", {"models": ["fp32", "int4"], "text": TEXT})
    assert "".join(token["text"] for token in found["tokens"]) == TEXT
    assert not any("�" in token["text"] for token in found["tokens"])


def test_token_ids_are_compared_as_they_are(server: Served, tiny_model: pocketlm.Model) -> None:
    ids = tiny_model.tokenizer.encode(TEXT)
    models = ["fp32", "int4"]
    by_ids = server.post("/compare", {"models": models, "token_ids": ids})[1]
    by_text = server.post("/compare", {"models": models, "text": TEXT})[1]
    assert by_ids == by_text


def test_a_model_does_not_differ_from_itself(server: Served) -> None:
    _, found = server.post("/compare", {"models": ["fp32", "fp32"], "text": TEXT})
    assert [token["kl"] for token in found["tokens"][1:]] == [0] * (len(found["tokens"]) - 1)


def test_one_model_tells_what_it_would_have_said(
    server: Served, both: list[NDArray[np.float64]]
) -> None:
    status, found = server.post("/compare", {"models": ["fp32"], "text": TEXT})
    assert status == 200
    assert found["mean_kl"] is None
    best = [token["best"][0]["id"] for token in found["tokens"][1:]]
    assert best == both[0].argmax(axis=1).tolist()


@pytest.mark.parametrize(
    "body, told",
    [
        ({"models": [], "text": TEXT}, "found models [], expected a list of at least 1"),
        ({"models": ["fp32"] * 3, "text": TEXT}, "expected a list of at most 2"),
        ({"models": ["fp32", "other"], "text": TEXT}, "found no model 'other'"),
        ({"models": ["fp32", "stranger"], "text": TEXT}, "tokenizers of fp32 and stranger differ"),
        ({"models": ["fp32", "int4"]}, "found text and token_ids, or neither"),
        ({"models": ["fp32"], "text": TEXT, "token_ids": [1]}, "expected one of them"),
        ({"models": ["fp32"], "token_ids": [1]}, "the text has 1 tokens, expected 2 to"),
        ({"models": ["fp32"], "token_ids": [1, 1 << 40]}, "token_ids"),
        ({"models": ["fp32"], "token_ids": [1, 300]}, "token_ids has the token id 300"),
        ({"models": ["fp32"], "text": "a b " * 500}, "expected at most"),
        ({"text": TEXT}, "found no models"),
    ],
)
def test_what_cannot_be_is_refused_by_name(server: Served, body: Any, told: str) -> None:
    status, found = server.post("/compare", body)
    assert status in (400, 404)
    assert told in found["error"]["message"]
    assert found["error"]["param"] in ("models", "text", "token_ids")


def test_a_comparison_ends_when_it_is_cancelled(tiny_model: pocketlm.Model) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        compare([Scorer(tiny_model.session)], tiny_model.tokenizer.encode(TEXT), cancellation)


def test_divergence_is_finite_where_a_token_cannot_come() -> None:
    logits = np.zeros((2, 5), np.float32)
    other = logits.copy()
    other[0, 3] = -np.inf
    assert np.isfinite(divergence(logits, other)).all()
    assert divergence(logits, other)[1] == 0
    # Nothing is lost by giving a token up that has no probability.
    assert divergence(other, logits)[0] == pytest.approx(np.log(5 / 4))
