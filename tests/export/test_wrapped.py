"""A text model inside one for images: it is that text model, and nothing of the rest is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint, write_tokenizer
from llama_checkpoints import WRAPPED, Tensors, llama_config, llama_tensors
from lora_adapters import lora_pair, write_adapter

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.lora.adapter import open_adapter
from pocketlm.export.lora.merging import merged
from pocketlm.export.writing import export_model

# Where the text model's tensors are, in files of several ages: of the decoder, and of the head.
LAYOUTS = {
    "older": ("language_model.model.", "language_model.lm_head."),
    "newer": ("model.language_model.", "lm_head."),
    "beside": ("model.text_model.", "lm_head."),
    "plain": ("model.", "lm_head."),
}
TOWERS = ("vision_tower.a.weight", "model.visual.b.weight", "multi_modal_projector.c.weight")


def wrapped(tensors: Tensors, layout: str) -> Tensors:
    decoder, head = LAYOUTS[layout]
    named = {
        name.replace("model.", decoder, 1).replace("lm_head.", head, 1): values
        for name, values in tensors.items()
    }
    return named | {name: np.ones((2, 3), np.float32) for name in TOWERS}


def written(config: dict[str, Any], tensors: Tensors, folder: Path) -> Path:
    write_checkpoint(folder, config, tensors, tokenizer=False)
    write_tokenizer(folder, 97)
    return folder


def data_of(config: dict[str, Any], tensors: Tensors, root: Path) -> Any:
    source = written(config, tensors, root / "in")
    folder = export_model(open_checkpoint(source), root / "out")
    return folder.files["model.onnx_data"], folder.shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_text_model_is_the_one_inside(layout: str, tmp_path: Path) -> None:
    text = llama_config("mistral")
    expected = data_of(text, llama_tensors(text), tmp_path / "plain")
    config = {"model_type": "mistral3", "text_config": text, "vision_config": {"hidden_size": 8}}
    found = data_of(config, wrapped(llama_tensors(text), layout), tmp_path / "wrapped")
    assert found == expected


@pytest.mark.parametrize("family", WRAPPED)
def test_every_family_takes_its_text_model(family: str, tmp_path: Path) -> None:
    text = llama_config(WRAPPED[family])
    expected = data_of(text, llama_tensors(text), tmp_path / "plain")
    inner = dict(text)
    if family.startswith("qwen2"):
        inner |= {
            "model_type": f"{family}_text",
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        }
    config = {"model_type": family, "text_config": inner, "vision_config": {"hidden_size": 8}}
    found = data_of(config, wrapped(llama_tensors(text), "older"), tmp_path / "wrapped")
    assert found == expected


def test_the_fields_may_be_beside_those_of_the_other_parts(tmp_path: Path) -> None:
    text = llama_config("qwen2", tie_word_embeddings=True)
    expected = data_of(text, llama_tensors(text), tmp_path / "plain")
    config = text | {"model_type": "qwen2_5_vl", "vision_config": {"hidden_size": 8}}
    found = data_of(config, wrapped(llama_tensors(text), "plain"), tmp_path / "wrapped")
    assert found == expected


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"text_config": {"model_type": "t5"}}, "model_type of text_config is 't5', expected one"),
        ({"text_config": [1]}, "text_config is '\\[1\\]', expected an object"),
        ({"text_config": {"model_type": ["llama"]}}, "model_type of text_config is "),
        ({"quantization_config": {"quant_method": "awq"}}, "already quantized"),
    ],
)
def test_another_text_model_is_named(fields: dict[str, Any], named: str, tmp_path: Path) -> None:
    text = llama_config("llama")
    config = {"model_type": "llava", "text_config": text} | fields
    source = written(config, wrapped(llama_tensors(text), "older"), tmp_path / "in")
    with pytest.raises(CheckpointError, match=named) as caught:
        export_model(open_checkpoint(source), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_tensor_of_no_part_is_refused(tmp_path: Path) -> None:
    text = llama_config("llama")
    tensors = wrapped(llama_tensors(text), "older") | {"extra.weight": np.ones(3, np.float32)}
    config = {"model_type": "llava", "text_config": text}
    source = written(config, tensors, tmp_path / "in")
    with pytest.raises(CheckpointError, match="extra.weight"):
        export_model(open_checkpoint(source), tmp_path / "out")


# A head that no longer shares the embedding, wherever config.json ties them -----------------------


def tied_inside() -> tuple[dict[str, Any], dict[str, Any], Tensors]:
    """A tied text model: its config, that of a family around it, and its tensors."""
    text = llama_config("llama", tie_word_embeddings=True)
    return text, {"model_type": "llava", "text_config": text}, llama_tensors(text)


def test_a_stored_head_of_the_text_model_is_used(tmp_path: Path) -> None:
    text, config, tensors = tied_inside()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
    expected = data_of(text, tensors, tmp_path / "plain")
    assert expected[0].bytes > data_of(*tied_inside()[::2], tmp_path / "tied")[0].bytes
    assert data_of(config, wrapped(tensors, "older"), tmp_path / "wrapped") == expected


def merged_data(
    config: dict[str, Any], tensors: Tensors, adapter: Tensors, root: Path, **fields: Any
) -> tuple[Any, list[str]]:
    """The weights with an adapter merged into them, and what was said."""
    said: list[str] = []
    lora = open_adapter(write_adapter(root / "lora", adapter, **fields))
    checkpoint = merged(open_checkpoint(written(config, tensors, root / "in")), [lora], said.append)
    return export_model(checkpoint, root / "out").files["model.onnx_data"], said


def test_an_adapter_of_the_embedding_leaves_the_head_of_the_text_model(tmp_path: Path) -> None:
    text, config, tensors = tied_inside()
    pair = lora_pair("model.embed_tokens", (64, 97))  # (D, V)
    table = {name.replace("lora_", "lora_embedding_")[:-7]: x for name, x in pair.items()}
    expected, _ = merged_data(
        text, tensors, table, tmp_path / "plain", target_modules=["embed_tokens"]
    )
    inside = {
        name.replace("model.embed", "language_model.model.embed"): x for name, x in table.items()
    }
    found, _ = merged_data(
        config,
        wrapped(tensors, "older"),
        inside,
        tmp_path / "wrapped",
        target_modules=["embed_tokens"],
    )
    assert found == expected


def test_an_adapter_s_other_parts_are_left_out_and_said(tmp_path: Path) -> None:
    text, config, tensors = tied_inside()
    name = "layers.0.self_attn.q_proj"
    pair = lora_pair(f"model.{name}", (96, 64))
    expected, _ = merged_data(text, tensors, pair, tmp_path / "plain")
    inside = {
        key.replace(f"model.{name}", f"model.language_model.{name}"): x for key, x in pair.items()
    }
    tower = lora_pair(f"model.vision_tower.{name}", (8, 8))
    saved = {"base_model.model.model.multi_modal_projector.linear.weight": np.ones((2, 3))}
    found, said = merged_data(
        config, wrapped(tensors, "newer"), inside | tower | saved, tmp_path / "wrapped"
    )
    assert found == expected
    assert (
        "adapter lora: 3 tensors are left out, of parts that no text needs, as "
        "'base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight'"
    ) in said
    with pytest.raises(CheckpointError, match="nothing but"):
        merged_data(config, wrapped(tensors, "newer"), tower, tmp_path / "tower")
