"""``pocketlm bench``: what it prints, what it refuses before any work, how Ctrl-C ends it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from bench_results import bench_results
from checkpoint_files import gpt2_config, write_checkpoint
from command_line import Ended, Run, assert_refused
from rich.console import Console

from pocketlm.benchmarks import bench
from pocketlm.benchmarks.session_variant import Variant
from pocketlm.benchmarks.speed import measure as speed
from pocketlm.benchmarks.speed.measure import ColdStart
from pocketlm.benchmarks.speed.remote import Remote
from pocketlm.benchmarks.speed.roofline import weight_bytes_per_token
from pocketlm.benchmarks.tables import model_table, speed_table
from pocketlm.commands.measuring import GAP, choose_variants, drawn, unique_names
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.threads import most_threads
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

QUICK = ["-p", "16", "-n", "4", "-t", "1", "-r", "1"]


@pytest.fixture
def run(run: Run) -> Run:
    """Calls ``pocketlm bench`` in this process."""
    return partial(run, "bench")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not measured, and no processes are started for the first token."""
    monkeypatch.setattr(bench, "read_bandwidth", lambda threads: 1e9)
    monkeypatch.setattr(speed, "cold_start", lambda *arguments: ColdStart(0.1, 0.2))


@pytest.fixture
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs here."""
    monkeypatch.setattr(bench, "busy_sentence", lambda others, load: None)


@pytest.fixture(scope="module")
def int4(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    out = tmp_path_factory.mktemp("command") / "out-int4"
    return export_model(open_checkpoint(tiny_checkpoint), out, precision_of("int4"))


# What it prints ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("idle_machine")
def test_tables_and_verdict_go_to_stdout_and_nothing_to_stderr(
    run: Run, tiny_folder: ModelFolder, int4: ModelFolder
) -> None:
    ended = run(tiny_folder.path, int4.path, *QUICK)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].split() == "model MB bits/weight load s first token s peak RSS MB".split()
    assert [line.split()[:2] for line in lines if line.startswith(("pp", "tg"))] == [
        ["pp16", "fp32"],
        ["pp16", "out-int4"],
        ["tg4", "fp32"],
        ["tg4", "out-int4"],
    ]
    assert re.search(r"^out-int4 is .* fp32 at tg4, .*× smaller$", ended.out, re.MULTILINE)
    assert "one round, so no intervals" in lines[-2]


def test_a_busy_machine_is_said_above_and_below_everything(
    run: Run, int4: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "busy_sentence", lambda others, load: "the machine was busy: 1.02")
    lines = run(int4.path, *QUICK).out.splitlines()
    assert lines[0] == lines[-1] == "WARNING: the machine was busy: 1.02"
    ended = run(int4.path, *QUICK, "-o", "json")
    assert json.loads(ended.out)["circumstances"]["busy"] == "the machine was busy: 1.02"
    assert ended.err == "WARNING: the machine was busy: 1.02\n"


@pytest.mark.usefixtures("idle_machine")
@pytest.mark.parametrize("output", ["json", "jsonl", "csv", "md"])
def test_every_form_holds_the_tests_that_were_asked_for(
    run: Run, int4: ModelFolder, output: str
) -> None:
    lists = ["-p", "8,16", "-n", "0", "-pg", "8,2", "-d", "0,5", "-b", "4", "-t", "1", "-r", "1"]
    ended = run(int4.path, *lists, "--output", output)
    assert (ended.code, ended.err) == (0, "")
    read: dict[str, Callable[[str], list[str]]] = {
        "json": lambda text: [row["test"] for row in json.loads(text)["speed"]],
        "jsonl": lambda text: [json.loads(line)["test"] for line in text.splitlines()],
        "csv": lambda text: [row["test"] for row in csv.DictReader(io.StringIO(text))],
        "md": lambda text: re.findall(r"^\| (pp\S+(?: @ d5)?) \| out-int4 \|", text, re.MULTILINE),
    }
    assert read[output](ended.out) == [
        "pp8",
        "pp16",
        "pp8+tg2",
        "pp8 @ d5",
        "pp16 @ d5",
        "pp8+tg2 @ d5",
    ]


@pytest.mark.usefixtures("idle_machine")
def test_every_graph_asked_for_has_rows_that_name_it(run: Run, prefill_folder: ModelFolder) -> None:
    asked = ["--kv", "fp32,int8", "--prefill", "int8"]
    ended = run(prefill_folder.path, *QUICK, *asked, "-p", "70", "-o", "jsonl")
    assert (ended.code, ended.err) == (0, "")
    rows = [json.loads(line) for line in ended.out.splitlines()]
    exactly, smaller = "int4, int8 prefill", "int4, int8 KV, int8 prefill"
    assert [tuple(row[name] for name in ("test", "model", "kv", "prefill")) for row in rows] == [
        (test, name, kv, "int8")
        for test in ("pp16", "pp70", "tg4")
        for name, kv in ((exactly, "fp32"), (smaller, "int8"))
    ]
    weights = weight_bytes_per_token(prefill_folder)
    exact, small = (row["bytes_per_token"] - weights for row in rows[4:])
    assert exact == 4 * small > 0


def test_what_is_asked_for_is_measured_once(
    prefill_folder: ModelFolder, tiny_folder: ModelFolder
) -> None:
    """In every combination that a model has; the reference is left as it is."""
    folders = {"ref": prefill_folder, "int4": prefill_folder, "fp32": tiny_folder}
    lists = ["auto", "fp32"], ["none", "auto", "int8"]
    found, variants = choose_variants({"int4": prefill_folder}, *lists)
    assert variants == {
        "int4": Variant(),
        "int4, int8 prefill": Variant(prefill="int8"),
    }
    found, variants = choose_variants(folders, ["fp32"], ["auto"], but="ref")
    assert list(found) == list(variants) == ["ref", "int4, int8 prefill", "fp32"]
    assert list(found.values()) == list(folders.values())


@pytest.mark.usefixtures("idle_machine")
def test_a_cache_that_a_model_has_no_graph_for_is_refused_before_any_work(
    run: Run, tiny_folder: ModelFolder
) -> None:
    assert_refused(run(tiny_folder.path, *QUICK, "--kv", "int8"), "found no graph with an int8 KV")
    second = run(tiny_folder.path, *QUICK, "--prefill", "none,int8")
    assert_refused(second, "found no second set of weights")
    other = run(tiny_folder.path, *QUICK, "--prefill", "int4")
    assert (other.code, "found 'int4', expected auto, int8, none" in other.err) == (2, True)


@pytest.mark.usefixtures("idle_machine")
def test_texts_are_compared_and_a_report_is_written(
    run: Run, tiny_folder: ModelFolder, int4: ModelFolder, tmp_path: Path
) -> None:
    text, page = tmp_path / "held-out.txt", tmp_path / "report.html"
    text.write_text("The rest of the story is told in the other room.\n" * 6)
    arguments = ["--text", text, "--window", "32", "--html", page]
    ended = run(tiny_folder.path, int4.path, *QUICK, *arguments)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("self-check: KL(fp32 ‖ fp32) = 0 over 31 tokens")
    assert "held-out.txt: " in ended.out and "window 32, stride 16" in ended.out
    assert re.search(r"; it (dis)?agrees with fp32 on ", ended.out)
    assert "out-int4" in page.read_text("utf-8")


@pytest.mark.usefixtures("idle_machine")
def test_a_terminal_shows_what_is_under_way(
    run: Run, int4: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if stderr were one
    ended = run(int4.path, *QUICK, "-o", "csv")
    assert ended.code == 0
    for what in ("reading memory", "out-int4, pp16, warm-up", "out-int4, first token, round 1"):
        assert what in ended.err
    assert "\x1b" not in ended.out


@pytest.mark.parametrize("width", [24, 40, 60, 80, 120])
def test_tables_fit_the_terminal(width: int) -> None:
    console = Console(width=width, file=io.StringIO())
    for table in (model_table(bench_results()), speed_table(bench_results())):
        with console.capture() as capture:
            console.print(drawn(table, width))
        lines = [line.rstrip() for line in capture.get().splitlines()]
        fitting = table.fitting(width, GAP)
        if fitting.width(GAP) <= width:  # even the least may not
            assert len(lines) == 1 + len(table.rows)  # no cell is broken
        assert max(map(len, lines)) <= width
        assert lines[0].split()[0] == table.columns[0]


# Names -------------------------------------------------------------------------------------------


def test_names_are_those_of_the_folders_and_unique(
    tiny_folder: ModelFolder, int4: ModelFolder
) -> None:
    fp32 = str(tiny_folder.path)
    assert unique_names([fp32, f"{int4.path}/"], [tiny_folder, int4]) == ["fp32", "out-int4"]
    above = tiny_folder.path.parent.name
    assert unique_names([fp32, fp32], [tiny_folder] * 2) == [f"{above}/fp32", f"{above}/fp32 (2)"]


def test_a_model_that_was_exported_on_the_way_has_its_precision_in_its_name(
    tiny_folder: ModelFolder, int4: ModelFolder, tiny_checkpoint: Path
) -> None:
    asked = [None, "org/some-model@v1", str(tiny_checkpoint)]
    folders = [tiny_folder, int4, int4]
    assert unique_names(asked, folders) == ["demo-fp32", "some-model-int4", "gpt2-int4"]


# What it refuses ---------------------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a worker fails the test."""

    def start(*arguments: object) -> NoReturn:
        pytest.fail("a model was started")

    monkeypatch.setattr(speed, "Remote", start)


WRONG = {
    "letters": (["-p", "x"], "'-p' / '--n-prompt': found 'x', expected whole numbers from 0 to"),
    "an empty number": (["-n", "1,,2"], "'-n' / '--n-gen': found '1,,2', expected whole numbers"),
    "a negative number": (["-d", "-5"], "'-d' / '--n-depth': found '-5', expected whole numbers"),
    "digits of another script": (["-p", "٣"], "expected whole numbers from 0 to 1,000,000,000"),
    "odd batches": (["-b", "7"], "'--batch-size': found '7', expected even numbers from 2 to"),
    "no threads": (["-t", "0"], f"found '0', expected whole numbers from 1 to {most_threads():,}"),
    "too many threads": (["-t", "9999"], "'--threads': found '9999', expected whole numbers from"),
    "half a pair": (["-pg", "5"], "'-pg': found '5', expected two numbers, as in 512,128"),
    "a pair of nothing": (["-pg", "5,0"], "'-pg': found '5,0', expected whole numbers from 1 to"),
    "no round": (["-r", "0"], "'--repetitions': 0 is not in the range"),
    "an unknown form": (["-o", "xml"], "'xml' is not one of 'table', 'md', 'csv', 'json', 'jsonl'"),
    "a long prompt": (["-p", "161"], "the test pp161 of 161 tokens, expected at most 160"),
    "a long generation": (["-n", "161"], "the test tg161 of 161 tokens, expected at most 160"),
    "a depth without room": (["-d", "160"], "the depth 160, expected fewer tokens than the cont"),
    "no test": (["-p", "0", "-n", "0"], "found no test, expected a prompt or a generation"),
    "a window of no text": (["--window", "9"], "found --window without --text, expected both; add"),
    "a separator of no text": (
        ["--split", "|"],
        "found --split without --text, expected both; add",
    ),
    "a batch of no prompt": (["-p", "0", "-b", "16"], "found --batch-size and no test with a prom"),
    "no such text": (["--text", "{tmp}/missing"], "missing: cannot be read .*expected a text file"),
    "an empty text": (["--text", "{tmp}/empty.txt"], "empty.txt: found an empty file, expected"),
    "a text not in UTF-8": (["--text", "{tmp}/latin1.txt"], "latin1.txt: .*expected UTF-8"),
    "a separator that is not there": (
        ["--text", "{tmp}/short.txt", "--split", "|"],
        r"split is '\|', expected what stands between the documents of a text: found it nowhere in",
    ),
    "a report that is a folder": (["--html", "{tmp}"], "found a folder, expected a file; add a n"),
    "a report in no folder": (["--html", "{tmp}/no/r.html"], "found nothing at .*no, expected a"),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_one_line_before_any_work(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, what: str
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin1.txt").write_bytes("für".encode("latin-1"))
    (tmp_path / "short.txt").write_text("short")
    arguments, message = WRONG[what]
    ended = run(tiny_folder.path, *(word.replace("{tmp}", str(tmp_path)) for word in arguments))
    assert_refused(ended, message)


@pytest.mark.usefixtures("no_work")
def test_a_model_that_is_none_is_refused(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    assert_refused(run(tiny_folder.path, tmp_path / "missing.bin", *QUICK), "missing.bin")


@pytest.mark.usefixtures("no_work")
def test_a_model_that_was_changed_is_refused(run: Run, int4: ModelFolder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", int4.path, copy], check=True)
    data = bytearray((copy / "model.onnx_data").read_bytes())
    data[0] ^= 1
    (copy / "model.onnx_data").write_bytes(data)
    assert_refused(run(copy, *QUICK), "the file was changed")


@pytest.mark.usefixtures("no_work")
def test_models_with_other_tokenizers_are_refused_only_where_they_are_compared(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "gpt2", gpt2_config(vocab_size=301, n_positions=160))
    other = export_model(open_checkpoint(source), tmp_path / "other")
    text = tmp_path / "text.txt"
    text.write_text("The rest of the story is told in the other room.\n" * 20)
    ended = run(tiny_folder.path, other.path, *QUICK, "--text", text)
    assert_refused(ended, "other.*tokenizer|tokenizer.*other")
    monkeypatch.setattr(speed, "Remote", Remote)
    assert run(tiny_folder.path, other.path, *QUICK, "-o", "csv").code == 0


@pytest.mark.usefixtures("idle_machine")
def test_a_model_that_dies_is_one_line_and_the_others_are_shown(
    run: Run, tiny_folder: ModelFolder, int4: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Doomed(Remote):
        def __init__(self, name: str, folder: Path, threads: int, variant: Variant) -> None:
            super().__init__(name, folder, threads, variant)
            if name == "fp32":
                os.kill(self._process.pid, signal.SIGKILL)

    monkeypatch.setattr(speed, "Remote", Doomed)
    ended = run(tiny_folder.path, int4.path, *QUICK)
    assert ended.code == 4
    assert re.fullmatch(r"pocketlm: fp32: found its process killed by signal 9.*\n", ended.err)
    assert "WARNING: not measured: fp32: found its process killed" in ended.out
    assert re.search(r"^tg4 +out-int4", ended.out, re.MULTILINE)
    alone = run(tiny_folder.path, *QUICK)
    assert_refused(alone, "fp32: found its process killed by signal 9", code=4)


# Ctrl-C ------------------------------------------------------------------------------------------

# Tells the processes it starts and the rounds that are complete, and where to wait for Ctrl-C.
TELLING = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pocketlm.benchmarks import bench
from pocketlm.benchmarks.speed import measure as speed
from pocketlm.benchmarks.speed.remote import Remote

def tell(*words):
    print(*words, file=sys.stderr, flush=True)

class Told(Remote):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        tell("pid", self._process.pid)

add = speed.Recording.add
def add_and_tell(self, *arguments):
    add(self, *arguments)
    tell("round", self.rounds)

speed.Remote = Told
speed.Recording.add = add_and_tell
speed.cold_start = lambda *arguments: speed.ColdStart(0.1, 0.2)
bench.read_bandwidth = lambda threads: 1e9
from pocketlm.cli import main
main(sys.argv[1:])
"""


def started(words: list[str]) -> subprocess.Popen[str]:
    """A bench in a session of its own, as on a terminal of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", TELLING, "bench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def workers_until(child: subprocess.Popen[str], when: str) -> list[int]:
    """Handles of the processes it starts until it tells ``when``."""
    assert child.stderr is not None
    handles = []
    for line in child.stderr:
        if line.startswith("pid "):
            handles.append(os.pidfd_open(int(line.split()[1])))
        if line.startswith(when):
            return handles
    raise AssertionError(f"it ended before {when!r}")


def assert_ended(handles: list[int]) -> None:
    """A handle is readable when its process has ended, whoever waits for it."""
    for handle in handles:
        assert select.select([handle], [], [], 30)[0] == [handle]
        os.close(handle)


def interrupted(words: list[str], when: str) -> tuple[Ended, list[int]]:
    """A bench that gets Ctrl-C as a terminal sends it, to the whole group, and its workers."""
    with started(words) as child:
        workers = workers_until(child, when)
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=60)
    return Ended(child.returncode, out, err), workers


needs_handles = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="needs handles of processes, which Linux has"
)


@needs_handles
@pytest.mark.parametrize("output", ["table", "json"])
def test_ctrl_c_prints_the_rounds_that_are_complete_and_leaves_no_worker(
    tiny_folder: ModelFolder, int4: ModelFolder, output: str
) -> None:
    words = [str(tiny_folder.path), str(int4.path), *QUICK[:-1], "10000", "-o", output]
    ended, workers = interrupted(words, "round 2")
    assert ended.code == 130
    found = re.search(r"WARNING: interrupted after (\d+) of 10000 rounds", ended.out + ended.err)
    assert found
    if output == "json":
        results: dict[str, Any] = json.loads(ended.out)
        rounds = results["interrupted"]["rounds"]
        assert rounds == int(found[1]) >= 2
        assert {len(row["samples"]) for row in results["speed"]} == {rounds}
    else:
        assert re.search(r"^tg4 +out-int4", ended.out, re.MULTILINE)
        assert "bug" not in ended.err
    assert len(workers) == 2
    assert_ended(workers)


@needs_handles
def test_ctrl_c_before_a_round_is_complete_says_so(tiny_folder: ModelFolder) -> None:
    words = [str(tiny_folder.path), "-p", "160", "-n", "160", "-r", "2", "-t", "1"]
    ended, workers = interrupted(words, "pid")
    assert (ended.code, ended.out) == (130, "")
    assert "interrupted before a round was complete: nothing to show" in ended.err
    assert_ended(workers)


@needs_handles
def test_workers_end_when_their_parent_is_killed(tiny_folder: ModelFolder) -> None:
    with started([str(tiny_folder.path), *QUICK[:-1], "10000"]) as child:
        workers = workers_until(child, "pid")
        child.kill()
    assert_ended(workers)
