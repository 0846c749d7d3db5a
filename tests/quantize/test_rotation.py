"""Rotation: the same logits from other weights, for every architecture and option it can take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from graph_folders import traced_folder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from llama_checkpoints import CASES, llama_config, llama_tensors
from model_folders import report_of
from numpy.typing import NDArray
from reference import rotation
from traced_graphs import STYLES

from pocketlm.export.checkpoint import Checkpoint, CheckpointTensor, open_checkpoint
from pocketlm.export.errors import RequestError
from pocketlm.export.external_data import plan_ranges, weights_of
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph import Graph
from pocketlm.export.writing import Decoder, build_decoder, export_model, open_decoder
from pocketlm.quantize.orthogonal import Orthogonal
from pocketlm.quantize.rotation import PARTS, Rotation
from pocketlm.quantize.run import precision_of
from pocketlm.quantize.select import match_embedding
from pocketlm.runtime.engine import onnxruntime
from pocketlm.runtime.session import Session

IDS = [(7 * i + 3) % 97 for i in range(12)]
Config = dict[str, Any]
Tensors = dict[str, NDArray[np.float32]]


# Models in memory -------------------------------------------------------------------------------


def tensors_of(config: Config) -> Tensors:
    """Random weights; of GPT-2 larger ones than usual, so that a mistake shows in the logits.

    Not where scores are not scaled: with wide heads a change in the last bit of the weights then
    moves logits by 2e-3.
    """
    if config["model_type"] != "gpt2":
        return llama_tensors(config)
    size = np.float32(2 if config.get("scale_attn_weights", True) else 1)
    tensors = {name: size * values for name, values in gpt2_tensors(config).items()}
    if config.get("head_bias"):
        tensors["lm_head.bias"] = np.linspace(-2, 2, config["vocab_size"], dtype=np.float32)
    return tensors


def in_memory(config: Config, tensors: Tensors) -> Checkpoint:
    """A checkpoint without files."""
    lazy = {
        name: CheckpointTensor(
            name=name,
            shape=values.shape,
            dtype="float32",
            file="memory",
            num_bytes=values.nbytes,
            rows=lambda start, stop, values=values: values[start:stop].copy(),  # type: ignore[misc]
        )
        for name, values in tensors.items()
    }
    return Checkpoint(Path("memory"), config, lazy, {})


def decoder_of(config: Config) -> ir.Model:
    """The graph of a checkpoint with random weights."""
    return build_decoder(in_memory(config, tensors_of(config))).model


def weights_in(model: ir.Model) -> Tensors:
    return {str(weight.name): weight.read() for weight in weights_of(model)}


def logits(model: ir.Model) -> NDArray[np.float32]:
    """All logits of ``IDS`` without a cache; the model's weights are read, and stay in it."""
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)  # type: ignore[union-attr]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    feeds = {
        "input_ids": np.array([IDS]),
        "attention_mask": np.ones((1, len(IDS)), np.int64),
        "position_ids": np.arange(len(IDS))[None],
    }
    for item in session.get_inputs():
        if item.name.startswith("past"):
            feeds[item.name] = np.empty((1, item.shape[1], 0, item.shape[3]), np.float32)
    names = {item.name for item in session.get_inputs()}
    feeds = {name: values for name, values in feeds.items() if name in names}
    found: NDArray[np.float32] = session.run(["logits"], feeds)[0][0]
    return found


def assert_same(config: Config, rotation: Rotation, done: set[str]) -> None:
    """Rotated as ``done`` says, and yet the logits are those of before, up to rounding.

    Ten times that is some 1e-5 of the largest logit: attention between two equals can amplify it.
    """
    model = decoder_of(config)
    outcome = rotation.apply(model)
    assert set(outcome.changed) == done, outcome
    expected = logits(decoder_of(config))
    assert np.abs(logits(model) - expected).max() <= 1e-4 * np.abs(expected).max()


# Exact in full precision ------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_every_case_of_the_llama_family_keeps_its_logits(case: Any) -> None:
    config = llama_config(case.model_type, **case.config)
    post_norm = case.model_type in ("gemma2", "gemma3_text", "olmo2")
    assert_same(config, Rotation(), {"R2", "R4"} if post_norm else {"R1", "R2", "R4"})


def of_gpt2() -> st.SearchStrategy[Config]:
    return st.builds(
        lambda heads, **options: gpt2_config(
            n_embd=8 * heads[0] * heads[1], n_head=heads[0], **options
        ),
        heads=st.tuples(st.integers(1, 5), st.integers(1, 4)),
        n_inner=st.sampled_from([None, 50, 48, 64, 96]),
        activation_function=st.sampled_from(["gelu_new", "gelu", "relu"]),
        scale_attn_weights=st.booleans(),
        tie_word_embeddings=st.booleans(),
        layer_norm_epsilon=st.sampled_from([1e-5, 1e-2]),
        head_bias=st.booleans(),
    )


def of_llama() -> st.SearchStrategy[Config]:
    return st.builds(
        lambda kind, kv, **options: llama_config(
            kind, num_attention_heads=2 * kv, num_key_value_heads=kv, **options
        ),
        kind=st.sampled_from(["llama", "qwen3"]),
        kv=st.integers(1, 3),
        hidden_size=st.sampled_from([1, 15, 24, 40, 64, 72, 96]),
        intermediate_size=st.sampled_from([31, 48, 64, 80, 192]),
        head_dim=st.sampled_from([8, 16, 24, 40]),
        hidden_act=st.sampled_from(["silu", "gelu", "relu"]),
        tie_word_embeddings=st.booleans(),
        attention_bias=st.booleans(),
        mlp_bias=st.booleans(),
        rms_norm_eps=st.sampled_from([1e-6, 1e-2]),
    )


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@example(
    config=llama_config(hidden_size=576, head_dim=64, tie_word_embeddings=True), parts=set(PARTS)
)
@example(config=llama_config(hidden_size=960, attention_bias=True), parts={"R1"})
@example(config=gpt2_config(n_embd=160, n_head=5, head_bias=True), parts=set(PARTS))
@example(
    config=gpt2_config(n_embd=128, n_head=4, n_inner=50, scale_attn_weights=False), parts={"R1"}
)
@given(
    config=st.one_of(of_gpt2(), of_llama()),
    parts=st.sets(st.sampled_from(PARTS), min_size=1),
)
def test_rotated_equals_unrotated_whatever_the_options(config: Config, parts: set[str]) -> None:
    feed_forward = config.get("n_inner") or config.get("intermediate_size") or 4 * config["n_embd"]
    done = parts - {"R4"} if feed_forward % 16 else parts
    assert_same(config, Rotation(1, tuple(parts)), done)


# What becomes of the weights --------------------------------------------------------------------
def dense(seed: int, part: int, size: int, *, signed: bool = True) -> NDArray[np.float64]:
    return Orthogonal(size, (seed, part), signed=signed).dense().astype(np.float64)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_weights_are_those_of_the_twin(kind: str, tied: bool) -> None:
    """1e-6: a few roundings to float32 of numbers around 1."""
    if kind == "gpt2":
        config = gpt2_config(n_embd=48, n_head=2, tie_word_embeddings=tied)
        twin, sizes = rotation.gpt2, (48, 24, 64)
    else:
        config = llama_config(hidden_size=72, attention_bias=True, tie_word_embeddings=tied)
        twin, sizes = rotation.llama, (72, 16, 16)
    model = decoder_of(config)
    Rotation(seed=4).apply(model)
    found = weights_in(model)
    matrices = (
        dense(4, 1, sizes[0], signed=kind != "gpt2"),
        dense(4, 2, sizes[1]),
        dense(4, 4, sizes[2]),
    )
    expected = twin(config, tensors_of(config), *matrices)
    assert {name for name in found if not name.startswith("rope")} == expected.keys() | (
        {f"{norm}.ordered" for norm in gains(kind)} if tied else set()
    )
    for name, values in expected.items():
        largest = np.abs(values).max()
        np.testing.assert_allclose(found[name], values, rtol=0, atol=2e-6 * largest, err_msg=name)


def gains(kind: str) -> list[str]:
    """What the head's norm has, which stays where the head is the table."""
    return ["ln_f.weight", "ln_f.bias"] if kind == "gpt2" else ["norm.weight"]


def test_layer_norms_become_rms_norms_of_a_stream_without_a_mean() -> None:
    model = decoder_of(gpt2_config())
    Rotation().apply(model)
    operators = Counter(node.op_type for node in model.graph)
    assert (operators["LayerNormalization"], operators["RMSNormalization"]) == (0, 5)
    written = weights_in(model)
    for name in ("wpe.weight", "h.0.attn.c_proj.weight", "h.1.mlp.c_proj.bias"):
        assert not written[name][..., 0].any(), name  # the number that the mean became
    assert written["wte.weight"][:, 0].any()  # the head sees it


def with_fused_norms(model: ir.Model) -> ir.Model:
    """Every add with a norm behind it as the one node that earlier versions wrote."""
    g = Graph.editing(model)
    for norm in list(model.graph):
        add = norm.inputs[0].producer() if "Normalization" in norm.op_type else None  # type: ignore[union-attr]
        if add is None or add.op_type != "Add" or not str(add.name).endswith(".add"):
            continue
        layer = norm.op_type == "LayerNormalization"
        kind = "SkipLayerNormalization" if layer else "SkipSimplifiedLayerNormalization"
        with g.before(norm):
            fused = ir.node(
                kind,
                [add.inputs[1], add.inputs[0], *norm.inputs[1:]],
                {"epsilon": norm.attributes["epsilon"].value},
                domain="com.microsoft",
                num_outputs=4,
                name=f"{norm.name}.fused",
            )
        model.graph.insert_before(norm, fused)
        for old, new in ((norm.outputs[0], fused.outputs[0]), (add.outputs[0], fused.outputs[3])):
            g.replace(old, new)
        for node in (norm, add):
            model.graph.remove(node, safe=True)
    return model


@pytest.mark.parametrize("config", [gpt2_config(), llama_config()], ids=["gpt2", "llama"])
def test_a_graph_of_an_earlier_version_with_fused_norms_is_rotated_alike(config: Config) -> None:
    model = with_fused_norms(decoder_of(config))
    fused = [node for node in model.graph if node.op_type.startswith("Skip")]
    assert len(fused) == (5 if config["model_type"] == "gpt2" else 4)
    outcome = Rotation().apply(model)
    assert {"R1", "R2", "R4"} <= set(outcome.changed)
    expected = logits(decoder_of(config))
    assert np.abs(logits(model) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_tied_head_stays_one_tensor_and_nothing_learned_is_added() -> None:
    for config in (gpt2_config(), llama_config(tie_word_embeddings=True)):
        plain, model = decoder_of(config), decoder_of(config)
        Rotation().apply(model)
        (table,) = {node.inputs[0] for node in model.graph if match_embedding(node)}
        assert table is not None and len(table.uses()) == 2
        assert {use.node.op_type for use in table.uses()} == {"Gather", "FusedMatMul"}
        assert plan_ranges(model)[1] <= plan_ranges(plain)[1]
        learned = {str(weight.name) for weight in weights_of(model) if weight.learned}
        assert learned < {str(weight.name) for weight in weights_of(plain)}


def test_nothing_is_read_before_it_is_written() -> None:
    config = llama_config(tie_word_embeddings=True)
    checkpoint = in_memory(config, tensors_of(config))

    def unreadable(start: int, stop: int) -> NDArray[np.float32]:
        raise AssertionError("read")

    lazy = {name: replace(tensor, rows=unreadable) for name, tensor in checkpoint.tensors.items()}
    model = build_decoder(replace(checkpoint, tensors=lazy)).model
    assert Rotation().apply(model).changed == list(PARTS)


# Files ------------------------------------------------------------------------------------------


def written(decoder: Decoder, out: Path, change: Rotation | None = None) -> ModelFolder:
    if change is not None:
        change.apply(decoder.model)
    return export_model(decoder, out)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2: tied, with layer norms, the one that takes most nodes."""
    config = gpt2_config(n_embd=40, n_head=5)
    folder = tmp_path_factory.mktemp("rotation") / "source"
    return write_checkpoint(folder, config, tensors_of(config))


def file_bytes(folder: ModelFolder) -> dict[str, bytes]:
    return {name: (folder.path / name).read_bytes() for name in ("model.onnx", "model.onnx_data")}


def test_the_same_seed_gives_the_same_bytes_from_a_checkpoint_and_from_its_folder(
    source: Path, tmp_path: Path
) -> None:
    plain = written(build_decoder(open_checkpoint(source)), tmp_path / "plain")
    first = written(build_decoder(open_checkpoint(source)), tmp_path / "first", Rotation(7))
    again = written(open_decoder(plain), tmp_path / "again", Rotation(7))
    other = written(open_decoder(plain), tmp_path / "other", Rotation(8))
    assert file_bytes(first) == file_bytes(again)
    assert file_bytes(first)["model.onnx_data"] != file_bytes(other)["model.onnx_data"]
    sessions = [Session(folder, threads=1) for folder in (plain, first, other)]  # checks the graphs
    expected, *found = (session.all_logits(IDS, session.new_cache()) for session in sessions)
    for rotated in found:
        np.testing.assert_allclose(rotated, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_rotated_model_is_not_rotated_again(source: Path, tmp_path: Path) -> None:
    decoder = build_decoder(open_checkpoint(source))
    folder = written(decoder, tmp_path / "out", Rotation(3, ("R2",)))
    for model in (decoder.model, open_decoder(folder).model):
        with pytest.raises(RequestError, match="rotated by R2 of seed 3, expected one that is not"):
            Rotation().apply(model)


def test_rotated_bytes_can_be_quantized_as_any_other(source: Path, tmp_path: Path) -> None:
    """What the nodes of the rotation multiply by is no weight to quantize."""
    folder = export_model(open_checkpoint(source), tmp_path / "out", precision_of("int8"))
    rotated, report = folder.manifest.precision.rotation, report_of(folder)
    assert rotated is not None and rotated.parts == PARTS
    assert {tensor.name for tensor in report.tensors} >= {
        "h.0.attn.c_attn.weight",
        "h.1.mlp.c_proj.weight",
    }
    assert not any("rotation" in name for name in report.skipped)
    session = Session(folder, threads=1)
    assert np.isfinite(session.all_logits(IDS, session.new_cache())).all()


# What cannot be rotated -------------------------------------------------------------------------


@pytest.mark.parametrize("rewrite", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_traced_graphs_keep_their_logits_whatever_is_found_in_them(
    style: str, rewrite: bool, tmp_path: Path
) -> None:
    """What can be rotated in one is what looks like a declared graph's: heads, at most."""
    folder = traced_folder(tmp_path / "out", STYLES[style], rewrite=rewrite)
    plain, model = open_decoder(folder).model, open_decoder(folder).model
    outcome = Rotation().apply(model)
    assert set(outcome.skipped) | set(outcome.changed) >= set(PARTS)
    assert set(outcome.changed) <= ({"R2"} if rewrite else set())
    expected = logits(plain)
    assert np.abs(logits(model) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    "kind, reason",
    [
        (
            "gemma3_text",
            "post_feedforward_layernorm (RMSNormalization) writes to the residual stream",
        ),
        ("olmo2", "q_proj (FusedMatMul) reads the residual stream with no norm between"),
    ],
)
def test_a_norm_behind_a_branch_is_named(kind: str, reason: str) -> None:
    change = Rotation(2)
    change.apply(decoder_of(llama_config(kind)))
    described = change.describe()
    assert (described["seed"], described["parts"]) == (2, ["R2", "R4"])
    assert list(described["skipped"]) == ["R1"] and reason in described["skipped"]["R1"]


def test_a_width_that_has_no_blocks_is_named() -> None:
    outcome = Rotation(parts=("R4",)).apply(decoder_of(gpt2_config(n_inner=50)))
    assert outcome.skipped == {"R4": "h.0.mlp.c_proj: 50 input features are not a multiple of 16"}
    outcome = Rotation(parts=("R1",)).apply(decoder_of(llama_config(hidden_size=67)))
    assert outcome.skipped == {"R1": "67 is 1 · 67, whose odd factor is above 64"}


def relu(model: ir.Model, value: ir.Value | None) -> ir.Value:
    """What another node makes of ``value``."""
    return Graph.editing(model).Relu(value)


def node_of(model: ir.Model, name: str) -> ir.Node:
    (found,) = [node for node in model.graph if node.name == name]
    return found


def read_by_others(model: ir.Model) -> None:
    relu(model, node_of(model, "embed_tokens").outputs[0])


def norm_read_by_others(model: ir.Model) -> None:
    relu(model, node_of(model, "layers.0.input_layernorm.rms_norm").outputs[0])


def written_by_others(model: ir.Model) -> None:
    node = node_of(model, "layers.0.mlp.down_proj")
    add = node_of(model, "layers.1.input_layernorm.add")
    add.replace_input_with(1, relu(model, node.outputs[0]))


def weight_used_twice(model: ir.Model) -> None:
    first, second = (node_of(model, f"layers.{i}.mlp.gate_proj") for i in range(2))
    second.replace_input_with(1, first.inputs[1])


def gain_computed(model: ir.Model) -> None:
    node = node_of(model, "layers.0.input_layernorm.rms_norm")
    node.replace_input_with(1, relu(model, node.inputs[1]))


def without_lookup(model: ir.Model) -> None:
    node = node_of(model, "embed_tokens")
    node.replace_input_with(1, model.graph.inputs[2])


@pytest.mark.parametrize(
    "change, reason",
    [
        (read_by_others, "Relu (Relu) reads the residual stream with no norm between"),
        (norm_read_by_others, "Relu (Relu) reads a norm, expected a product with a weight"),
        (written_by_others, "Relu (Relu) writes to the residual stream"),
        (weight_used_twice, "layers.0.mlp.gate_proj.weight is used elsewhere, too"),
        (
            gain_computed,
            "layers.0.input_layernorm.rms_norm (RMSNormalization) has a gain that is no weight",
        ),
        (without_lookup, "there is no lookup of token ids in a table"),
    ],
)
def test_what_else_touches_the_stream_is_named_and_nothing_changed(
    change: Callable[[ir.Model], None], reason: str
) -> None:
    model = decoder_of(llama_config())
    change(model)
    before = weights_in(model)
    outcome = Rotation(parts=("R1",)).apply(model)
    assert (outcome.changed, outcome.skipped) == ([], {"R1": reason})
    for name, values in weights_in(model).items():
        assert np.array_equal(values, before[name])


def values_through_others(model: ir.Model) -> None:
    attention = node_of(model, "layers.0.self_attn.attention")
    attention.replace_input_with(2, relu(model, attention.inputs[2]))


def attended_by_others(model: ir.Model) -> None:
    relu(model, node_of(model, "layers.0.self_attn.attention").outputs[0])


@pytest.mark.parametrize(
    "change, reason",
    [
        (values_through_others, "its values come from Relu (Relu)"),
        (attended_by_others, "what it makes goes to something else than one product with a weight"),
    ],
)
def test_heads_that_cannot_be_turned_are_left_out(
    change: Callable[[ir.Model], None], reason: str
) -> None:
    model = decoder_of(llama_config())
    change(model)
    before = weights_in(model)
    outcome = Rotation(parts=("R2",)).apply(model)
    assert outcome.changed == ["R2"]
    assert outcome.skipped == {"layers.0.self_attn.attention": reason}
    after = weights_in(model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {f"layers.1.self_attn.{name}_proj.weight" for name in "vo"}


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"parts": ("R1", "R3")}, "found the rotation 'R3', expected some of R1, R2, R4"),
        ({"seed": -1}, "the seed of the rotation is -1, expected 0 or more"),
    ],
)
def test_what_is_asked_for_must_be_known(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Rotation(**arguments)
