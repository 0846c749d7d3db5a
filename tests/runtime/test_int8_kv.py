"""A KV cache of int8: its rows against a slow twin in NumPy, and every promise of a cache kept.

Rows are rounded as they are written, and attended to as they were kept, the new ones as well: so
unlike those of float32 the logits do not depend on how a text was cut, not even in the last bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graph_folders import load, traced_folder
from numpy.typing import NDArray
from onnx import numpy_helper
from reference.gpt2 import softmax
from traced_graphs import GPT2

import pocketlm
from pocketlm.benchmarks.session_variant import Variant
from pocketlm.commands.measuring import choose_variants
from pocketlm.export.folder import ModelFolder
from pocketlm.export.manifest import INT8_KV_DECODER
from pocketlm.runtime import kv, placement
from pocketlm.runtime.arena import Arena, KVCache
from pocketlm.runtime.engine import onnxruntime
from pocketlm.runtime.providers import CPU, CUDA
from pocketlm.runtime.session import Session

IDS = [int(number) for number in np.random.default_rng(7).integers(0, 300, 160)]
Array = NDArray[np.float32]


def int8_cache(session: Session, capacity: int = 128) -> KVCache:
    return Arena(session.shape, capacity, np.int8).new()


def feed(session: Session, cache: KVCache, ids: list[int], *sizes: int) -> Array:
    """The logits of all ``ids``; the steps have ``sizes`` tokens, then one each."""
    steps, position, found = iter(sizes), 0, []
    while position < len(ids):
        size = next(steps, 1)
        found.append(session.all_logits(ids[position : position + size], cache))
        position += size
    return np.concatenate(found)


# The twin ----------------------------------------------------------------------------------------


def scales_of(folder: ModelFolder) -> list[Array]:
    """(K, 1, E) of the keys and the values of every layer."""
    graph = load(folder, INT8_KV_DECODER).graph
    found = [t for t in graph.initializer if t.name.startswith("cache.")]
    return [numpy_helper.to_array(tensor)[0] for tensor in found]


def test_rows_are_those_of_float32_over_the_scale_rounded_half_to_even(
    tiny_session: Session, int8_kv_session: Session, int8_kv_folder: ModelFolder
) -> None:
    """Of the first layer, whose keys and values no attention has come before."""
    exact, kept = tiny_session.new_cache(), int8_kv_session.new_cache()
    assert isinstance(exact, KVCache) and isinstance(kept, KVCache)
    tiny_session.step(IDS, exact)
    int8_kv_session.step(IDS, kept)
    clipped = 0
    for rows, found, scale in zip(
        exact.values()[:2], kept.values()[:2], scales_of(int8_kv_folder), strict=False
    ):
        expected = np.clip(np.rint(rows / scale), -128, 127)
        np.testing.assert_array_equal(found, expected)
        clipped += int((np.abs(rows / scale) > 128).sum())
    assert clipped > 0, "other tokens than those that were measured: some are beyond the scale"


def attention_alone(folder: ModelFolder) -> tuple[Any, list[Array]]:
    """A session of the first attention node as the pass made it, and its two scales (K, 1, E)."""
    model = load(folder, INT8_KV_DECODER)
    node = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
    node.input[10] = ""  # the bias hides left padding, of which there is none
    kept = [t for t in model.graph.initializer if t.name in node.input]
    value = onnx.helper.make_tensor_value_info
    float32, int8, int32 = (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT32,
    )
    inputs = [value(node.input[0], float32, ["b", "s", 96])]
    inputs += [value(name, int8, ["b", 4, "p", 8]) for name in node.input[3:5]]
    inputs += [value(node.input[5], int32, ["b"]), value(node.input[6], int32, [])]
    outputs = [value(node.output[0], float32, ["b", "s", 32])]
    outputs += [value(name, int8, ["b", 4, "t", 8]) for name in node.output[1:]]
    graph = onnx.helper.make_graph([node], "attention", inputs, outputs, kept)
    alone = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    scales = [numpy_helper.to_array(tensor)[0] for tensor in kept]
    return onnxruntime.InferenceSession(alone.SerializeToString()), scales


@pytest.mark.parametrize(("past", "new"), [(0, 9), (20, 1), (20, 7)])
def test_attention_is_that_of_numpy_over_what_is_kept(
    int8_kv_folder: ModelFolder, past: int, new: int
) -> None:
    session, scales = attention_alone(int8_kv_folder)
    draw = np.random.default_rng(past + new)
    qkv = draw.normal(size=(1, new, 96)).astype(np.float32)
    before = [draw.integers(-128, 128, (1, 4, past, 8)).astype(np.int8) for _ in range(2)]
    names = [given.name for given in session.get_inputs()]
    lengths = [np.array([past + new - 1], np.int32), np.array(past + new, np.int32)]
    found, *present = session.run(None, dict(zip(names, [qkv, *before, *lengths], strict=True)))

    q, *fresh = (part.reshape(new, 4, 8).transpose(1, 0, 2) for part in np.split(qkv[0], 3, axis=1))
    kept = []
    for rows, old, scale, there in zip(fresh, before, scales, present, strict=True):
        rounded = np.clip(np.rint(rows / scale), -128, 127).astype(np.int8)
        expected = np.concatenate([old[0], rounded], axis=1)
        np.testing.assert_array_equal(there[0], expected)
        kept.append(expected * scale.astype(np.float64))
    keys, values = kept
    scores = q @ keys.transpose(0, 2, 1) / np.sqrt(8)  # (H, S, T)
    scores[:, np.triu(np.ones((new, past + new), bool), past + 1)] = -np.inf
    attended = (softmax(scores) @ values).transpose(1, 0, 2).reshape(new, 32)
    np.testing.assert_allclose(found[0], attended, rtol=0, atol=1e-4 * np.abs(attended).max())


# Promises ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(), (80, 80), (3, 2, 9, 1, 30), (63, 97)])
def test_how_a_text_is_cut_does_not_show(int8_kv_session: Session, sizes: tuple[int, ...]) -> None:
    whole, cut = int8_cache(int8_kv_session), int8_cache(int8_kv_session, capacity=4)
    expected = feed(int8_kv_session, whole, IDS, len(IDS))
    np.testing.assert_array_equal(feed(int8_kv_session, cut, IDS, *sizes), expected)
    assert cut.length == cut.arena.capacity == 160  # it has grown
    for found, rows in zip(cut.values(), whole.values(), strict=True):
        np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize("length", [0, 1, 17, 40])
def test_truncate_and_continue_equals_recompute(int8_kv_session: Session, length: int) -> None:
    cache, fresh = int8_cache(int8_kv_session), int8_cache(int8_kv_session)
    feed(int8_kv_session, cache, IDS[:40], 40)
    cache.truncate(length)
    if length:
        feed(int8_kv_session, fresh, IDS[:length], length)
    found = feed(int8_kv_session, cache, IDS[100:110], 10)
    np.testing.assert_array_equal(found, feed(int8_kv_session, fresh, IDS[100:110], 10))


def test_a_conversation_goes_on_as_it_would_from_an_empty_cache(
    int8_kv_folder: ModelFolder,
) -> None:
    model = pocketlm.Model(int8_kv_folder, threads=1, kv="int8")
    cache = model.new_cache()
    for length in (20, 35, 30, 90):
        found = model.generate(IDS[:length], cache=cache, temperature=0, max_tokens=5)
        alone = model.generate(IDS[:length], temperature=0, max_tokens=5)
        assert found.token_ids == alone.token_ids
    assert found.timings.reused_tokens == 30


def test_it_takes_a_quarter_of_the_bytes(tiny_session: Session, int8_kv_session: Session) -> None:
    small, large = int8_kv_session.new_caches()(), tiny_session.new_caches()()
    assert 4 * small.num_bytes == large.num_bytes
    shape = int8_kv_session.shape
    assert small.num_bytes == 128 * shape.kv_numbers_per_token
    assert 4 * shape.kv_numbers_per_token == shape.kv_bytes_per_token


def test_it_says_nearly_what_float32_says(tiny_session: Session, int8_kv_session: Session) -> None:
    """A bound for a model of random weights whose logits reach 10."""
    exact = tiny_session.all_logits(IDS, tiny_session.new_cache())
    found = int8_kv_session.all_logits(IDS, int8_kv_session.new_cache())
    assert np.abs(found - exact).mean() < 0.1
    assert np.abs(exact).max() > 5


# Which one ---------------------------------------------------------------------------------------


def test_the_front_door_opens_what_is_asked_for(int8_kv_folder: ModelFolder) -> None:
    models = {asked: pocketlm.load(int8_kv_folder.path, kv=asked) for asked in kv.KV_CACHES}
    assert [model.session.kv for model in models.values()] == ["fp32", "fp32", "int8"]


@pytest.mark.parametrize("asked", ["auto", "fp32"])
def test_a_folder_without_the_graph_has_float32(tiny_folder: ModelFolder, asked: str) -> None:
    assert pocketlm.load(tiny_folder.path, kv=asked).session.kv == "fp32"


def test_an_unknown_cache_is_refused(tiny_folder: ModelFolder) -> None:
    with pytest.raises(pocketlm.RequestError, match="kv is 'int4', expected one of: auto, fp32, i"):
        pocketlm.load(tiny_folder.path, kv="int4")


def test_a_folder_without_the_graph_says_how_to_get_it(tiny_folder: ModelFolder) -> None:
    message = (
        r"kv is 'int8', found no graph with an int8 KV cache \(it has decoder\), expected "
        r"decoder-int8-kv; .*pocketlm export CHECKPOINT OUT"
    )
    with pytest.raises(pocketlm.RequestError, match=message):
        pocketlm.load(tiny_folder.path, kv="int8")


def test_a_growing_graph_has_no_int8_cache(tmp_path: Path) -> None:
    folder = traced_folder(tmp_path / "growing", GPT2, rewrite=False)
    with pytest.raises(pocketlm.RequestError, match="makes its cache anew with every token"):
        Session(folder, threads=1, kv="int8")


@pytest.mark.parametrize(("asked", "found"), [("fp32", "fp32"), ("auto", "fp32")])
def test_a_device_keeps_its_own_cache(int8_kv_folder: ModelFolder, asked: str, found: str) -> None:
    assert kv.choose_kv(int8_kv_folder, asked, CUDA) == found


def test_an_int8_cache_on_a_device_is_refused(
    int8_kv_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "provider is 'cuda': found kv 'int8', expected fp32 or auto, .* use the provider cpu"
    monkeypatch.setattr(placement, "has_cuda_build", lambda: True)
    with pytest.raises(pocketlm.ProviderError, match=message):
        pocketlm.load(int8_kv_folder.path, provider="cuda", kv="int8")
    with pytest.warns(UserWarning, match="running on the CPU: found kv 'int8'"):
        model = pocketlm.load(int8_kv_folder.path, threads=1, kv="int8")
    assert (model.session.kv, model.session.place) == ("int8", CPU)


def test_models_are_measured_with_every_cache_asked_for(
    tiny_folder: ModelFolder, int8_kv_folder: ModelFolder
) -> None:
    both = {"a": int8_kv_folder, "b": int8_kv_folder}
    folders, variants = choose_variants(both, ["fp32", "int8"], ["none"])
    assert list(folders) == ["a", "a, int8 KV", "b", "b, int8 KV"]
    assert [variant.kv for variant in variants.values()] == ["fp32", "int8"] * 2
    folders, variants = choose_variants(both, ["int8"], ["auto"], but="a")
    assert list(folders) == ["a", "b, int8 KV"]
    assert [variant.kv for variant in variants.values()] == ["fp32", "int8"]
    found = choose_variants({"a": tiny_folder}, ["auto", "fp32"], ["auto"])
    assert found == ({"a": tiny_folder}, {"a": Variant()})
