"""LoRA adapters: merged tensors match the slow twin, and what does not fit is refused by name.

``tests/parity/test_peft.py`` compares with peft itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, safetensors_bytes, write_checkpoint
from command_line import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_checkpoints import llama_config, llama_tensors
from lora_adapters import BASE, PREFIX, lora_config, lora_pair, merged_slowly, write_adapter
from numpy.typing import NDArray
from reference import llama

from pocketlm.export.checkpoint import Checkpoint, open_checkpoint
from pocketlm.export.errors import CheckpointError, RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.lora.adapter import Adapter, open_adapter
from pocketlm.export.lora.asked import AskedAdapter, asked_adapter
from pocketlm.export.lora.merging import HEAD, merged
from pocketlm.export.plan import open_headers
from pocketlm.export.writing import build_decoder, export_model, plan_export
from pocketlm.models.loading import find_folder
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.session import Session

Array = NDArray[Any]
CONFIG = llama_config(attention_bias=True)  # D 64, F 80, H 6, K 2, E 16
TENSORS = llama_tensors(CONFIG)
GPT = gpt2_config()
GPT_TENSORS = gpt2_tensors(GPT)
Q = "model.layers.0.self_attn.q_proj"
TABLE = "model.embed_tokens.weight"
PAIR = lora_pair(Q, (96, 64))
# Float32 sums of a few products against float64.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("lora") / "base", CONFIG, TENSORS)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CONFIG | {"tie_word_embeddings": True}
    tensors = {name: values for name, values in TENSORS.items() if name != HEAD}
    return write_checkpoint(tmp_path_factory.mktemp("lora") / "tied", config, tensors)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("lora") / "gpt2", GPT, GPT_TENSORS)


def merge(source: Path, *adapters: Adapter | Path) -> Checkpoint:
    opened = [each if isinstance(each, Adapter) else open_adapter(each) for each in adapters]
    found = merged(open_checkpoint(source), opened)
    build_decoder(found)  # it is a checkpoint like any other
    return found


def values(checkpoint: Checkpoint) -> dict[str, Array]:
    return {name: tensor.read() for name, tensor in checkpoint.tensors.items()}


def assert_same(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=TOLERANCE, err_msg=name)


# Merged tensors against the twin ------------------------------------------------------------------

MODULES = {
    f"model.layers.{i}.{name}": shape
    for i in range(2)
    for name, shape in {
        "self_attn.q_proj": (96, 64),
        "self_attn.k_proj": (32, 64),
        "self_attn.o_proj": (64, 96),
        "mlp.down_proj": (64, 80),
    }.items()
}
PATTERNS = ("q_proj", "layers.1.self_attn.k_proj", r"layers\.0\..*", "model.layers.1.mlp.down_proj")


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    modules=st.lists(st.sampled_from(sorted(MODULES)), min_size=1, unique=True),
    rank=st.integers(1, 70),
    alpha=st.floats(-40, 40),
    ranks=st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 20)),
    alphas=st.dictionaries(st.sampled_from(PATTERNS), st.floats(-40, 40)),
    stabilized=st.booleans(),
    weight=st.floats(0.01, 3),
    dtype=st.sampled_from(["F32", "BF16", "F16"]),
)
def test_merged_is_base_and_scaled_product(
    base: Path,
    tmp_path_factory: pytest.TempPathFactory,
    modules: list[str],
    rank: int,
    alpha: float,
    ranks: dict[str, int],
    alphas: dict[str, float],
    stabilized: bool,
    weight: float,
    dtype: str,
) -> None:
    config = lora_config(
        r=rank,
        lora_alpha=alpha,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        use_rslora=stabilized,
        target_modules=modules,
    )
    folder = write_adapter(tmp_path_factory.mktemp("adapter"), PAIR, **config)
    opened = open_adapter(folder)
    tensors: dict[str, Array] = {}
    for seed, module in enumerate(modules):
        pair = lora_pair(module, MODULES[module], opened.config.rank_of(module), seed, std=0.05)
        tensors |= pair
    write_adapter(folder, tensors, dtype, **config)
    found = merge(base, open_adapter(folder, weight))
    rounded = {name: each.read() for name, each in stored(folder).items()}
    twin = merged_slowly(TENSORS, rounded, config)
    assert_same(
        values(found),
        {name: TENSORS[name] + weight * (twin[name] - TENSORS[name]) for name in TENSORS},
    )


def stored(folder: Path) -> dict[str, Any]:
    parts = open_adapter(folder).parts.values()
    return {tensor.name: tensor for part in parts for tensor in part.values()}


def test_rows_of_a_merged_tensor_are_those_of_the_whole(base: Path, tmp_path: Path) -> None:
    tensor = merge(base, write_adapter(tmp_path / "lora", PAIR)).tensors[f"{Q}.weight"]
    whole = tensor.read()
    for start, stop in ((0, 1), (5, 40), (95, 96), (0, 96)):
        np.testing.assert_allclose(tensor.rows(start, stop), whole[start:stop], atol=1e-6)


@pytest.mark.parametrize("said", [True, False])
def test_conv1d_weights_are_turned_whatever_the_config_says(
    gpt2: Path, tmp_path: Path, said: bool
) -> None:
    d = GPT["n_embd"]
    tensors = lora_pair("transformer.h.0.attn.c_proj", (d, d)) | lora_pair(
        "transformer.h.1.mlp.c_fc", (4 * d, d), seed=1
    )
    config = lora_config(target_modules=["c_proj", "c_fc"], fan_in_fan_out=said)
    found = merge(gpt2, write_adapter(tmp_path / "lora", tensors, **config))
    assert_same(values(found), merged_slowly(GPT_TENSORS, tensors, config))


def test_weighted_adapters_add_up(base: Path, tmp_path: Path) -> None:
    other = lora_pair(Q, (96, 64), rank=2, seed=5)
    first = write_adapter(tmp_path / "first", PAIR)
    second = write_adapter(tmp_path / "second", other, r=2)
    found = merge(base, open_adapter(f"{first}:0.5"), open_adapter(second, 2))
    expected = dict(TENSORS)
    for tensors, config, weight in (
        (PAIR, lora_config(), 0.5),
        (other, lora_config(r=2), 2),
    ):
        part = merged_slowly(TENSORS, tensors, config)
        expected = {n: expected[n] + weight * (part[n] - TENSORS[n]) for n in TENSORS}
    assert_same(values(found), expected)


def test_a_tensor_stored_whole_takes_the_place_of_the_base(base: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole = {
        "model.norm.weight": random.normal(size=64).astype(np.float32),
        HEAD: random.normal(size=TENSORS[HEAD].shape).astype(np.float32),
    }
    folder = write_adapter(
        tmp_path / "lora",
        PAIR | {PREFIX + name: array for name, array in whole.items()},
        modules_to_save=["model.norm", "lm_head"],
    )
    twin = merged_slowly(TENSORS, PAIR, lora_config()) | whole
    assert_same(values(merge(base, folder)), twin)
    half = values(merge(base, open_adapter(folder, 0.25)))
    assert_same(half, {n: TENSORS[n] + 0.25 * (twin[n] - TENSORS[n]) for n in TENSORS})


@pytest.mark.parametrize("spelling", ["{}.bias", "{}.base_layer.bias"])
def test_trained_biases_take_the_place_of_the_base(
    base: Path, tmp_path: Path, spelling: str
) -> None:
    bias = np.arange(96, dtype=np.float32)
    folder = write_adapter(
        tmp_path / "lora", PAIR | {PREFIX + spelling.format(Q): bias}, bias="lora_only"
    )
    assert values(merge(base, folder))[f"{Q}.bias"].tolist() == bias.tolist()


def test_a_bias_of_b_is_added_scaled(base: Path, tmp_path: Path) -> None:
    bias = np.arange(96, dtype=np.float32)
    tensors = PAIR | {f"{PREFIX}{Q}.lora_B.bias": bias}
    found = values(merge(base, write_adapter(tmp_path / "lora", tensors, lora_bias=True)))
    np.testing.assert_allclose(found[f"{Q}.bias"], TENSORS[f"{Q}.bias"] + 2 * bias, rtol=1e-6)


@pytest.mark.parametrize(
    "spelling",
    [
        "{}",
        "base_model.model._orig_mod.{}",
        "_orig_mod.base_model.model.{}",
        "module.base_model.model.{}",
    ],
)
def test_names_may_have_what_trainers_put_before_them(
    base: Path, tmp_path: Path, spelling: str
) -> None:
    tensors = {
        spelling.format(name.removeprefix(PREFIX).replace(".weight", ".default.weight")): array
        for name, array in PAIR.items()
    }
    found = merge(base, write_adapter(tmp_path / "lora", tensors))
    assert_same(values(found), merged_slowly(TENSORS, PAIR, lora_config()))


def test_older_names_of_whole_modules_are_read(base: Path, tmp_path: Path) -> None:
    norm = np.linspace(0, 1, 64, dtype=np.float32)
    tensors = PAIR | {
        f"{PREFIX}model.norm.modules_to_save.default.weight": norm,
        f"{PREFIX}model.norm.original_module.weight": np.zeros(64, np.float32),
    }
    folder = write_adapter(tmp_path / "lora", tensors, modules_to_save=["norm"])
    with pytest.raises(CheckpointError, match="has no 'layers.0.input_layernorm.weight'"):
        merge(base, folder)  # peft compares ends of names, and "norm" ends others
    write_adapter(folder, tensors, modules_to_save=["model.norm"])
    assert values(merge(base, folder))["model.norm.weight"].tolist() == norm.tolist()


# Embeddings, and heads that share them ------------------------------------------------------------

V, D = 97, 64
RANDOM = np.random.default_rng(9)
EMBEDDING = {
    f"{PREFIX}model.embed_tokens.lora_embedding_A": RANDOM.normal(size=(4, V)).astype(np.float32),
    f"{PREFIX}model.embed_tokens.lora_embedding_B": RANDOM.normal(size=(D, 4)).astype(np.float32),
}
LOOKED_UP = (
    2
    * (
        EMBEDDING[f"{PREFIX}model.embed_tokens.lora_embedding_B"]
        @ EMBEDDING[f"{PREFIX}model.embed_tokens.lora_embedding_A"]
    ).T
)
HEAD_PAIR = lora_pair("lm_head", (V, D), seed=4)
IN_HEAD = merged_slowly({HEAD: np.zeros((V, D))}, HEAD_PAIR, lora_config())[HEAD]
NEW = RANDOM.normal(size=(V, D)).astype(np.float32)
ROWS = RANDOM.normal(size=(2, D)).astype(np.float32)
TOKENS = {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": ROWS}
HEAD_TOKENS = {f"{PREFIX}lm_head.token_adapter.trainable_tokens_delta": ROWS[:1]}
OLD = TENSORS[TABLE]
WITH_ROWS = OLD.copy()
WITH_ROWS[[7, 3]] = ROWS
WITH_HEAD_ROW = OLD.copy()
WITH_HEAD_ROW[5] = ROWS[0]
TARGETS = ["embed_tokens", "lm_head"]
# Tensors, fields, the embedding that is right, and the head: None where they stay one.
TIES: dict[str, tuple[dict[str, Array], dict[str, Any], Array, Array | None]] = {
    "embedding": (EMBEDDING, {"target_modules": TARGETS}, OLD + LOOKED_UP, OLD),
    "head": (HEAD_PAIR, {"target_modules": TARGETS}, OLD, OLD + IN_HEAD),
    "both": (
        EMBEDDING | HEAD_PAIR,
        {"target_modules": TARGETS},
        OLD + LOOKED_UP,
        OLD + IN_HEAD,
    ),
    "tied by peft": (
        EMBEDDING | HEAD_PAIR,
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        OLD + LOOKED_UP,
        None,
    ),
    "the base's own parameter": (
        EMBEDDING | {f"{PREFIX}model.embed_tokens.base_layer.weight": NEW},
        {"target_modules": TARGETS},
        NEW + LOOKED_UP,
        NEW,
    ),
    "retrained, not as a module": ({PREFIX + TABLE: NEW}, {}, NEW, None),
    "saved embedding": ({PREFIX + TABLE: NEW}, {"modules_to_save": ["embed_tokens"]}, NEW, OLD),
    "saved head": ({PREFIX + HEAD: NEW}, {"modules_to_save": ["lm_head"]}, OLD, NEW),
    "tokens": (TOKENS, {"trainable_token_indices": [7, 3]}, WITH_ROWS, None),
    "tokens by name": (
        TOKENS,
        {"trainable_token_indices": {"embed_tokens": [7, 3]}},
        WITH_ROWS,
        None,
    ),
    "tokens of both": (
        TOKENS | HEAD_TOKENS,
        {"trainable_token_indices": {"model.embed_tokens": [7, 3], "lm_head": [5]}},
        WITH_ROWS,
        WITH_HEAD_ROW,
    ),
    "a layer": (PAIR, {}, OLD, None),
}


@pytest.mark.parametrize("name", TIES)
@pytest.mark.parametrize("stored_twice", [False, True])
def test_a_head_stays_tied_only_if_both_change_alike(
    tied: Path, tmp_path: Path, name: str, stored_twice: bool
) -> None:
    tensors, fields, table, head = TIES[name]
    source = tied
    if stored_twice:
        source = tmp_path / "source"
        config = CONFIG | {"tie_word_embeddings": True}
        write_checkpoint(source, config, TENSORS | {HEAD: OLD})
    found = merge(source, write_adapter(tmp_path / "lora", tensors, **fields))
    np.testing.assert_allclose(found.tensors[TABLE].read(), table, atol=TOLERANCE)
    assert found.config["tie_word_embeddings"] is (head is None)
    if head is not None or stored_twice:
        right = table if head is None else head
        np.testing.assert_allclose(found.tensors[HEAD].read(), right, atol=TOLERANCE)
    else:
        assert HEAD not in found.tensors


def test_an_untied_head_is_written_and_computed_with(tied: Path, tmp_path: Path) -> None:
    tensors, fields, table, head = TIES["both"]
    assert head is not None
    found = merge(tied, write_adapter(tmp_path / "lora", tensors, **fields))
    folder = export_model(found, tmp_path / "out")
    ids = [3, 1, 96, 7, 7]
    config = CONFIG | {"tie_word_embeddings": False}
    expected = llama.forward(config, TENSORS | {TABLE: table, HEAD: head}, ids)
    session = Session(folder, threads=1)
    logits = session.all_logits(np.array(ids), session.new_cache())
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    assert json.loads((folder.path / "config.json").read_text())["tie_word_embeddings"] is False


# What does not fit --------------------------------------------------------------------------------

EMPTY = np.zeros(0, np.float32)
# Other tensors or fields, and what the message says.
WRONG: dict[str, tuple[dict[str, Array], dict[str, Any], str]] = {
    "module": (lora_pair("model.layers.0.attn.c_attn", (9, 9)), {"target_modules": None}, "c_attn"),
    "layer": (lora_pair("model.layers.2.self_attn.q_proj", (96, 64)), {}, "layers.2.self_attn"),
    "classifier": (PAIR | {f"{PREFIX}score.weight": ROWS}, {}, "has no 'score.weight'"),
    "inputs": (lora_pair(Q, (96, 65)), {}, r"shape \(4, 65\), expected \(4, 64\)"),
    "outputs": (lora_pair(Q, (64, 64)), {}, r"shape \(64, 4\), expected \(96, 4\)"),
    "rank": (lora_pair(Q, (96, 64), rank=5), {}, r"shape \(5, 64\), expected \(4, 64\)"),
    "rank of a pattern": (PAIR, {"rank_pattern": {"q_proj": 2}}, r"expected \(2, 64\)"),
    "whole": ({PREFIX + HEAD: ROWS}, {"modules_to_save": ["lm_head"]}, r"expected \(97, 64\)"),
    "resized": ({PREFIX + TABLE: np.zeros((99, D))}, {}, "resize_token_embeddings"),
    "a vector": (lora_pair("model.norm", (64, 1)), {"target_modules": ["norm"]}, "embedding A"),
    "a layer's vector": (
        lora_pair("model.layers.0.input_layernorm", (64, 1)),
        {"target_modules": ["input_layernorm"]},
        "no matrix",
    ),
    "not targeted": (PAIR, {"target_modules": ["v_proj"]}, "q_proj.*nothing uses"),
    "not in these layers": (PAIR, {"layers_to_transform": 1}, "nothing uses"),
    "excluded": (PAIR, {"exclude_modules": r".*q_proj"}, "nothing uses"),
    "in a whole module": (PAIR, {"modules_to_save": ["q_proj"]}, "nothing uses"),
    "all but the head": (HEAD_PAIR, {"target_modules": "all-linear"}, "nothing uses"),
    "linear for an embedding": (
        lora_pair("model.embed_tokens", (V, D)),
        {"target_modules": TARGETS},
        "expected embedding A, embedding B",
    ),
    "half": (dict(list(PAIR.items())[:1]), {}, "has A of .*, expected A, B"),
    "bias that is not meant": (
        PAIR | {f"{PREFIX}{Q}.lora_B.bias": np.zeros(96)},
        {},
        "has A, B, bias of B of",
    ),
    "bias that is missing": (PAIR, {"lora_bias": True}, "expected A, B, bias of B"),
    "bias without one below": (
        lora_pair("model.layers.0.mlp.up_proj", (80, 64))
        | {f"{PREFIX}model.layers.0.mlp.up_proj.lora_B.bias": np.zeros(80)},
        {"lora_bias": True, "target_modules": ["up_proj"]},
        "has no 'layers.0.mlp.up_proj.bias'",
    ),
    "not saved": (PAIR, {"modules_to_save": ["lm_head"]}, "has no 'lm_head.weight'"),
    "tokens beyond": (TOKENS, {"trainable_token_indices": [3, V]}, "has 97 for .*0 to 96"),
    "tokens of no number": (TOKENS, {}, "trainable_token_indices has nothing for"),
    "fewer tokens": (TOKENS, {"trainable_token_indices": [3]}, r"expected \(1, 64\)"),
    "DoRA's tensors": (
        PAIR | {f"{PREFIX}{Q}.lora_magnitude_vector": np.zeros(96)},
        {},
        "lora_magnitude_vector.*DoRA",
    ),
    "other tensors": (PAIR | {f"{PREFIX}{Q}.lora_E": ROWS}, {}, "lora_E.*not known"),
    "two names": (
        PAIR | {name.replace(PREFIX, ""): array for name, array in PAIR.items()},
        {},
        "are both 'the A of",
    ),
    "no tensor": ({}, {}, "holds no tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_adapter_of_something_else_is_refused_by_name(
    base: Path, tmp_path: Path, name: str
) -> None:
    tensors, fields, message = WRONG[name]
    folder = write_adapter(tmp_path / "lora", tensors, **fields)
    with pytest.raises(CheckpointError, match=f"(?s)lora'?: .*{message}"):
        merge(base, folder)


FIELDS: dict[str, tuple[Any, str]] = {
    "peft_type": ("IA3", "peft_type is 'IA3', expected 'LORA'.*merge_and_unload"),
    "r": (0, "r is '0', expected a whole number above 0"),
    "lora_alpha": ("8", "lora_alpha is '8', expected a number"),
    "rank_pattern": ({"q_proj": -1}, "rank_pattern is .* above 0"),
    "alpha_pattern": ([1], "alpha_pattern is"),
    "use_dora": (True, r"use_dora is 'True' \(DoRA\)"),
    "use_rslora": ("yes", "use_rslora is 'yes', expected true or false"),
    "layer_replication": ([[0, 2], [1, 2]], "layer_replication is"),
    "alora_invocation_tokens": ([1, 2], r"alora_invocation_tokens .*\(aLoRA\)"),
    "target_parameters": (["experts.down"], "target_parameters is"),
    "kasa_config": ({"beta": 1}, "kasa_config is"),
    "something_new": (True, "something_new is 'True'"),
    "init_lora_weights": (
        "pissa_niter_4",
        "init_lora_weights is .*path_initial_model_for_weight_conversion",
    ),
    "bias": ("some", "bias is 'some', expected one of none, all, lora_only"),
    "target_modules": ("*(", "target_modules has .*regular expression"),
    "exclude_modules": (3, "exclude_modules is '3'"),
    "modules_to_save": ("lm_head", "modules_to_save is 'lm_head', expected a list"),
    "layers_to_transform": ([-1], "layers_to_transform"),
    "trainable_token_indices": ([3, 3], "trainable_token_indices"),
    "base_model_name_or_path": (["org/base"], "base_model_name_or_path"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_cannot_be_merged_is_refused_by_name(tmp_path: Path, name: str) -> None:
    value, message = FIELDS[name]
    folder = write_adapter(tmp_path / "lora", PAIR, **{name: value})
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {message}"):
        open_adapter(folder)


def test_flags_of_a_pattern_are_as_in_peft(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", PAIR, target_modules="(?i).*Q_PROJ")
    assert_same(values(merge(base, folder)), merged_slowly(TENSORS, PAIR, lora_config()))
    write_adapter(folder, PAIR, rank_pattern={"(?i)Q_PROJ": 4})
    with pytest.raises(CheckpointError, match="rank_pattern has .*flags"):
        open_adapter(folder)


@pytest.mark.parametrize("alpha", ["NaN", "Infinity", "1e999", "-1e301"])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: str) -> None:
    folder = write_adapter(tmp_path / "lora", PAIR, lora_alpha=12345)
    file = folder / "adapter_config.json"
    file.write_text(file.read_text().replace("12345", alpha))
    with pytest.raises(CheckpointError, match="adapter_config.json"):
        open_adapter(folder)


FILES: dict[str, tuple[str, bytes | None, str]] = {
    "no config": ("adapter_config.json", None, "found no adapter_config.json"),
    "empty config": ("adapter_config.json", b"", "not valid JSON"),
    "cut config": ("adapter_config.json", b'{"peft_type": "LO', "not valid JSON"),
    "a list as config": ("adapter_config.json", b"[]", "expected a JSON object"),
    "a field twice": ("adapter_config.json", b'{"r": 1, "r": 2}', "'r'"),
    "no type": ("adapter_config.json", b"{}", "peft_type is 'None'"),
    "no weights": ("adapter_model.safetensors", None, "found no adapter_model.safetensors"),
    "empty weights": ("adapter_model.safetensors", b"", "0 bytes"),
    "cut weights": ("adapter_model.safetensors", safetensors_bytes(PAIR)[:-9], "cut off"),
    "other weights": ("adapter_model.safetensors", b"PK\x03\x04" * 9, "safetensors"),
    "integers": (
        "adapter_model.safetensors",
        safetensors_bytes({name: array > 0 for name, array in PAIR.items()}),
        "is bool, expected one of",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    file, data, message = FILES[name]
    folder = write_adapter(tmp_path / "lora", PAIR)
    (folder / file).unlink()
    if data is not None:
        (folder / file).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"lora': .*{message}"):
        open_adapter(folder)


def test_pickled_adapters_are_never_loaded(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", PAIR)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="found adapter_model.bin.*never loads.*save_file"):
        open_adapter(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_when_they_are_merged(
    base: Path, tmp_path: Path, bad: float
) -> None:
    tensors = {name: array.copy() for name, array in PAIR.items()}
    tensors[f"{PREFIX}{Q}.lora_A.weight"][2, 3] = bad
    found = merge(base, write_adapter(tmp_path / "lora", tensors))
    with pytest.raises(CheckpointError, match="lora_A.weight' holds"):
        found.tensors[f"{Q}.weight"].read()


def test_a_sum_that_overflows_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    found = merge(base, write_adapter(tmp_path / "lora", PAIR, lora_alpha=1e200))
    with pytest.raises(CheckpointError, match=f"{Q}.weight' with adapter 'lora' holds"):
        found.tensors[f"{Q}.weight"].read()


def test_an_adapter_is_not_merged_twice(base: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", PAIR)
    with pytest.raises(RequestError, match="twice"):
        merge(base, folder, open_adapter(tmp_path / "." / "lora", 0.5))


def test_two_adapters_do_not_both_replace_a_tensor(base: Path, tmp_path: Path) -> None:
    folders = [
        write_adapter(tmp_path / name, {PREFIX + HEAD: NEW}, modules_to_save=["lm_head"])
        for name in ("one", "two")
    ]
    with pytest.raises(CheckpointError, match=r"'one' and 'two': 'lm_head.weight' is stored whole"):
        merge(base, *folders)


def test_modules_that_are_meant_and_have_nothing_are_told(base: Path, tmp_path: Path) -> None:
    told: list[str] = []
    adapter = open_adapter(write_adapter(tmp_path / "lora", PAIR))
    merged(open_checkpoint(base), [adapter], told.append)
    assert told == [
        "merging lora, a LoRA adapter of 'org/base', with weight 1: 1 tensor",
        "adapter lora: target_modules names 'model.layers.1.self_attn.q_proj', and "
        "adapter_model.safetensors has nothing for it; it stays as it is",
    ]


# What a user writes -------------------------------------------------------------------------------


def test_a_weight_stands_behind_the_last_colon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:0.5").mkdir()
    for asked, folder, weight in (
        ("lora", "lora", 1),
        ("lora/:0.5", "lora/", 0.5),
        ("lora:1e-1", "lora", 0.1),
        ("lora:.5", "lora", 0.5),
        ("b:c:2", "b:c", 2),
        ("a:0.5", "a:0.5", 1),  # a folder of the whole name comes first
        ("a:0.5:2", "a:0.5", 2),
        ("C:\\lora", "C:\\lora", 1),
        ("C:\\lora:0.25", "C:\\lora", 0.25),
        ("lora:half", "lora:half", 1),  # will not be found, and is named whole
        ("lora:1_0", "lora:1_0", 1),
    ):
        assert asked_adapter(asked) == AskedAdapter(Path(folder), weight)
    assert asked_adapter(Path("x:0.5")) == AskedAdapter(Path("x:0.5"))


@pytest.mark.parametrize("weight", ["nan", "NaN", "inf", "-inf", "-0.5", "0", "0.0", "1e9", "101"])
def test_a_weight_that_is_none_is_refused(weight: str) -> None:
    with pytest.raises(RequestError, match="weight .*, expected a number above 0 and up to 100"):
        asked_adapter(f"lora:{weight}")


@pytest.mark.parametrize("asked", ["", " ", ":0.5"])
def test_an_empty_name_is_refused(asked: str) -> None:
    with pytest.raises(RequestError, match="expected a folder, or a folder and a weight"):
        asked_adapter(asked)


@pytest.mark.parametrize(
    "asked", ["lora", Path("lora"), {"lora": 0.5}, iter(["lora"]), [("lora", 0.5)], [None], [5]]
)
def test_what_is_no_list_of_folders_is_refused(asked: Any) -> None:
    """Nothing of it is taken for another list, or left out."""
    with pytest.raises(RequestError, match="as .*lora/:0.5"):
        find_folder("demo", adapters=asked)


def test_what_is_no_folder_says_how_a_weight_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lora:half': it is not there, .*as lora/:0.5"):
        open_adapter(str(tmp_path / "lora:half"))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="it is a file"):
        open_adapter(tmp_path / "file")


# Folders and commands -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("lora") / "lora", PAIR)


def test_a_folder_tells_what_was_merged_into_it(
    base: Path, lora: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    ended = run("export", base, out, "--adapter", f"{lora}:0.5", "--precision", "int8")
    assert ended.code == 0, ended.err
    assert "merging lora, a LoRA adapter of 'org/base', with weight 0.5" in ended.err
    (entry,) = ModelFolder.open(out).manifest.source.adapters or ()
    assert (entry.name, entry.weight, entry.base_model) == ("lora", 0.5, BASE)
    assert set(entry.files) == {"adapter_config.json", "adapter_model.safetensors"}
    told = run("info", out).out
    assert "adapter       lora merged with weight 0.5, trained on org/base\n" in told


def test_quantized_folders_are_those_of_the_merged_checkpoint(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    rows = {name: array.astype(np.float32) for name, array in values(merge(base, lora)).items()}
    other = write_checkpoint(tmp_path / "merged", CONFIG, rows)
    for precision in ("fp32", "int4"):
        found = export_model(
            merge(base, lora), tmp_path / f"a-{precision}", precision_of(precision)
        )
        plain = export_model(
            open_checkpoint(other), tmp_path / f"b-{precision}", precision_of(precision)
        )
        assert found.files["model.onnx_data"] == plain.files["model.onnx_data"]


def test_a_dry_run_tells_and_refuses_as_the_export(
    base: Path, lora: Path, tmp_path: Path, run: Run
) -> None:
    plain = plan_export(open_headers(base), tmp_path / "out", timed=False)
    headers = merged(open_headers(base), [open_adapter(lora, 0.5)])
    plan = plan_export(headers, tmp_path / "out", timed=False)
    adapter_bytes = sum(array.nbytes for array in PAIR.values())
    assert plan.bytes_to_read == plain.bytes_to_read + adapter_bytes
    assert plan.adapters == ("lora:0.5",)
    ended = run("export", base, tmp_path / "out", "--adapter", f"{lora}:0.5", "--dry-run")
    assert ended.code == 0 and "adapters      lora:0.5" in ended.out
    config_alone = tmp_path / "alone"
    config_alone.mkdir()
    shutil.copy(base / "config.json", config_alone)
    wrong = write_adapter(tmp_path / "wrong", lora_pair(Q, (96, 65)))
    ended = run("export", config_alone, tmp_path / "out", "--adapter", wrong, "--dry-run")
    assert ended.code == 2 and "expected (4, 64)" in ended.err


def test_a_model_made_at_first_use_is_kept_by_its_adapters(
    base: Path, lora: Path, tmp_path: Path, run: Run
) -> None:
    def made(*adapters: str) -> ModelFolder:
        folder = find_folder(base, precision="fp32", adapters=adapters)
        merged_in = folder.manifest.source.adapters or ()
        assert [f"{each.name}:{each.weight:g}" for each in merged_in] == [
            f"{Path(each).name}" for each in adapters
        ]
        return folder

    other = shutil.copytree(lora, tmp_path / "lora")
    folders = [made(), made(f"{lora}:1"), made(f"{lora}:0.5"), made(f"{lora}:0.5")]
    assert len({folder.path for folder in folders}) == 3
    write_adapter(other, lora_pair(Q, (96, 64), seed=7))
    assert made(f"{other}:1").path not in {folder.path for folder in folders}
    ended = run("run", base, "ab", "--max-tokens", "2", "--adapter", lora, "--precision", "fp32")
    assert ended.code == 0, ended.err
    refused = run("run", folders[0].path, "ab", "--adapter", lora)
    assert refused.code == 2
    assert "for a model folder, expected it only for a checkpoint" in refused.err


def test_optimum_takes_no_adapter(base: Path, lora: Path, tmp_path: Path, run: Run) -> None:
    ended = run("export", base, tmp_path / "out", "--adapter", lora, "--via", "optimum")
    assert ended.code == 2 and "merge_and_unload" in ended.err


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_given_as_the_model_says_what_to_type(
    lora: Path, base: Path, tmp_path: Path, run: Run, with_config: bool, file: str
) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(lora, folder)
    (folder / "adapter_model.safetensors").rename(folder / file)
    if with_config:
        shutil.copy(base / "config.json", folder)
    out = tmp_path / "out"
    for verb in (
        ("run", folder, "x"),
        ("export", folder, out),
        ("export", folder, out, "--dry-run"),
    ):
        ended = run(*verb)
        assert ended.code == 2
        assert (
            f"{str(folder)!r} is a LoRA adapter of 'org/base' and not a model of its own"
            in ended.err
        )
        assert f"pocketlm export org/base OUT --adapter {folder}" in ended.err


def test_a_model_with_an_adapter_beside_it_is_a_model(
    base: Path, lora: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(base, folder)
    for file in lora.iterdir():
        shutil.copy(file, folder)
    found = merge(folder, folder)
    assert_same(values(found), merged_slowly(TENSORS, PAIR, lora_config()))
    assert replace(found, adapters=()).source() == open_checkpoint(folder).source()
