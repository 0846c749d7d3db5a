"""open_checkpoint: finds the reader, and tells people who name something else what to do."""

from __future__ import annotations

import hashlib
import os
import pkgutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_files import (
    gpt2_config,
    gpt2_tensors,
    tokenizer_file,
    write_checkpoint,
    write_llmc,
    write_safetensors,
    write_tokenizer,
)
from tokenizers import Tokenizer

from pocketlm.export import checkpoint as checkpoint_module
from pocketlm.export import readers
from pocketlm.export.checkpoint import Checkpoint, open_checkpoint
from pocketlm.export.errors import CheckpointError, MissingExtraError


def test_gives_config_tokenizer_and_generation_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, gpt2_config(n_layer=1))
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.path == tmp_path
    assert checkpoint.config == gpt2_config(n_layer=1)
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.files[0] == tmp_path / "tokenizer.json"
    assert checkpoint.generation_config == {}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.7}')
    assert open_checkpoint(tmp_path).generation_config == {"temperature": 0.7}


def test_tensors_can_be_read_after_the_directory_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint("model", "model/tokenizer.json")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert checkpoint.tensors["transformer.ln_f.bias"].read().shape == (32,)
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.files[0].is_file()
    assert checkpoint.source().format == "safetensors"


def test_a_checkpoint_may_lack_a_tokenizer(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", tokenizer=False)
    assert open_checkpoint(tmp_path / "model").tokenizer is None
    other = write_tokenizer(tmp_path / "other", 97)
    assert tokenizer_file(open_checkpoint(tmp_path / "model", tmp_path / "other")) == other


@pytest.mark.parametrize("name", ["nowhere", "empty", "half\ud800", "nul\0", "x" * 5000])
def test_refuses_a_named_tokenizer_that_is_not_there(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="there is no tokenizer at .*, expected a tokenizer"):
        open_checkpoint(tmp_path / "model", tmp_path / name)


def test_source_hashes_weights_and_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=2)
    source = open_checkpoint(tmp_path).source()
    assert source.format == "safetensors"
    names = {
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert source.files == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names
    }


# --- things that are no checkpoint ------------------------------------------------------------


def pickles(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def files(**contents: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.mkdir()
        for name, data in contents.items():
            (path / name.replace("_dot_", ".")).write_bytes(data)

    return write


def file(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


NOT_CHECKPOINTS: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "missing": ("m", lambda path: None, ["/m' does not exist", "check the path"]),
    "empty folder": ("m", files(), ["is an empty folder", "download the checkpoint into it"]),
    "config alone": (
        "m",
        files(config_dot_json=b"{}"),
        ["is a folder with 'config.json'", "download the checkpoint's *.safetensors files"],
    ),
    "many files": (
        "m",
        files(**{f"f{i:02}": b"" for i in range(20)}),
        ["'f00', 'f01'", "'f07' and 12 more"],
    ),
    "pytorch_model.bin": (
        "m",
        pickles,
        [
            "is a folder with 'config.json', 'pytorch_model.bin'",
            "can run code when loaded",
            "never",
        ],
    ),
    "other pickle": ("m", files(model_dot_pt=b"PK"), ["safe_serialization=True", "model.pt"]),
    "zip file": ("m.pt", file(b"PK\x03\x04rest"), ["bytes 50 4b 03 04", "save_pretrained"]),
    "pickle file": ("m.bin", file(b"\x80\x02}q\x00."), ["bytes 80 02", "never loads them"]),
    "GGUF": ("m.gguf", file(b"GGUF\3\0\0\0"), ["number of tensors would end at byte 16"]),
    "folder of GGUF": ("m", files(x_dot_gguf=b"GGUF"), ["name the file itself: 'x.gguf' in it"]),
    "text": ("m", file(b"hello world"), ["starting with bytes 68 65 6c 6c 6f 20 77 6f"]),
    "empty file": ("m.bin", file(b""), ["is an empty file", "check the path"]),
    "3 bytes": ("m.bin", file(b"\x26\x86\x34"), ["starting with bytes 26 86 34"]),
    "safetensors file": ("m.safetensors", file(b"\2\0\0\0\0\0\0\0{}"), ["name the folder that"]),
    "config file": ("config.json", file(b"{}"), ["name the folder that holds it"]),
    "pocketlm folder": (
        "m",
        files(pocketlm_dot_json=b"{}", config_dot_json=b"{}", x_dot_safetensors=b""),
        ["is a pocketlm model folder", "already exported", "`pocketlm run` or `pocketlm quantize`"],
    ),
    "no config": (
        "m",
        lambda path: write_safetensors(path, gpt2_tensors(gpt2_config())),
        ["safetensors files but no config.json", "from the same revision"],
    ),
    "NUL in the path": ("m\0", lambda path: None, ["embedded null"]),
    "long path": ("m" * 5000, lambda path: None, ["cannot be read (File name too long)"]),
}


@pytest.mark.parametrize("case", NOT_CHECKPOINTS)
def test_says_what_was_found_instead(case: str, tmp_path: Path) -> None:
    name, create, parts = NOT_CHECKPOINTS[case]
    create(tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / name)
    message = str(caught.value)
    for part in [*parts, "expected", ";"]:
        assert part in message
    assert "\n" not in message and len(message) < 700


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.bin")
    with pytest.raises(CheckpointError, match="'m.bin' is a named pipe"):
        open_checkpoint(tmp_path / "m.bin")


def test_says_so_when_the_folder_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\), expected a"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", [".", "config.json", "model.safetensors"])
def test_refuses_what_may_not_be_read(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / name).chmod(0)
    try:
        if os.access(folder / name, os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(CheckpointError, match="Permission denied"):
            open_checkpoint(folder)
    finally:
        (folder / name).chmod(0o700)


# --- config.json ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[]", "config.json holds a JSON array, expected a JSON object"),
        (b'{"n_layer": 1, "n_layer": 2}', "config.json has the key 'n_layer' twice"),
        (b'{"eps": NaN}', "config.json has the number NaN"),
        (b"{" + b" " * 1_000_000, "has 1,000,001 bytes, expected at most 1,000,000"),
        (b"", "config.json is not valid JSON"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_refuses_configs(name: str, data: bytes, problem: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert problem in str(caught.value) and str(caught.value).startswith(name)


def test_config_is_data(tmp_path: Path) -> None:
    """Fields that switch on code elsewhere come back as plain values."""
    config = gpt2_config(auto_map={"AutoModel": "evil.py--Model"}, trust_remote_code=True)
    write_checkpoint(tmp_path, config)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    assert open_checkpoint(tmp_path).config == config


# --- readers ----------------------------------------------------------------------------------

READERS = [name for _, name, _ in pkgutil.iter_modules(readers.__path__)]


@pytest.mark.parametrize("name", READERS)
def test_every_reader_offers_matches_and_read(name: str, tmp_path: Path) -> None:
    module = __import__(f"{readers.__name__}.{name}", fromlist=["matches"])
    assert callable(module.matches) and callable(module.read)
    assert not module.matches(tmp_path)
    assert not module.matches(tmp_path / "nowhere")


def test_reading_needs_numpy_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", dtype="BF16")
    config = gpt2_config()
    write_llmc(tmp_path / "m.bin", config, gpt2_tensors(config))
    pytest.importorskip("gguf")  # what writes the file wants it
    from gguf_files import write_gguf

    write_gguf(tmp_path / "m.gguf", config, gpt2_tensors(config))
    code = (
        "import sys; from pocketlm.export.checkpoint import Checkpoint, open_checkpoint;"
        "[t.read() for path in sys.argv[1:] for t in open_checkpoint(path).tensors.values()];"
        "print(*{'torch', 'transformers', 'onnx', 'safetensors', 'ml_dtypes', 'gguf'} & "
        "set(sys.modules))"
    )
    paths = [str(tmp_path / name) for name in ("hf", "m.bin", "m.gguf")]
    command = [sys.executable, "-c", code, *paths]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.strip() == ""


def with_reader(monkeypatch: pytest.MonkeyPatch, folder: Path, source: str) -> None:
    (folder / "made_up.py").write_text(source)
    monkeypatch.setattr(readers, "__path__", [str(folder)])
    monkeypatch.delitem(sys.modules, f"{readers.__name__}.made_up", raising=False)


def test_a_missing_package_is_answered_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_reader(monkeypatch, tmp_path, "import a_package_nobody_has")
    with pytest.raises(MissingExtraError, match=r'pip install "pocketlm\[export\]"'):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("1 / 0", ZeroDivisionError),
        ("def", SyntaxError),
        ("from ..checkpoint import nothing", ImportError),
        ("from .. import nothing_either", ImportError),
        ("import pocketlm.export.nowhere", ModuleNotFoundError),
    ],
)
def test_a_broken_reader_raises_its_own_error(
    source: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_reader(monkeypatch, tmp_path, source)
    with pytest.raises(error) as caught:
        open_checkpoint(tmp_path)
    assert not isinstance(caught.value, MissingExtraError)


def test_a_reader_is_found_by_being_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_up")
    monkeypatch.setattr(module, "matches", lambda path: True, raising=False)
    made_up = Checkpoint(tmp_path, {"made": "up"}, {}, {})
    monkeypatch.setattr(module, "read", lambda path, tokenizer: made_up, raising=False)
    monkeypatch.setattr(checkpoint_module, "_readers", lambda: [module])
    assert open_checkpoint(tmp_path) == made_up


# --- the files that the tests write -----------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [2, 97, 256, 257, 300, 512, 5000])
def test_written_tokenizers_have_their_size(vocab_size: int, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path, vocab_size)))
    assert tokenizer.get_vocab_size() == vocab_size
    assert tokenizer.token_to_id("<|endoftext|>") == vocab_size - 1
    assert sorted(tokenizer.get_vocab().values()) == list(range(vocab_size))
    if vocab_size >= 257:
        text = "".join(map(chr, range(128))) + "The quick brown fox, é 😀\n"
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert tokenizer.encode("a<|endoftext|>").ids[-1] == vocab_size - 1


def test_written_tensors_are_seeded() -> None:
    first, again = gpt2_tensors(gpt2_config()), gpt2_tensors(gpt2_config())
    other = gpt2_tensors(gpt2_config(tie_word_embeddings=False), seed=1, prefix="")
    assert all((first[name] == again[name]).all() for name in first)
    assert "lm_head.weight" in other and "wte.weight" in other and "lm_head.weight" not in first
    assert (first["transformer.wte.weight"] != other["wte.weight"]).any()
