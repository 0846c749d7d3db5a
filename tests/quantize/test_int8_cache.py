"""The second graph: what the pass changes, how coarse its scales are, and how a folder gets it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from command_line import Run
from graph_folders import load, traced_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from traced_graphs import GPT2, LLAMA

from pocketlm.export.errors import NumericsError, RequestError
from pocketlm.export.folder import MANIFEST, ModelFolder
from pocketlm.export.graph_check.graph import check_graph
from pocketlm.export.manifest import DECODER, INT8_KV_DECODER
from pocketlm.export.writing import Unchanged, export_model
from pocketlm.quantize import cache_scales as module
from pocketlm.quantize.cache_scales import (
    FACTORS,
    HEADROOM,
    LEAST,
    SMALLEST,
    cache_scales,
    fitted_scales,
)
from pocketlm.quantize.int8_cache import CacheScales, Int8Cache
from pocketlm.quantize.second_graph import add_int8_cache
from pocketlm.runtime.arena import KVCache
from pocketlm.runtime.session import Session

WINDOWS = np.random.default_rng(2).integers(0, 300, (3, 40))
KEY, VALUE = (np.full((4, 8), scale, np.float32) for scale in (0.5, 0.25))


# The pass ----------------------------------------------------------------------------------------


def test_attention_alone_changes(tiny_folder: ModelFolder, int8_kv_folder: ModelFolder) -> None:
    before, after = load(tiny_folder), load(int8_kv_folder, INT8_KV_DECODER)
    shared = {tensor.name: tensor for tensor in before.graph.initializer}
    for tensor in after.graph.initializer:
        assert tensor.name.startswith("cache.") or tensor == shared.pop(tensor.name)
    assert not shared
    for old, new in zip(before.graph.node, after.graph.node, strict=True):
        if old.op_type == "GroupQueryAttention":
            assert list(new.input[:11]) == list(old.input)
            assert [a for a in new.attribute if a in old.attribute] == list(old.attribute)
        else:
            assert old == new


def test_every_attention_is_changed_and_told(tiny_folder: ModelFolder) -> None:
    model = ir.load(tiny_folder.graph_file())
    outcome = Int8Cache({0: (KEY, VALUE), 1: (KEY, VALUE)}).apply(model)
    assert outcome.changed == ["h.0.attn.attention", "h.1.attn.attention"]
    assert outcome.skipped == {}
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    for node in nodes:
        for index, scale in ((12, KEY), (13, VALUE)):
            given = node.inputs[index]
            assert given is not None and given.const_value is not None
            np.testing.assert_array_equal(given.const_value.numpy(), scale[None, :, None])


def test_one_file_of_weights_serves_both(
    tiny_folder: ModelFolder, int8_kv_folder: ModelFolder
) -> None:
    assert int8_kv_folder.weights_bytes == tiny_folder.weights_bytes
    assert int8_kv_folder.graph().file == tiny_folder.graph().file == "model.onnx"
    for name, entry in tiny_folder.files.items():
        assert int8_kv_folder.files[name] == entry
    assert int8_kv_folder.files.keys() - tiny_folder.files.keys() == {"model_int8_kv.onnx"}
    graph = int8_kv_folder.graph(INT8_KV_DECODER)
    assert graph.cache.dtype == "int8"
    assert graph.inputs["past_key_values.0.key"] == "int8[batch_size, 4, past_sequence_length, 8]"


# Scales ------------------------------------------------------------------------------------------


@given(
    largest=st.lists(st.floats(0, 1e6, width=32), min_size=6, max_size=6),
    first=st.lists(st.floats(-1, 1, width=32), min_size=12, max_size=12),
)
@settings(max_examples=80, deadline=None)
def test_scales_hold_what_was_seen_and_are_hardly_coarser(
    largest: list[float], first: list[float]
) -> None:
    most = np.array(largest, np.float32).reshape(2, 3)
    scales = fitted_scales(most, np.array(first, np.float32).reshape(2, 2, 3) * most)
    assert (scales > 0).all() and scales.dtype == np.float32
    assert (127 * scales >= HEADROOM * most * 0.999).all()
    loud = most >= max(most.max() * LEAST, SMALLEST)
    assert (127 * scales <= HEADROOM * FACTORS.max() * most * 1.001)[loud].all()


def test_the_first_tokens_number_is_nearly_a_multiple_where_it_is_always_the_same() -> None:
    largest = np.full((1, 200), 10, np.float32)
    same = np.linspace(0.15, 1, 200, dtype=np.float32)[None]  # 1.7 to 11 times the scale needed
    scales = fitted_scales(largest, np.stack([same, same]))
    error = np.abs(same - np.rint(same / scales) * scales)
    plain = HEADROOM * largest / 127
    assert error.mean() < 0.2 * np.abs(same - np.rint(same / plain) * plain).mean()
    assert scales.mean() < 1.2 * plain.mean()


def test_no_scale_is_coarser_where_first_tokens_differ() -> None:
    largest = np.full((1, 50), 10, np.float32)
    first = np.random.default_rng(0).uniform(-10, 10, (64, 1, 50)).astype(np.float32)
    scales = fitted_scales(largest, first)
    assert scales.mean() < 1.1 * HEADROOM * 10 / 127


def test_a_silent_channel_has_a_scale() -> None:
    scales = fitted_scales(np.array([[0, 4]], np.float32), np.zeros((1, 1, 2), np.float32))
    assert (scales > 0).all() and scales[0, 0] < scales[0, 1]
    assert (fitted_scales(np.zeros((1, 2), np.float32), np.zeros((1, 1, 2), np.float32)) > 0).all()


def test_the_order_of_the_windows_does_not_matter(tiny_session: Session) -> None:
    there, back = (cache_scales(tiny_session, rows) for rows in (WINDOWS, WINDOWS[::-1]))
    assert list(there) == [0, 1]
    for layer in there:
        for scales, others in zip(there[layer], back[layer], strict=True):
            assert scales.shape == (4, 8)
            np.testing.assert_allclose(scales, others, rtol=0.03)  # a candidate's distance


def test_only_a_cache_of_float32_is_measured(int8_kv_session: Session) -> None:
    with pytest.raises(RequestError, match="expected one of float32 in place"):
        cache_scales(int8_kv_session, WINDOWS)


def test_no_windows_are_refused(tiny_session: Session) -> None:
    with pytest.raises(RequestError, match="found no windows, expected at least one"):
        cache_scales(tiny_session, WINDOWS[:0])


def test_keys_that_are_no_numbers_are_named(
    tiny_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(session: Session, ids: list[int], cache: KVCache) -> None:
        session.step(ids, cache)
        cache.values()[2][1, 3, 5] = np.nan

    monkeypatch.setattr(module, "prefill", spoil)
    with pytest.raises(NumericsError, match="layer 1: found keys that are NaN or infinite"):
        cache_scales(tiny_session, WINDOWS)


# The folder --------------------------------------------------------------------------------------


def scales(session: Session) -> CacheScales:
    return cache_scales(session, WINDOWS)


def test_the_folder_is_whole_and_its_first_graph_as_before(
    run: Run, int8_kv_folder: ModelFolder, tiny_session: Session
) -> None:
    assert list(int8_kv_folder.manifest.graphs) == [DECODER, INT8_KV_DECODER]
    for name in int8_kv_folder.manifest.graphs:
        check_graph(int8_kv_folder, name)
    ended = run("info", int8_kv_folder.path, "--verify")
    assert ended.code == 0 and "model_int8_kv.onnx" in ended.out
    first = Session(int8_kv_folder, threads=1)
    found = first.all_logits(WINDOWS[0], first.new_cache())
    np.testing.assert_array_equal(
        found, tiny_session.all_logits(WINDOWS[0], tiny_session.new_cache())
    )


def test_a_folder_gets_it_once(int8_kv_folder: ModelFolder, tiny_session: Session) -> None:
    with pytest.raises(RequestError, match=r"found model_int8_kv.onnx in it, expected a folder wi"):
        add_int8_cache(int8_kv_folder, scales(tiny_session))


def test_until_the_manifest_is_there_nothing_has_changed(
    copy: Path, tiny_session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (copy / MANIFEST).read_bytes()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", die)
        add_int8_cache(ModelFolder.open(copy), scales(tiny_session))
    assert (copy / MANIFEST).read_bytes() == before
    ModelFolder.open(copy).verify(remembered=False)
    found = add_int8_cache(ModelFolder.open(copy), scales(tiny_session))  # and now it does
    assert Session(found, threads=1, kv="int8").kv == "int8"
    assert not list(copy.glob("*.new"))


def test_a_growing_graph_is_refused(tmp_path: Path, tiny_session: Session) -> None:
    folder = traced_folder(tmp_path / "growing", GPT2, rewrite=False)
    with pytest.raises(RequestError, match="makes its cache anew with every token"):
        add_int8_cache(folder, scales(tiny_session))


def test_a_traced_graph_in_place_gets_it(tmp_path: Path) -> None:
    folder = traced_folder(tmp_path / "traced", LLAMA, rewrite=True)
    measured = cache_scales(Session(folder, threads=1), WINDOWS[:, :16] % folder.shape.vocab_size)
    session = Session(add_int8_cache(folder, measured), threads=1, kv="int8")
    assert np.isfinite(session.step([1, 2, 3], session.new_cache())).all()


def test_writing_may_finish_with_it(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    """The second graph is there when the folder appears, or neither is."""

    class Finished(Unchanged):
        def finish(self, folder: ModelFolder) -> None:
            assert not (tmp_path / "out").exists()
            add_int8_cache(folder, cache_scales(Session(folder, threads=1), WINDOWS))

    written = export_model(tiny_folder, tmp_path / "out", Finished())
    assert INT8_KV_DECODER in written.manifest.graphs
