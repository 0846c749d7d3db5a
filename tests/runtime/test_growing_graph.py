"""A graph of others: its cache grows, it takes no positions, and it returns the logits of all rows.

The decoder made here sums what it has seen: logits = cumulative sum of embeddings · head.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from model_folders import with_manifest

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError, ModelFolderError
from pocketlm.export.folder import GROWING, IN_PLACE, DecoderShape, ModelFolder
from pocketlm.export.graph import Graph
from pocketlm.export.manifest import DECODER, FLOAT32, CacheKind, Tracing
from pocketlm.export.writing import build_decoder, export_model
from pocketlm.runtime.arena import KVCache
from pocketlm.runtime.chunks import prefill
from pocketlm.runtime.concatenating import ConcatenatingCache
from pocketlm.runtime.session import Session

SHAPE = DecoderShape(
    vocab_size=300,
    context_length=200,
    hidden_size=8,
    num_layers=1,
    num_heads=1,
    kv_heads=1,
    head_size=8,
)
RANDOM = np.random.default_rng(11)
TABLE = RANDOM.standard_normal((300, 8)).astype(np.float32)
HEAD = RANDOM.standard_normal((8, 300)).astype(np.float32)
IDS = [int(number) for number in RANDOM.integers(0, 300, 200)]
EXPECTED = np.cumsum(TABLE[IDS], axis=0) @ HEAD


def growing_model(mask_dtype: type = np.int64) -> ir.Model:
    g = Graph("growing")
    ids = g.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    g.input("attention_mask", mask_dtype, ["batch_size", "total_sequence_length"])
    table = g.weight("table", TABLE.shape, lambda start, stop: TABLE[start:stop])
    head = g.weight("head", HEAD.shape, lambda start, stop: HEAD[start:stop])
    new = g.Unsqueeze(g.Gather(table, ids), g.int64s(1))  # (B, 1, S, D)
    present = []
    for kind, rows in (("key", new), ("value", g.Neg(new))):
        dims: list[int | str] = ["batch_size", 1, "past_sequence_length", 8]
        past = g.input(f"past_key_values.0.{kind}", np.float32, dims)
        present.append(g.Concat(past, rows, axis=2))
    sums = g.CumSum(present[0], g.constant(np.int64(2), "two"))
    start = g.Neg(g.Shape(ids, start=1, end=2))
    last = g.Slice(sums, start, g.int64s(np.iinfo(np.int64).max), g.int64s(2))
    logits = g.MatMul(g.Squeeze(last, g.int64s(1)), head)
    g.output(logits, "logits", np.float32, ["batch_size", "sequence_length", 300])
    for kind, value in zip(("key", "value"), present, strict=True):
        dims = ["batch_size", 1, "total_sequence_length", 8]
        g.output(value, f"present.0.{kind}", np.float32, dims)
    return g.model()


def write(out: Path, checkpoint: Path, model: ir.Model) -> ModelFolder:
    decoder = replace(
        build_decoder(open_checkpoint(checkpoint)),
        model=model,
        shape=SHAPE,
        cache=CacheKind(layout=GROWING, dtype=FLOAT32),
        traced=Tracing(made_by="a test"),
    )
    return export_model(decoder, out)


@pytest.fixture(scope="module")
def growing_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return write(tmp_path_factory.mktemp("growing") / "out", tiny_checkpoint, growing_model())


def test_steps_and_chunks_equal_the_sum(growing_folder: ModelFolder) -> None:
    session = Session(growing_folder, threads=1)
    cache = session.new_cache()
    assert isinstance(cache, ConcatenatingCache)
    found = [session.step(IDS[:3], cache), *(session.step([token], cache) for token in IDS[3:])]
    np.testing.assert_allclose(found, EXPECTED[2:], rtol=0, atol=1e-3)
    np.testing.assert_allclose(
        session.all_logits(IDS, session.new_cache()), EXPECTED, rtol=0, atol=1e-3
    )
    chunked = prefill(session, IDS, session.new_cache(), chunk_size=7)
    np.testing.assert_allclose(chunked, EXPECTED[-1], rtol=0, atol=1e-3)


def test_the_buffers_double_and_take_turns(growing_folder: ModelFolder) -> None:
    session = Session(growing_folder, threads=1)
    cache = session.new_cache()
    sizes = []
    for token in IDS:
        session.step([token], cache)
        sizes.append(cache.num_bytes)
    # Two sets of keys and values of 8 float32: for the first 128 tokens, then for the context.
    assert sorted(set(sizes)) == [2 * 2 * 8 * 4 * 128, 2 * 2 * 8 * 4 * 200]


def test_the_front_door_generates(growing_folder: ModelFolder) -> None:
    model = pocketlm.load(growing_folder.path, threads=1)
    result = model.generate(IDS[:5], max_tokens=4, temperature=0, ignore_eos=True)
    assert result.token_ids[0] == EXPECTED[4].argmax()
    assert len(result.token_ids) == 4


def test_called_in_place_it_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Bound to one buffer, the kernel would read what it is writing."""
    folder = write(tmp_path / "out", tiny_checkpoint, growing_model())
    declared = replace(folder.graph(), cache=CacheKind(layout=IN_PLACE, dtype=FLOAT32), traced=None)
    folder = with_manifest(folder.path, replace(folder.manifest, graphs={DECODER: declared}))
    with pytest.raises(ModelFolderError, match="differ from the manifest in 'num_logits_to_keep'"):
        Session(folder, threads=1)


def test_an_input_of_another_dtype_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = growing_model(mask_dtype=np.float32)
    with pytest.raises(CheckpointError, match="attention_mask of float32 .* 2 dimensions of int64"):
        write(tmp_path / "out", tiny_checkpoint, model)


def test_a_declared_graph_gets_the_cache_in_place(tiny_session: Session) -> None:
    assert isinstance(tiny_session.new_cache(), KVCache)
