"""The command line end to end: exit codes, what goes to which stream, and every way to be stopped.

Most cases call ``main`` in this process; those that need a signal, a pipe or a closed stream start
a child. Level: end to end, with the tiny random model.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from checkpoint_files import (
    gpt2_config,
    gpt2_tensors,
    llmc_header,
    raw_safetensors,
    safetensors_bytes,
    write_checkpoint,
    write_llmc,
    write_tokenizer,
)
from command_line import Ended, Run, assert_refused
from llama_checkpoints import llama_config, llama_tensors

import pocketlm
from pocketlm import cli
from pocketlm.commands.options import open_folders, unescape
from pocketlm.commands.run import command as RUN
from pocketlm.export.folder import MANIFEST, ModelFolder
from pocketlm.export.manifest import PrecisionEntry
from pocketlm.export.utf8 import utf8
from pocketlm.streams import printable

PLAIN = ["--calibrate", "none"]  # where that is not the point, and would take long
GREEDY = ["--temperature", "0", "--max-tokens", "6"]


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# What is printed, and where ----------------------------------------------------------------------


def test_no_verb_lists_the_verbs(run: Run) -> None:
    ended = run()
    assert ended.code == 0
    for verb in cli.VERBS:
        assert f"  {verb} " in ended.out


def test_version(run: Run) -> None:
    assert run("--version") == Ended(0, f"pocketlm {pocketlm.__version__}\n", "")


def test_run_prints_the_continuation_and_nothing_else(
    run: Run, tiny_folder: ModelFolder, tiny_model: pocketlm.Model
) -> None:
    expected = tiny_model.generate("the sea", temperature=0, max_tokens=6).text
    assert run("run", tiny_folder.path, "the sea", *GREEDY) == Ended(0, expected + "\n", "")


def test_stats_go_to_stderr(run: Run, tiny_folder: ModelFolder) -> None:
    plain = run("run", tiny_folder.path, "the sea", *GREEDY)
    ended = run("run", tiny_folder.path, "the sea", *GREEDY, "--stats")
    assert ended.out == plain.out
    for part in ("load ", "first token ", "prefill ", "decode ", "tokens/s", "MB", "by length"):
        assert part in ended.err


def test_a_form_is_read_from_a_file_or_the_line(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    pytest.importorskip("llguidance", reason="the extra 'grammar' is not installed")
    schema, lark = tmp_path / "schema.json", tmp_path / "two.lark"
    schema.write_text(json.dumps({"type": "array", "items": {"const": "é"}, "maxItems": 2}))
    lark.write_text('start: "é" start "b" | "c"')
    command = ("run", tiny_folder.path, "the sea", "--seed", "1")
    assert json.loads(run(*command, "--json-schema", schema).out) in ([], ["é"], ["é", "é"])
    assert re.fullmatch(r"[a-c]{2}x\n", run(*command, "--regex", "[a-c]{2}x").out)
    assert run(*command, "--choice", "yes,no", "--choice", "may be").out in (
        *("yes\n", "no\n", "may be\n"),
    )
    ended = run(*command, "--grammar", lark, "--stats", "--ban-token", "299")
    assert re.fullmatch(r"(é*)c(b*)\n", ended.out)
    ended = run(*command, "--choice", "yes,no", "--ban", "e")
    assert ended.out == "no\n"
    ended = run(*command, "--grammar", lark, "--stats")
    assert re.search(r"\(\d+ tokens\), constraint \d[\d.]* [µm]s a token, peak", ended.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regex", "("], "pocketlm: --regex was refused (invalid regex"),
        (["--regex", "a", "--choice", "b"], "pocketlm: found --regex and --choice, expected one"),
        (["--json-schema", "{folder}/none.json"], "'none.json' cannot be opened (No such file"),
        (["--grammar", "{folder}"], "is a folder, expected a regular file"),
        (["--grammar", "{folder}/bytes"], "bytes is not UTF-8 (byte 0), expected a schema or"),
        (["--json-schema", ""], "found an empty name, expected a path"),
        (["--ban-token", "300"], "token id 300 is in --ban-token, expected 0 to 299"),
    ],
)
def test_a_form_that_is_none_ends_in_one_line(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, arguments: list[str], message: str
) -> None:
    pytest.importorskip("llguidance", reason="the extra 'grammar' is not installed")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    ended = run("run", tiny_folder.path, "the sea", *filled)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err and "Traceback" not in ended.err


def test_a_limit_that_nobody_asked_for_is_told_on_stderr(
    run: Run, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", tiny_folder.path, "the sea", "--temperature", "0"]
    full = "stopped: the context of 160 tokens is full\n"
    assert run(*command).err == full
    assert run(*command, "--max-tokens", "999").err == full
    assert run(*command, "--max-tokens", "6").err == ""
    monkeypatch.setattr(
        next(option for option in RUN.params if option.name == "max_tokens"), "default", 6
    )
    ended = run(*command)
    assert ended.err == "stopped after 6 tokens, see --max-tokens\n"
    assert ended.out == run(*command, "--max-tokens", "6").out
    ended = run(*command, "--json")
    assert (json.loads(ended.out)["finish_reason"], ended.err) == ("length", "")


def test_json_is_one_object_in_ascii(
    run: Run, tiny_folder: ModelFolder, tiny_model: pocketlm.Model
) -> None:
    ended = run("run", tiny_folder.path, "é — the sea", *GREEDY, "--json")
    expected = tiny_model.generate("é — the sea", temperature=0, max_tokens=6)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.isascii() and ended.out.count("\n") == 1
    result = json.loads(ended.out)
    assert result["text"] == expected.text
    assert result["prompt"] == "é — the sea"
    assert result["token_ids"] == expected.token_ids
    assert result["finish_reason"] == "length"
    assert result["prompt_tokens"] == expected.timings.prompt_tokens
    assert result["model"]["precision"] == "fp32"
    assert result["peak_rss_bytes"] > 10_000_000
    assert result["timings"].keys() == {
        "load_seconds",
        "first_token_seconds",
        "prefill_seconds",
        "decode_seconds",
        "constraint_seconds",
        "guessed_tokens",
        "right_guesses",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    }
    for name in ("constraint_seconds", "guessed_tokens", "right_guesses"):
        assert result["timings"].pop(name) == 0
    assert all(value > 0 for value in result["timings"].values())


def test_the_cache_is_the_one_asked_for_and_told(run: Run, int8_kv_folder: ModelFolder) -> None:
    command = ["run", int8_kv_folder.path, "a word", *GREEDY]
    model = pocketlm.Model(int8_kv_folder, threads=1, kv="int8")
    ended = run(*command, "--kv", "int8", "--json")
    result = json.loads(ended.out)
    assert (result["kv"], result["token_ids"]) == (
        "int8",
        model.generate("a word", temperature=0, max_tokens=6).token_ids,
    )
    assert "KV cache in fp32" in run(*command, "--stats").err
    assert "512 B of KV cache each, 128 B with --kv int8" in run("info", int8_kv_folder.path).out


def test_the_weights_for_prompts_are_those_asked_for_and_told(
    run: Run, prefill_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", prefill_folder.path, "a word " * 30, *GREEDY]
    found = {}
    for asked in ("int8", "none"):
        result = json.loads(run(*command, "--prefill", asked, "--json").out)
        model = pocketlm.Model(prefill_folder, threads=1, prefill=asked)
        expected = model.generate("a word " * 30, temperature=0, max_tokens=6).token_ids
        assert (result["prefill"], result["token_ids"]) == (asked, expected)
        found[asked] = result
    assert found["int8"]["prompt_tokens"] >= 64
    assert "prompts with int8 weights, finished by" in run(*command, "--stats").err
    assert "prompts with" not in run(*command, "--stats", "--prefill", "none").err
    monkeypatch.setattr("pocketlm.runtime.prefill_choice.free_bytes", lambda: 1)
    ended = run(*command, "--json")
    note = json.loads(ended.out)["prefill_note"]
    assert ended.err == f"pocketlm: {note}\n"
    assert note.startswith("prompts are computed with the weights that decode: 1 B of memory free")


def test_prompt_from_stdin_loses_the_newline_of_echo(
    run: Run, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run("run", tiny_folder.path, "the sea", *GREEDY)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"the sea\n")))
    assert run("run", tiny_folder.path, "-", *GREEDY) == expected


def test_stdin_that_is_not_text_is_refused(
    run: Run, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"sea \xff")))
    assert_refused(run("run", tiny_folder.path, "-"), "found the byte 0xff at 4, expected UTF-8")


def test_one_argument_that_exists_is_the_model(
    run: Run, tiny_folder: ModelFolder, tiny_model: pocketlm.Model
) -> None:
    expected = tiny_model.generate("", temperature=0, max_tokens=6).text
    assert run("run", tiny_folder.path, *GREEDY).out == expected + "\n"


def test_same_seed_same_text(run: Run, tiny_folder: ModelFolder) -> None:
    texts = [
        run("run", tiny_folder.path, "the sea", "--seed", seed, "--max-tokens", "20").out
        for seed in ("7", "7", "8")
    ]
    assert texts[0] == texts[1] != texts[2]


def test_stop_may_be_repeated_and_is_not_printed(
    run: Run, tiny_folder: ModelFolder, tiny_model: pocketlm.Model
) -> None:
    text = tiny_model.generate("the sea", temperature=0, max_tokens=20).text
    stop = text[5:8]
    ended = run(
        *("run", tiny_folder.path, "the sea", "--temperature", "0", "--max-tokens", "20"),
        *("--stop", "never in it", "--stop", stop),
    )
    assert ended.out == text[: text.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (r"\n\n", "\n\n"),
        (r"a\tb", "a\tb"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        (r"\d", r"\d"),
        ("\\", "\\"),
        ("plain", "plain"),
    ],
)
def test_stop_escapes(given: str, meant: str) -> None:
    assert unescape(given) == meant


def test_control_characters_do_not_reach_a_terminal() -> None:
    hostile = "a\x1b[2J\x9b31m\r\x07\x7f\tb\né\U0001f600"
    assert printable(hostile) == "a\ufffd[2J\ufffd31m\ufffd\ufffd\ufffd\tb\né\U0001f600"


def test_export_and_quantize_give_the_same_folder(
    run: Run, tiny_checkpoint: Path, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    one = run("export", tiny_checkpoint, tmp_path / "one", "--precision", "int4", *PLAIN)
    two = run("quantize", tiny_folder.path, tmp_path / "two", "--to", "int4", *PLAIN)
    assert (one.code, one.out, two.code, two.out) == (0, "", 0, "")
    for part in ("to int4: read", "free to", "bits/weight", "% of the parameters quantized"):
        assert part in one.err and part in two.err
    assert listing(tmp_path / "one") == listing(tmp_path / "two")
    for name in listing(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_quiet_export_prints_nothing(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert run("export", tiny_checkpoint, tmp_path / "out", "--quiet") == Ended(0, "", "")
    assert ModelFolder.open(tmp_path / "out").manifest.precision == PrecisionEntry(name="fp32")


def test_brackets_and_colons_in_a_path_are_no_markup(
    run: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a[/b] [red]:smile:"
    assert run("export", tiny_checkpoint, out).err.endswith(f"wrote {out}\n")
    assert run("info", out).code == 0


def test_force_replaces_a_model_folder(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("export", tiny_checkpoint, out).code == 0
    assert run("export", tiny_checkpoint, out, "--force", "--precision", "int8").code == 0
    assert ModelFolder.open(out).manifest.precision.name == "int8"
    assert listing(tmp_path)[0] == "out" and len(list(tmp_path.iterdir())) == 1


def test_info_names_sizes_and_hashes(run: Run, tiny_folder: ModelFolder) -> None:
    ended = run("info", tiny_folder.path, "--verify")
    assert (ended.code, ended.err) == (0, "")
    for part in ("gpt2", "2 layers, width 32, 4 heads of 8", "160 tokens", "fp32", "safetensors"):
        assert part in ended.out
    for name, entry in tiny_folder.files.items():
        assert entry.sha256 in ended.out and name in ended.out
    printed = json.loads(run("info", tiny_folder.path, "--json").out)
    assert printed == json.loads((tiny_folder.path / MANIFEST).read_text())


def test_errors_name_options_where_python_has_arguments(
    run: Run, tiny_folder: ModelFolder, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    ended = run("run", tiny_folder.path, "x", "--top-k", "-1")
    assert_refused(ended, "^pocketlm: --top-k is -1, expected .* at least 0; .* or leave it out")
    options = ["--precision", "fp32", "--block-size", "32", "--head", "int4"]
    ended = run("export", tiny_checkpoint, tmp_path / "out", *options)
    assert_refused(ended, "^pocketlm: --block-size and --head are given, .* or leave them out")


def test_equal_reasons_are_one_row(run: Run, tmp_path: Path) -> None:
    config = gpt2_config(vocab_size=300, n_positions=64, n_embd=40, n_head=5)
    source = write_checkpoint(tmp_path / "gpt2", config)
    assert run("export", source, tmp_path / "out", "--precision", "int4", *PLAIN).code == 0
    lines = run("info", tmp_path / "out").out.splitlines()
    rows = [line for line in lines if "c_attn.weight" in line]
    assert len(rows) == 1
    assert re.match(
        r"h\.\*\.attn\.c_attn\.weight +int4-block16 \(40 input features take .*\) +7\.20 ", rows[0]
    )


def test_reports_in_a_pipe_are_never_cut(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    config = gpt2_config(vocab_size=300, n_positions=64, n_embd=40, n_head=5)
    source = write_checkpoint(tmp_path / "gpt2", config)
    assert run("export", source, tmp_path / "fp32").code == 0
    for ended in (
        run("export", source, tmp_path / "int4", "--precision", "int4", *PLAIN),
        run("quantize", tmp_path / "fp32", tmp_path / "quantized", "--to", "int4", *PLAIN),
        run("info", tmp_path / "int4"),
    ):
        lines = [line for line in (ended.out + ended.err).splitlines() if "c_attn.weight" in line]
        assert len(lines) == 1
        assert "(40 input features take 7.20 bits per weight in blocks of 16, 13.60 in" in lines[0]
        assert "…" not in ended.out + ended.err


def test_info_groups_tensors_over_layers(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    run("export", tiny_checkpoint, tmp_path / "out", "--precision", "int8")
    assert "h.*.attn.c_attn.weight" in run("info", tmp_path / "out").out


def test_info_verify_reads_every_byte_again(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    copy = _changed_folder(tiny_folder, tmp_path)
    assert run("info", copy).code == 0
    assert_refused(run("info", copy, "--verify"), "model.onnx_data: found SHA-256 .* expected")


# Bad input ---------------------------------------------------------------------------------------


def _checkpoint(folder: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> Path:
    return write_checkpoint(folder / "ckpt", gpt2_config(**(changes or {})), **options)


def _with_tensors(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    tensors: dict[str, Any] = dict(gpt2_tensors(gpt2_config()))
    change(tensors)
    return _checkpoint(folder, tensors=tensors)


def _with_weights(folder: Path, data: Callable[[bytes], bytes]) -> Path:
    path = _checkpoint(folder)
    file = path / "model.safetensors"
    file.write_bytes(data(file.read_bytes()))
    return path


def _with_header(folder: Path, header: str, data: bytes) -> Path:
    return _with_weights(folder, lambda _: raw_safetensors(header, data))


def _llmc(folder: Path, change: Callable[[bytes], bytes]) -> Path:
    config = gpt2_config()
    path = write_llmc(folder / "model.bin", config, gpt2_tensors(config))
    path.write_bytes(change(path.read_bytes()))
    return path


def _file(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def _other_tokenizer(folder: Path) -> Path:
    path = _checkpoint(folder)
    write_tokenizer(path, 120)
    return path


def _sharded(folder: Path, change: Callable[[Path, dict[str, str]], object]) -> Path:
    """A Llama in two shards; ``change`` gets the folder and the index's map, to be damaged."""
    config = llama_config()
    path = write_checkpoint(folder / "ckpt", config, llama_tensors(config), shards=2)
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(path, index["weight_map"])
    file.write_text(json.dumps(index))
    return path


def _shard(number: int) -> str:
    return f"model-0000{number}-of-00002.safetensors"


def _add_to_second_shard(path: Path, weight_map: dict[str, str]) -> None:
    tensors = llama_tensors(llama_config())
    second = [name for name, shard in weight_map.items() if shard == _shard(2)]
    both = {name: tensors[name] for name in ["model.embed_tokens.weight", *second]}
    (path / _shard(2)).write_bytes(safetensors_bytes(both))


def _llama(folder: Path, **fields: Any) -> Path:
    config = llama_config()
    return write_checkpoint(folder / "ckpt", config | fields, llama_tensors(config))


ENTRY = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
TWICE = f"{{{ENTRY},{ENTRY}}}"
OVERLAP = (
    '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    '"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
)
BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda p: p / "absent", "absent': found nothing at this path"),
    "a text file": (lambda p: _file(p, "notes.txt", "hello"), "notes.txt"),
    "an empty folder": (lambda p: _file(p, "x", "").parent, "config.json"),
    "a missing tensor": (
        lambda p: _with_tensors(p, lambda t: t.pop("transformer.h.1.ln_2.bias")),
        r"h\.1\.ln_2\.bias",
    ),
    "an extra tensor": (
        lambda p: _with_tensors(p, lambda t: t.update(stray=np.zeros(3, np.float32))),
        "stray",
    ),
    "a misshaped tensor": (
        lambda p: _with_tensors(
            p, lambda t: t.update({"transformer.ln_f.bias": np.zeros(31, np.float32)})
        ),
        r"ln_f\.bias.*\(31,\).*expected \(32,\)",
    ),
    "a truncated file": (lambda p: _with_weights(p, lambda data: data[:-5]), "model.safetensors"),
    "overlapping tensors": (lambda p: _with_header(p, OVERLAP, bytes(12)), "model.safetensors"),
    "duplicate JSON keys": (lambda p: _with_header(p, TWICE, bytes(4)), "'a'"),
    "a lying header size": (
        lambda p: _with_weights(p, lambda data: b"\xff" * 8 + data[8:]),
        "model.safetensors",
    ),
    "llm.c magic": (lambda p: _llmc(p, lambda data: bytes(4) + data[4:]), r"model\.bin"),
    "llm.c version": (
        lambda p: _llmc(p, lambda data: llmc_header(gpt2_config(), version=9) + data[1024:]),
        "version",
    ),
    "llm.c length": (lambda p: _llmc(p, lambda data: data + b"x"), r"model\.bin.*bytes"),
    "an unknown architecture": (lambda p: _checkpoint(p, {"model_type": "mamba"}), "mamba.*gpt2"),
    "an unknown activation": (
        lambda p: _checkpoint(p, {"activation_function": "swish"}),
        "activation_function.*swish",
    ),
    "a missing shard": (
        lambda p: _sharded(p, lambda path, _: (path / _shard(2)).unlink()),
        "names the shard 'model-00002-of-00002.safetensors', which is not in the folder",
    ),
    "a shard that lacks a tensor": (
        lambda p: _sharded(p, lambda _, m: m.update({"model.ghost": _shard(1)})),
        "tensor 'model.ghost' is not in the shard 'model-00001-of-00002.safetensors'",
    ),
    "a tensor in two shards": (
        lambda p: _sharded(p, _add_to_second_shard),
        "tensor 'model.embed_tokens.weight' is in the shards 'model-00001.* and 'model-00002",
    ),
    "an index that leaves the folder": (
        lambda p: _sharded(p, lambda _, m: m.update({"lm_head.weight": "../../secret"})),
        "puts tensor 'lm_head.weight' into '../../secret', expected the plain name of a file",
    ),
    "a rotation nobody here builds": (
        lambda p: _llama(p, rope_scaling={"rope_type": "spiral", "factor": 4.0}),
        "rope_scaling is of type 'spiral', expected one of",
    ),
    "a quantized checkpoint": (
        lambda p: _llama(p, quantization_config={"quant_method": "awq"}),
        "awq.*already quantized",
    ),
    "a mixture of experts": (
        lambda p: _llama(p, model_type="mixtral", num_local_experts=8),
        "model_type is 'mixtral', a mixture of experts",
    ),
    "no tokenizer": (lambda p: _checkpoint(p, tokenizer=False), "tokenizer"),
    "another model's tokenizer": (_other_tokenizer, "120.*97"),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoint_is_refused_by_name(run: Run, tmp_path: Path, case: str) -> None:
    make, message = BAD_CHECKPOINTS[case]
    path = make(tmp_path)
    before = listing(tmp_path)
    ended = run("export", path, tmp_path / "out")
    assert_refused(ended, message)
    assert "expected" in ended.err
    assert listing(tmp_path) == before


def _changed_folder(folder: ModelFolder, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(folder.path, tmp_path / "model"))
    with open(copy / "model.onnx_data", "r+b") as stream:
        stream.seek(5000)
        byte = stream.read(1)[0]
        stream.seek(5000)
        stream.write(bytes([byte ^ 1]))
    return copy


def _shortened_folder(folder: ModelFolder, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(folder.path, tmp_path / "model"))
    os.truncate(copy / "model.onnx_data", 5000)
    return copy


def _incomplete_folder(folder: ModelFolder, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(folder.path, tmp_path / "model"))
    (copy / "tokenizer.json").unlink()
    return copy


def _foreign_onnx(folder: ModelFolder, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(folder.path, tmp_path / "model"))
    (copy / MANIFEST).unlink()
    return copy


def _damaged_manifest(folder: ModelFolder, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(folder.path, tmp_path / "model"))
    (copy / MANIFEST).write_text("{" + (copy / MANIFEST).read_text())
    return copy


BAD_FOLDERS: list[tuple[Callable[[ModelFolder, Path], Path], str]] = [
    (_changed_folder, "model.onnx_data: found SHA-256 .* expected"),
    (_shortened_folder, "model.onnx_data: found 5000 bytes, expected"),
    (_incomplete_folder, "tokenizer.json: missing, expected"),
    (_damaged_manifest, "pocketlm.json"),
]


@pytest.mark.parametrize(("make", "message"), BAD_FOLDERS)
@pytest.mark.parametrize("verb", ["run", "quantize"])
def test_bad_model_folder_is_refused(
    run: Run,
    tiny_folder: ModelFolder,
    tmp_path: Path,
    make: Callable[[ModelFolder, Path], Path],
    message: str,
    verb: str,
) -> None:
    path = make(tiny_folder, tmp_path)
    before = listing(tmp_path)
    rest: list[str | Path] = ["x"] if verb == "run" else [tmp_path / "out", "--to", "int8"]
    assert_refused(run(verb, path, *rest), message)
    assert listing(tmp_path) == before


def test_foreign_onnx_file_is_refused(run: Run, tiny_folder: ModelFolder, tmp_path: Path) -> None:
    path = _foreign_onnx(tiny_folder, tmp_path)
    assert_refused(run("info", path), "found an ONNX file without pocketlm.json, expected")
    assert_refused(run("quantize", path, tmp_path / "out", "--to", "int8"), "ONNX file without")
    assert_refused(run("run", path, "x"), "expected")


def test_quantized_folder_is_not_quantized_again(
    run: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert run("export", tiny_checkpoint, tmp_path / "int8", "--precision", "int8").code == 0
    ended = run("quantize", tmp_path / "int8", tmp_path / "int4", "--to", "int4")
    assert_refused(ended, "int8.*expected.*fp32")
    assert not (tmp_path / "int4").exists()


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_folder_with_foreign_files_is_kept(
    run: Run, tiny_checkpoint: Path, tmp_path: Path, force: list[str]
) -> None:
    (tmp_path / "out").mkdir()
    _file(tmp_path / "out", "thesis.txt", "years of work")
    assert_refused(run("export", tiny_checkpoint, tmp_path / "out", *force), "found .* expected")
    assert listing(tmp_path) == ["out", "out/thesis.txt"]


def test_every_option_of_sampling_changes_the_text(run: Run, tiny_folder: ModelFolder) -> None:
    """Those that are not greedy's, too, each in its own way."""
    line = ["run", tiny_folder.path, "the sea", "--max-tokens", "24", "--seed", "3"]
    plain = run(*line).out
    for option, value in {
        "--typical-p": "0.2",
        "--frequency-penalty": "50",
        "--presence-penalty": "50",
        "--no-repeat-ngram": "1",
        "--logit-bias": "7=100",
    }.items():
        ended = run(*line, option, value)
        assert ended.code == 0 and ended.out != plain, option
    assert run(*line, "--penalty-window", "3", "--min-tokens", "2").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--temperature", "inf"], "temperature"),
        (["--top-p", "0"], "--top-p is"),
        (["--top-p", "1.5"], "--top-p is"),
        (["--top-p", "nan"], "--top-p is"),
        (["--top-k", "-1"], "--top-k is"),
        (["--min-p", "-0.1"], "--min-p is"),
        (["--repetition-penalty", "0"], "--repetition-penalty is"),
        (["--typical-p", "0"], "--typical-p is"),
        (["--frequency-penalty", "inf"], "--frequency-penalty is"),
        (["--presence-penalty", "101"], "--presence-penalty is"),
        (["--penalty-window", "0"], "--penalty-window is"),
        (["--no-repeat-ngram", "-1"], "--no-repeat-ngram is"),
        (["--logit-bias", "5"], "found --logit-bias 5, expected a token id and a number"),
        (["--logit-bias", "5=x"], "found --logit-bias 5=x, expected a token id and a number"),
        (["--logit-bias", "5=101"], "of token 5 is 101.0, expected a finite number in"),
        (["--logit-bias", "300=1"], "token id 300 is in --logit-bias, expected 0 to 299"),
        (["--min-tokens", "-1"], "--min-tokens is"),
        (["--seed", "-1"], "seed"),
        (["--max-tokens", "0"], "--max-tokens is"),
        (["--stop", ""], "stop"),
        (["--threads", "0"], "threads"),
        (["--threads", "4097"], "threads is 4097, expected an integer from 1 to"),
        (["--precision", "int8"], "found a model folder in fp32"),
    ],
)
def test_option_out_of_range_is_refused(
    run: Run, tiny_folder: ModelFolder, options: list[str], message: str
) -> None:
    ended = run("run", tiny_folder.path, "x", *options)
    assert_refused(ended, message)
    assert "expected" in ended.err


def test_prompt_longer_than_the_context_is_refused(run: Run, tiny_folder: ModelFolder) -> None:
    ended = run("run", tiny_folder.path, "qz" * 160)
    assert_refused(ended, "the prompt has .* tokens, expected at most 160")


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat"],
        ["run", "--nope"],
        ["run", "--max-tokens", "many"],
        ["run", "a", "b", "c"],
        ["export"],
        ["export", "a", "b", "--precision", "int3"],
        ["export", "a", "b", "--block-size", "48"],
        ["quantize", "a", "b"],
        ["quantize", "a", "b", "--to", "fp32"],
    ],
)
def test_wrong_usage_points_to_the_help(run: Run, arguments: list[str]) -> None:
    assert_refused(run(*arguments), "see: pocketlm .*--help")


EXPORT = ["export", "demo", "out"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([*EXPORT, "--json"], "found --json without --dry-run, expected both"),
        ([*EXPORT, "--dry-run", "--quiet"], "found --quiet with --dry-run, expected one of them"),
        ([*EXPORT, "--dry-run", "--keep-download"], "found --keep-download with --dry-run"),
        ([*EXPORT, "--keep-download"], "--keep-download is given for the demo model"),
        ([*EXPORT, "--revision", "v2"], "--revision is 'v2' for the demo model"),
        ([*EXPORT, "--no-rewrite"], "found --no-rewrite, expected it with --via optimum only"),
        (
            [*EXPORT, "--block-size", "32"],
            "--block-size is given, expected it not with fp32",
        ),
        ([*EXPORT, "--head", "int8"], "--head is given, expected it not with fp32"),
        (
            [*EXPORT, "--head", "int8", "--block-size", "32"],
            "--block-size and --head are given, expected neither with fp32",
        ),
        (["eval", "FOLDER", "--text", ""], "'--text': found an empty name, .* variable not set"),
        (["eval", "--text", "TEXT", ""], "'--text': found an empty name, .* variable not set"),
        (["eval", "FOLDER", "--tasks", ""], "'--tasks': found an empty name"),
        (["eval", "FOLDER", "--recite", ""], "'--recite': found an empty name"),
        (["bench", "FOLDER", "--text", ""], "'--text': found an empty name"),
        (["bench", "FOLDER", "--html", ""], "'--html': found an empty name"),
        (["eval", "FOLDER", "--text", "TEXT", "--split", ""], "--split is empty, .* not set"),
        (
            [*EXPORT, "--precision", "int8", "--head", "fp32", "--block-size", "32"],
            "--block-size is 32, expected none for int8 with an fp32 head, which has no blocks",
        ),
        (["run", "FOLDER", "x", "--tokenizer", "t"], "--tokenizer is 't' for a model folder"),
        (["run", "FOLDER", "x", "--revision", "v2"], "--revision is 'v2' for a model folder"),
        (["run", "FOLDER", "x", "--keep-download"], "--keep-download is given for a model folder"),
        (["run", "FOLDER", "x", "--precision", "int4"], "found a model folder in fp32, expected"),
        (["chat", "FOLDER", "--tokenizer", "t"], "--tokenizer is 't' for a model folder"),
        (["bench", "FOLDER", "FOLDER", "--tokenizer", "t"], "--tokenizer is 't' for a model"),
        (["bench", "FOLDER", "demo", "--keep-download"], "--keep-download is given for a model"),
        (
            ["eval", "FOLDER", "--text", "TEXT", "--keep-download"],
            "--keep-download is given for a model folder",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_would_do_nothing_is_refused(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, line: list[str], message: str
) -> None:
    (tmp_path / "text").write_text("the sea " * 100)
    places = {"FOLDER": tiny_folder.path, "TEXT": tmp_path / "text", "out": tmp_path / "out"}
    assert_refused(run(*[places.get(word, word) for word in line]), message)
    assert not (tmp_path / "out").exists()


def test_an_option_is_for_those_of_several_models_that_have_a_use_for_it(
    tiny_folder: ModelFolder, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A model folder beside a checkpoint whose tokenizer is elsewhere."""
    bare = tmp_path / "bare"
    shutil.copytree(tiny_checkpoint, bare)
    tokenizer = (bare / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    options = {"tokenizer": tokenizer, "precision": "fp32"}
    models = [str(tiny_folder.path), str(bare)]
    folder, made = open_folders(models, [options, options])
    assert folder.path == tiny_folder.path
    assert made.files["tokenizer.json"] == folder.files["tokenizer.json"]


def test_a_dry_run_says_what_the_export_would_say_of_its_place(
    run: Run, tiny_checkpoint: Path, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for dry in ([], ["--dry-run"]):
        line = ["export", tiny_checkpoint, tmp_path, *dry]
        assert_refused(run(*line), "found a folder that is not empty")
        assert_refused(run(*line, "--force"), "found files that pocketlm did not write")
    line = ["export", tiny_checkpoint, tiny_folder.path]
    assert run(*line, "--dry-run", "--force").code == 0


def test_line_breaks_and_escapes_in_a_message_are_shown_not_sent(run: Run) -> None:
    assert_refused(run("info", "a\nb\x1b[2J"), r"a\\nb\\x1b\[2J': found no path")


# Our own mistakes, missing parts, full disks -----------------------------------------------------


def _fail(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise error

    return fail


def test_bug_is_called_a_bug(
    run: Run, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlm.models.loading.load", _fail(ZeroDivisionError("oh")))
    ended = run("run", tiny_folder.path, "x")
    assert_refused(ended, "this is a bug in pocketlm: ZeroDivisionError: oh.*--debug", code=1)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", str(tiny_folder.path), "x", "--debug"])


def test_debug_shows_the_traceback_of_an_error() -> None:
    with pytest.raises(pocketlm.CheckpointError):
        cli.main(["info", "absent", "--debug"])
    with pytest.raises(pocketlm.CheckpointError):
        cli.main(["--debug", "info", "absent"])


@pytest.mark.parametrize("package", ["click", "rich"])
def test_missing_extra_names_the_install_command(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == package or name.startswith("pocketlm.commands."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    ended = run("export", tmp_path / "a", tmp_path / "b")
    assert_refused(ended, re.escape('pip install "pocketlm[cli]"'))


def test_full_disk_is_found_before_anything_is_written(
    run: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    ended = run("export", tiny_checkpoint, tmp_path / "out")
    assert_refused(ended, "found 1.00 kB free, expected at least 4.20 MB; free some space", code=4)
    assert listing(tmp_path) == []


def test_disk_full_half_way_leaves_nothing(
    run: Run, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr("pocketlm.export.writing.write_json", _fail(full))
    ended = run("export", tiny_checkpoint, tmp_path / "out", "--quiet")
    assert_refused(ended, "out: cannot write .No space left on device., expected", code=4)
    assert listing(tmp_path) == []


def test_unreadable_path_is_not_called_a_bug(
    run: Run, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "x/pocketlm.json")
    monkeypatch.setattr("pocketlm.models.loading.load", _fail(denied))
    ended = run("run", tiny_folder.path, "x")
    assert_refused(ended, "x/pocketlm.json: found 'Permission denied', expected")


# Child processes: signals, pipes, streams --------------------------------------------------------

# Runs the command line with one function replaced by a long wait, so that a signal meets exactly
# that phase. A shell's background job ignores SIGINT and hands that on, hence the handler.
WAITING = """
import pkgutil, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
def wait(*args, **kwargs):
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(60)
owner, name = sys.argv[1:3]
setattr(pkgutil.resolve_name(owner), name, wait)
from pocketlm.cli import main
main(sys.argv[3:])
"""


def start(*command: str | Path, **options: Any) -> subprocess.Popen[str]:
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, *map(str, command)], text=True, encoding="utf-8", **(streams | options)
    )


PHASES = {
    "parsing": ("pocketlm.cli", "_group", "run {model} x"),
    "stdin": ("pocketlm.commands.run", "_read_stdin", "run {model} -"),
    "load": ("pocketlm.runtime.placement", "Session", "run {model} x"),
    "generation": ("pocketlm.runtime.text:TextStream", "__next__", "run {model} x"),
    "export": ("rich.progress:Progress", "update", "export {checkpoint} {out}"),
    "last files": ("pocketlm.export.writing", "write_json", "export {checkpoint} {out}"),
    "quantize": ("rich.progress:Progress", "update", "quantize {model} {out} --to int8"),
    "export of run": ("pocketlm.export.writing", "write_json", "run {checkpoint} x"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_interrupt_is_quiet_and_leaves_nothing(
    tiny_checkpoint: Path, tiny_folder: ModelFolder, tmp_path: Path, phase: str
) -> None:
    owner, name, line = PHASES[phase]
    places = {"model": tiny_folder.path, "checkpoint": tiny_checkpoint, "out": tmp_path / "out"}
    arguments = [word.format(**places) for word in line.split()]
    environment = os.environ | {"POCKETLM_CACHE": str(tmp_path)}
    with start("-c", WAITING, owner, name, *arguments, env=environment) as child:
        assert child.stderr is not None
        for text in child.stderr:
            if text == "waiting\n":
                break
        if phase in ("export", "last files", "quantize"):
            assert any(path.name.startswith(".out.partial-") for path in tmp_path.iterdir())
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err.strip()) == (130, "", "")
    left = [name for name in listing(tmp_path) if name not in ("locks", "models", "verified")]
    assert left == []


def test_interrupt_that_an_import_turned_into_its_own_error_is_still_one(
    run: Run, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **kwargs: object) -> NoReturn:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error
        raise AssertionError("no handler was called")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr("pocketlm.models.loading.load", load)
        assert run("run", tiny_folder.path, "x") == Ended(130, "", "")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# A step of the prompt stands still until it is told to stop, as long as Ctrl-C does not.
IN_A_STEP = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pocketlm.runtime.bound_graph import BoundGraph
run = BoundGraph._run_bound
def wait(graph, stopping):
    print("waiting", file=sys.stderr, flush=True)
    while not stopping.cancelled:
        time.sleep(0.001)
    print("told to stop", file=sys.stderr, flush=True)
    run(graph, stopping)
BoundGraph._run_bound = wait
from pocketlm.cli import main
main(sys.argv[1:])
"""


def test_interrupt_ends_the_step_it_finds(tiny_folder: ModelFolder) -> None:
    with start("-c", IN_A_STEP, "run", tiny_folder.path, "the sea " * 10) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "waiting\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err.strip()) == (130, "", "told to stop")


def test_closed_pipe_ends_quietly(tiny_folder: ModelFolder) -> None:
    with start("-m", "pocketlm", "run", tiny_folder.path, "the sea", "--ignore-eos") as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert (child.wait(30), child.stderr.read()) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device")
def test_full_device_behind_stdout_is_an_error(tiny_folder: ModelFolder) -> None:
    with open("/dev/full", "w") as full:
        child = start("-m", "pocketlm", "info", tiny_folder.path, stdout=full)
        _, err = child.communicate(timeout=30)
    assert_refused(Ended(child.returncode, "", err), "standard output: found 'No space left", 4)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device")
def test_an_error_that_cannot_be_told_has_its_exit_code(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        child = start("-m", "pocketlm", "info", tmp_path / "absent", stderr=full)
        assert child.communicate(timeout=30)[0] == ""
    assert child.returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device")
def test_a_note_that_cannot_be_told_takes_nothing_from_the_text(tiny_folder: ModelFolder) -> None:
    """Neither those of a limit reached nor the figures of --stats, which come at the end."""
    with open("/dev/full", "w") as full:
        command = ("-m", "pocketlm", "run", tiny_folder.path, "the sea", "--ignore-eos", "--stats")
        child = start(*command, stderr=full)
        out, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    assert out


def test_closed_streams_are_empty_ones(tiny_folder: ModelFolder) -> None:
    script = '"$0" -m pocketlm run "$1" - --max-tokens 2 <&- >&- 2>&-'
    command = ["sh", "-c", script, sys.executable, str(tiny_folder.path)]
    assert subprocess.run(command, timeout=30).returncode == 0


def test_ascii_locale_gets_escapes(tiny_folder: ModelFolder, tiny_model: pocketlm.Model) -> None:
    for seed in range(100):
        text = tiny_model.generate("é", seed=seed, max_tokens=20, temperature=2).text
        if not text.isascii():
            break
    assert not text.isascii()
    options = ["--seed", str(seed), "--max-tokens", "20", "--temperature", "2", "--threads", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    child = start("-m", "pocketlm", "run", tiny_folder.path, "é", *options, env=environment)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")
    assert out == text.encode("ascii", "backslashreplace").decode() + "\n"


def test_the_locale_c_reads_accents_in_arguments_and_paths(
    tiny_folder: ModelFolder, tiny_model: pocketlm.Model, tmp_path: Path
) -> None:
    """Python hands them on as lone surrogates where it may not use UTF-8."""
    model = tmp_path / "modèle"
    model.symlink_to(tiny_folder.path)
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    options = ["--stop", "é", "--temperature", "0", "--max-tokens", "6", "--json"]
    child = start("-m", "pocketlm", "run", model, "é — the sea", *options, env=environment)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "")
    result = json.loads(out)
    assert result["prompt"] == "é — the sea"
    expected = tiny_model.generate("é — the sea", temperature=0, max_tokens=6, stop="é")
    assert result["token_ids"] == expected.token_ids


@pytest.mark.parametrize(
    ("given", "read"),
    [("é", "é"), ("a\udcc3\udca9", "aé"), ("a\udcff", "a\udcff"), ("\ud800", "\ud800")],
)
def test_bytes_that_the_locale_has_no_letters_for_are_utf_8(
    given: str, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    assert utf8(given) == read
