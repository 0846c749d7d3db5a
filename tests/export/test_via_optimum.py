"""Exporting through Optimum, from the folder to the model, with the tracing itself played.

What torch and Optimum really make is tested in ``parity/test_traced_parity.py``.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint, write_llmc
from traced_graphs import GPT2, VOCAB, export_traced, traced_model, write_trace

import pocketlm
from pocketlm import cli
from pocketlm.export import via_optimum
from pocketlm.export.errors import CheckpointError, ModelFolderError, StorageError
from pocketlm.export.folder import GROWING, IN_PLACE, MANIFEST, ModelFolder
from pocketlm.export.traced import process
from pocketlm.export.traced.process import Trace
from pocketlm.export.via_optimum import float32_bytes, open_for_tracing

BLOOM = {"model_type": "bloom", "vocab_size": VOCAB, "eos_token_id": 299, "torch_dtype": "float16"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint of an architecture that has no file here."""
    return write_checkpoint(tmp_path / "source", gpt2_config(vocab_size=VOCAB) | BLOOM)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Plays the tracing; lists the folders it was given."""
    folders: list[Path] = []

    def trace(checkpoint: Path, out: Path) -> Trace:
        folders.append(out)
        return write_trace(traced_model(GPT2), GPT2, out)

    monkeypatch.setattr(via_optimum, "run_trace", trace)
    monkeypatch.setattr(process, "PACKAGES", ("numpy",))  # torch and its company seem to be there
    return folders


def test_a_missing_package_is_named_before_anything_is_fetched(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(process, "PACKAGES", ("no_such_package",))
    monkeypatch.setattr("pocketlm.commands.export.checkpoint_folder", lambda *_, **__: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(source), str(tmp_path / "out"), "--via", "optimum"])
    assert ended.value.code == 2
    assert "needs the package 'no_such_package'" in capsys.readouterr().err


def torch_checkpoint(folder: Path, shards: dict[str, bytes], index: Any = None) -> Path:
    """A folder as torch users publish it; the pickles are no pickles."""
    write_checkpoint(folder, gpt2_config(vocab_size=VOCAB))
    (folder / "model.safetensors").unlink()
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    if index is not None:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def test_damaged_weights_are_refused_before_anything_is_traced(
    traced: list[Path], tmp_path: Path
) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data/0", b"weights")
    whole = file.getvalue()
    shards = {"a.bin": whole, "b.bin": whole.replace(b"weights", b"weightz")}
    index = {"weight_map": {"t": "a.bin", "u": "b.bin"}}
    source = torch_checkpoint(tmp_path / "torch", shards, index)
    with pytest.raises(CheckpointError, match="b.bin: .* in the entry 'archive/data/0' than its"):
        export_traced(source, tmp_path / "out")
    (source / "b.bin").write_bytes(whole)
    assert traced == []
    export_traced(source, tmp_path / "out")


def test_a_tokenizer_that_cannot_be_run_is_refused_before_anything_is_traced(
    source: Path, traced: list[Path], tmp_path: Path
) -> None:
    file = source / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"model": {}}), "utf-8")
    with pytest.raises(CheckpointError, match="tokenizer.json: reading it failed"):
        export_traced(source, tmp_path / "out")
    assert traced == []


def run(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def test_the_result_is_a_model_folder_like_any_other(
    source: Path, traced: list[Path], tmp_path: Path
) -> None:
    folder = export_traced(source, tmp_path / "out")
    folder.verify()
    assert folder.manifest.architecture == "bloom"
    assert folder.manifest.source.files.keys() == {"config.json", "model.safetensors"}
    weights = traced_model(GPT2).graph.initializers.values()
    sizes = [value.const_value.size for value in weights if value.const_value is not None]
    assert folder.manifest.num_parameters == sum(sizes)
    result = pocketlm.load(folder.path, threads=1).generate("abc", max_tokens=5, ignore_eos=True)
    assert len(result.token_ids) == 5


def test_the_trace_lies_beside_the_result_and_is_removed(
    source: Path, traced: list[Path], tmp_path: Path
) -> None:
    export_traced(source, tmp_path / "a" / "out")
    assert traced[0].parent == tmp_path / "a"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]


def test_nothing_is_left_of_a_failed_trace(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(checkpoint: Path, out: Path) -> Trace:
        (out / "model.onnx_data").write_bytes(b"half")
        raise CheckpointError("no")

    monkeypatch.setattr(via_optimum, "run_trace", fail)
    with pytest.raises(CheckpointError):
        export_traced(source, tmp_path / "a" / "out")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_taken_place_is_refused_before_anything_is_traced(
    source: Path, traced: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("text")
    with pytest.raises(ModelFolderError, match="not empty"):
        export_traced(source, tmp_path / "out")
    assert traced == []


@pytest.mark.parametrize("force", [False, True])
def test_what_appeared_while_it_was_traced_is_not_replaced(
    force: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trace(checkpoint: Path, out: Path) -> Trace:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / MANIFEST).write_text("of another export, say")
        return write_trace(traced_model(GPT2), GPT2, out)

    monkeypatch.setattr(via_optimum, "run_trace", trace)
    with pytest.raises(ModelFolderError, match="not empty .*, which was not there when this began"):
        export_traced(source, tmp_path / "out", force=force)
    assert (tmp_path / "out" / MANIFEST).read_text() == "of another export, say"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_small_disk_is_refused_before_anything_is_traced(
    source: Path, traced: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlm.export.publishing.free_space", lambda out: 1000)
    with pytest.raises(StorageError, match="found 1.00 kB free, expected at least .* kB; free"):
        export_traced(source, tmp_path / "out")
    assert traced == []


def test_a_tokenizer_of_another_model_is_refused(traced: list[Path], tmp_path: Path) -> None:
    source = write_checkpoint(
        tmp_path / "source", gpt2_config() | BLOOM | {"vocab_size": VOCAB + 2}
    )
    with pytest.raises(CheckpointError, match="found 302 tokens, expected at most 300"):
        export_traced(source, tmp_path / "out")


# Checkpoints ------------------------------------------------------------------------------------


def test_torch_files_are_listed_but_not_opened(tmp_path: Path) -> None:
    folder = torch_checkpoint(tmp_path / "one", {"pytorch_model.bin": b"not a pickle"})
    checkpoint = open_for_tracing(folder)
    assert (checkpoint.format, checkpoint.tensors) == ("torch", {})
    assert checkpoint.source().files.keys() == {"pytorch_model.bin", "config.json"}


def test_shards_come_from_the_index(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    shards = {"pytorch_model-1.bin": b"12345", "pytorch_model-2.bin": b"123"}
    checkpoint = open_for_tracing(torch_checkpoint(tmp_path / "two", shards, index))
    names = [file.name for file in checkpoint.files]
    assert names == [*shards, "pytorch_model.bin.index.json", "config.json"]
    assert float32_bytes(checkpoint) == 8


def test_halves_take_twice_as_much_in_float32(tmp_path: Path) -> None:
    folder = torch_checkpoint(tmp_path / "half", {"pytorch_model.bin": b"1234"})
    (folder / "config.json").write_text(json.dumps(gpt2_config() | {"torch_dtype": "bfloat16"}))
    assert float32_bytes(open_for_tracing(folder)) == 8


def index_of(*names: str) -> Callable[[Path], Path]:
    weight_map = {f"tensor.{i}": name for i, name in enumerate(names)}
    return lambda path: torch_checkpoint(path, {}, {"weight_map": weight_map})


def with_config(**fields: Any) -> Callable[[Path], Path]:
    return lambda path: write_checkpoint(path, gpt2_config() | fields)


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "path in the index": (index_of("../secret.bin"), "found the file name '../secret.bin'"),
    "absolute path": (index_of("/etc/passwd"), "found the file name '/etc/passwd'"),
    "backslash": (index_of("a\\b.bin"), "expected a plain name"),
    "missing shard": (
        index_of("pytorch_model-1.bin"),
        "pytorch_model-1.bin: missing, expected the",
    ),
    "no weight map": (lambda path: torch_checkpoint(path, {}, {}), "found no weight_map"),
    "quantized": (with_config(quantization_config={"bits": 4}), "has a quantization_config"),
    "no tokenizer": (
        lambda path: write_checkpoint(path, gpt2_config(), tokenizer=False),
        "found no tokenizer, expected one beside the weights",
    ),
    "nothing": (lambda path: path, "does not exist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_refused_first(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    with pytest.raises(CheckpointError) as caught:
        open_for_tracing(make(tmp_path / "source"))
    assert message in str(caught.value)


def test_an_llmc_file_goes_the_other_way(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", gpt2_config())
    file = write_llmc(source / "gpt2.bin", gpt2_config(), gpt2_tensors(gpt2_config()))
    with pytest.raises(CheckpointError, match="found a checkpoint of llm.c.*leave out --via"):
        open_for_tracing(file)


# Command line -----------------------------------------------------------------------------------


def test_the_command_exports_quantizes_and_says_how(
    source: Path, traced: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run("export", source, out, "--via", "optimum", "--precision", "int8")
    lines = capsys.readouterr().err
    assert f"tracing {source} with Optimum, in a process of its own" in lines
    assert "traced by optimum 2.1.0, torch 2.13.0; attention rewritten, cache in place" in lines
    assert ModelFolder.open(out).manifest.precision.name == "int8"
    run("info", out)
    assert "traced by optimum 2.1.0" in capsys.readouterr().out
    run("run", out, "abc", "--max-tokens", "3", "--temperature", "0")


def test_the_rewriting_can_be_left_out(
    source: Path, traced: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run("export", source, out, "--via", "optimum", "--no-rewrite")
    assert ModelFolder.open(out).graph().cache.layout == GROWING
    assert "cache grows, attention not rewritten: asked to stay as traced" in (
        capsys.readouterr().err
    )
    run("quantize", out, tmp_path / "int4", "--to", "int4", "--quiet")
    assert ModelFolder.open(tmp_path / "int4").graph().cache.layout == GROWING
    run("run", tmp_path / "int4", "abc", "--max-tokens", "3")


def test_a_declared_graph_is_shown_as_one(
    tiny_folder: ModelFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_folder.graph().cache.layout == IN_PLACE
    run("info", tiny_folder.path)
    assert "declared by pocketlm, cache in place" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--no-rewrite"], "found --no-rewrite, expected it with --via optimum only"),
        (["--via", "optimum", "--dry-run"], "found --dry-run with --via, expected one of them"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(source), "out", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["architecture", "pickle"])
def test_nothing_goes_through_optimum_unasked(
    kind: str, source: Path, traced: list[Path], tmp_path: Path
) -> None:
    if kind == "pickle":
        source = torch_checkpoint(tmp_path / "torch", {"pytorch_model.bin": b"not a pickle"})
    with pytest.raises(CheckpointError, match="pocketlm export FOLDER OUT --via optimum"):
        pocketlm.load(source)
    assert traced == []
