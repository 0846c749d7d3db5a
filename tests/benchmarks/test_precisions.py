"""The measuring of all precisions: variants, the scorecard's bars, and the README's tables."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_results import bench_results

from pocketlm.benchmarks import bench, precisions, real_weights
from pocketlm.benchmarks.exported_variants import VARIANTS, chosen_variants, level_of, variant
from pocketlm.benchmarks.precisions import (
    DEFAULT_INT4,
    export_variants,
    print_scorecard,
    to_keep,
)
from pocketlm.benchmarks.readme_tables import fill
from pocketlm.benchmarks.scorecard import SCORECARDS, TESTS, gpt2_124m, llama_1b
from pocketlm.benchmarks.shapes import SHAPES
from pocketlm.benchmarks.speed import measure as speed
from pocketlm.benchmarks.speed.measure import ColdStart, parse_test

SECONDS = {  # per token, of decoding
    "fp32": 0.04,
    "int8": 0.016,
    "int8-weight": 0.016,
    "int4 b128": 0.008,
    "int4 b128, int4 head": 0.005,
}


def results() -> dict[str, Any]:
    """What the bars look at: seconds per model and test, drifting alike for all."""
    speed = []
    for name, seconds in SECONDS.items():
        for test in TESTS:
            depth = 1.25 if test == "tg32 @ d512" else 1
            samples = [drift * depth * seconds for drift in (1, 2, 0.5)]
            speed.append(
                {
                    "model": name,
                    "test": test,
                    "samples": samples,
                    "outside_kernel": {"median": 0.05},
                }
            )
    return {
        "models": [{"name": name} for name in SECONDS],
        "speed": speed,
        "memory": {"run": 250e6, "weights": 80e6, "kv": 20e6, "export": 300e6},
        "import_seconds": 0.1,
    }


def test_bars_compare_what_they_name() -> None:
    found = {f"{line.what} {line.relation}": line.figure for line in gpt2_124m(results())}
    assert found["int4 b128 / fp32 at tg32 @ d128 ≥"] == pytest.approx(5.0)
    assert found["int4 b128, int4 head / fp32 at tg32 @ d128 ≥"] == pytest.approx(8.0)
    assert found["int8 / fp32 at tg32 @ d128 ≥"] == pytest.approx(2.5)
    assert found["int8 / fp32 at pp128 ≥"] == pytest.approx(2.5)
    assert found["int8: decode rate at 512 / at 32 ≥"] == pytest.approx(0.8)
    assert found["Python's share of an int4 step ≤"] == 0.05
    assert found["run int4: peak RSS above weights and KV, MB ≤"] == 150
    assert found["export int4: peak RSS, MB ≤"] == 300
    assert found["import pocketlm, s ≤"] == 0.1


def test_bars_of_llama_compare_int4_with_8_bits() -> None:
    found = {f"{line.what} {line.relation}": line.figure for line in llama_1b(results())}
    assert found["int4 b128 / int8-weight at tg32 @ d128 ≥"] == pytest.approx(2.0)
    assert found["int8 / int4 b128 at pp128 ≥"] == pytest.approx(0.5)
    assert found["run int4: peak RSS less 100 MB / (weights + KV) ≤"] == pytest.approx(1.5)


def test_a_bar_is_met_or_missed(capsys: pytest.CaptureFixture[str]) -> None:
    print_scorecard("llama-1b", results())
    assert capsys.readouterr().out.splitlines() == [
        "met     int4 b128 / int8-weight at tg32 @ d128: 2 (≥ 1.4)",
        "MISSED  int8 / int4 b128 at pp128: 0.5 (≥ 4)",
        "MISSED  run int4: peak RSS less 100 MB / (weights + KV): 1.5 (≤ 1.25)",
    ]
    print_scorecard("gpt2-1558m", results())
    print_scorecard(None, results())
    assert capsys.readouterr().out == ""


def test_scorecards_are_of_known_shapes_tests_and_variants() -> None:
    assert SCORECARDS.keys() <= SHAPES.keys()
    assert [parse_test(name).name for name in TESTS] == list(TESTS)
    assert SECONDS.keys() <= VARIANTS.keys()
    assert DEFAULT_INT4 in VARIANTS and next(iter(VARIANTS)) == "fp32"


def test_variants_are_exported_in_processes_that_tell_their_peak(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plain = [*VARIANTS["int4 b32"], "--calibrate", "none"]
    chosen = {"fp32": VARIANTS["fp32"], "int4 b32": plain}
    folders, peaks = export_variants(tiny_checkpoint, chosen, tmp_path)
    assert [folder.manifest.precision.name for folder in folders.values()] == ["fp32", "int4"]
    assert folders["int4 b32"].manifest.precision.block_size == 32
    assert all(10_000_000 < peak < 1 << 30 for peak in peaks.values())


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | str | None:
    """The exit code of the script with these arguments."""
    monkeypatch.setattr(sys, "argv", ["precisions", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        precisions.main()
    return ended.value.code


def test_an_export_that_fails_ends_the_measuring_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "made" / "cache"))
    assert call(monkeypatch, tmp_path / "missing") == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"precisions: '\S+/missing': found nothing at this path.*\n", said)
    assert not list((tmp_path / "made" / "cache").iterdir())


def test_a_cache_that_is_no_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "file"))
    assert call(monkeypatch, "gpt2/") == 2
    assert re.fullmatch(
        r"precisions: \S+/file: found 'File exists', expected a folder to write to; set POCKET.*\n",
        capsys.readouterr().err,
    )


def test_an_interrupt_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(precisions, "measure", interrupted)
    assert call(monkeypatch, "gpt2/") == 130
    assert capsys.readouterr().err == ""


def test_the_script_measures_a_checkpoint_and_keeps_what_it_found(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = tmp_path / "results.json"
    monkeypatch.setattr(precisions, "import_seconds", lambda: 0.1)
    monkeypatch.setattr(bench, "read_bandwidth", lambda threads: 1e9)
    monkeypatch.setattr(speed, "cold_start", lambda *arguments: ColdStart(0.1, 0.2))
    arguments = [tiny_checkpoint, "--rounds", "1", "--threads", "1", "--json", kept]
    arguments += ["--variant", "int4 b128=--precision int4 --calibrate none"]
    monkeypatch.setattr(sys, "argv", ["precisions", *map(str, arguments)])
    precisions.main()
    found = json.loads(kept.read_text())
    assert [model["name"] for model in found["models"]] == ["fp32", "int4 b128"]
    assert [row["test"] for row in found["speed"]] == ["pp160"] * 2 + ["tg128"] * 2
    assert found["memory"]["run"] is None  # 128 + 64 tokens do not fit the context of 160
    assert found["memory"]["exports"].keys() == {"fp32", "int4 b128"}
    assert "| tg128 | int4 b128 |" in capsys.readouterr().out


def test_several_checkpoints_have_a_table_of_quality_each(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.txt").write_text(" ".join(f"word {i}" for i in range(40)))
    arguments = [tiny_checkpoint, "smollm2", "--text", tmp_path / "text.txt", "--rounds", "0"]
    arguments += ["--variant", "eight=--precision int8", "--limit", "100", "--window", "32"]
    arguments += ["--json", tmp_path / "kept.json"]
    monkeypatch.setattr(real_weights, "real_checkpoint", lambda: tiny_checkpoint)
    monkeypatch.setattr(sys, "argv", ["precisions", *map(str, arguments)])
    precisions.main()
    found = json.loads((tmp_path / "kept.json").read_text())
    assert [one["checkpoint"] for one in found] == [str(tiny_checkpoint), "smollm2"]
    for one in found:
        assert [model["name"] for model in one["models"]] == ["fp32", "eight"]
        full, eight = (model["weight_bytes_per_token"] for model in one["models"])
        assert 2 < full / eight < 4
        assert one["quality"]["window"] == 32 and one["quality"]["limit"] == 100
        against = one["quality"]["models"][1]["against"]
        assert 0 < against["kl"]["mean"]["value"] < against["kl"]["p99"]["value"]
    assert found[0]["quality"]["models"] == found[1]["quality"]["models"]
    said = capsys.readouterr().out
    assert "## smollm2" in said and said.count("| precision | MB | MB/token | KL, ") == 2


def test_a_variant_is_a_name_or_any_options_of_an_export() -> None:
    assert variant("int4 b32") == ("int4 b32", VARIANTS["int4 b32"])
    found = variant("mine=--precision int4 --plan 'my plan.json'")
    assert found == ("mine", ["--precision", "int4", "--plan", "my plan.json"])
    assert level_of(found[1]) == "int4" and level_of(["--max-bytes", "9"]) == "int4"
    assert level_of(VARIANTS["int8-weight"]) == "int8"
    assert list(chosen_variants([found])) == ["fp32", "mine"]
    assert chosen_variants(None) == VARIANTS
    for text, message in (("int3", "expected NAME=OPTIONS of"), ("a='", "No closing quotation")):
        with pytest.raises(argparse.ArgumentTypeError, match=message):
            variant(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["gpt2/", "--rounds", "0"], "found --rounds 0 without --text, which leaves nothing"),
        (["--shape", "gpt2-124m", "--limit", "9"], "found --limit without --text, .* leave it out"),
        (["--shape", "gpt2-124m", "--split", "|"], "found --split without --text"),
        (
            ["--shape", "gpt2-124m", "--tokenizer", "gpt2/"],
            "--tokenizer and --shape, which has its",
        ),
        (["gpt2/", "--rounds", "-1"], "found -1, expected at least 0"),
        (["gpt2/", "--threads", "0"], "threads is 0, expected an integer from 1 to"),
        (["gpt2/", "--json", ""], "argument --json: found an empty name"),
        (["gpt2/", "--text", ""], "argument --text: found an empty name, is a variable not set?"),
        (["gpt2/", "--text", __file__, "--split", ""], "precisions: split is empty, expected what"),
        (
            ["gpt2/", "--text", __file__, "--split", "\udcc3\udca9"],
            "split is '.', expected what",
        ),
        (["gpt2/", "--text", "no.txt"], r"^precisions: no.txt: cannot be read .*permissions\n$"),
    ],
)
def test_options_that_do_nothing_and_bad_texts_end_it_before_any_export(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["precisions", *options])
    monkeypatch.setattr(precisions, "measure", lambda *arguments: pytest.fail("it was begun"))
    with pytest.raises(SystemExit) as ended:
        precisions.main()
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_results_that_are_kept_hold_neither_quotes_nor_paths() -> None:
    full = bench_results()
    kept = to_keep(full)
    assert any(model["examples"] for model in full["quality"]["models"])
    assert not any(model["examples"] for model in kept["quality"]["models"])
    assert {model["path"] for model in kept["models"]} == {None}
    assert to_keep(bench_results(quality=False))["speed"] == full["speed"]


def test_the_script_wants_a_checkpoint_or_a_shape() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pocketlm.benchmarks.precisions"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "one of the arguments checkpoint --shape is required" in done.stderr


# The README's tables -----------------------------------------------------------------------------

DOCUMENT = "above\n<!-- begin {0} -->\nold\n<!-- end {0} -->\nbelow\n"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with the results of the measurement ``demo``."""
    found = bench_results()
    found |= {"failed": [], "interrupted": None}
    found["quality"]["start_token"] = "<s>"
    (tmp_path / "demo.json").write_text(json.dumps(found))
    return tmp_path


def test_a_speed_table_has_a_line_per_model(kept: Path) -> None:
    text = fill(DOCUMENT.format("speed-demo"), kept)
    lines = text.splitlines()
    assert (lines[0], lines[-1]) == ("above", "below")
    assert lines[2].startswith("| precision | MB | bits/weight | load s | first token s | peak ")
    assert lines[4].endswith("| 5210 | 196 | 1 | 28 % |")
    assert lines[6].endswith("| 4168 | 903 | 4.60 (4.54 to 4.68) | 23 % |")
    assert "medians of 5 interleaved rounds" in lines[8]
    assert fill(text, kept) == text


def test_a_quality_table_has_errors_and_says_of_which_text(kept: Path) -> None:
    lines = fill(DOCUMENT.format("quality-demo"), kept).splitlines()
    assert lines[4].startswith("| fp32 | 30.3 | 0 | 0 | 100 % | 30.3")
    assert lines[6].startswith("| int4 | 5.43 | 41.30 ± 0.46 | ")
    assert "held-out.txt: 98,304 tokens" in lines[8] and "window 512, stride 256" in lines[8]


def test_a_busy_machine_is_said_in_the_readme_too(kept: Path) -> None:
    found = json.loads((kept / "demo.json").read_text())
    found["circumstances"]["busy"] = "the machine was busy"
    (kept / "demo.json").write_text(json.dumps(found))
    assert "\n**the machine was busy**\n" in fill(DOCUMENT.format("speed-demo"), kept)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (DOCUMENT.format("size-demo"), "found the table size-demo, expected one of speed, quality"),
        ("<!-- begin speed-demo -->\n", "found a begin without its end"),
        ("<!-- begin speed-demo -->\n<!-- end speed-other -->\n", "found a begin without its end"),
    ],
)
def test_markers_that_are_wrong_are_refused(kept: Path, document: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        fill(document, kept)
