"""The comparison with other runtimes: rounds, reasons, environments, and what adapters compute.

The peers here are adapters that the test writes, run by our own interpreter: the real ones need the
package index and gigabytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pocketlm.benchmarks.exported_variants import LEVELS, run_options
from pocketlm.benchmarks.intervals import estimate
from pocketlm.benchmarks.machine import OthersUse
from pocketlm.benchmarks.peers import __main__ as command
from pocketlm.benchmarks.peers import (
    comparison,
    conversions,
    environments,
    importance,
    measure,
    ours,
)
from pocketlm.benchmarks.peers.command_start import command_start
from pocketlm.benchmarks.peers.comparison import Comparison, Settings
from pocketlm.benchmarks.peers.conversions import (
    REQUIREMENTS,
    Contender,
    Peer,
    convert,
    known_peers,
    our_peer,
)
from pocketlm.benchmarks.peers.environments import (
    STAMP,
    PeerError,
    environment,
    install_steps,
    pinned,
    run_logged,
)
from pocketlm.benchmarks.peers.measure import (
    CHECKED_TOKENS,
    NARROW,
    PROMPTS,
    Entry,
    Options,
    fits,
    measure_level,
)
from pocketlm.benchmarks.peers.process import PeerProcess
from pocketlm.benchmarks.peers.scoring import Texts, scoring
from pocketlm.benchmarks.peers.standing import losses, standings
from pocketlm.benchmarks.peers.standing import markdown as standing_table
from pocketlm.benchmarks.peers.table import peer_table, rows, settings_text
from pocketlm.benchmarks.peers.trials import (
    FIRST_PROMPT,
    Call,
    ManyRows,
    Trial,
    calls,
    own_bench,
    token_ids,
    trials,
)
from pocketlm.benchmarks.quality.measure import measure_quality
from pocketlm.benchmarks.speed.measure import SpeedGrid, SpeedTest
from pocketlm.export.errors import StorageError
from pocketlm.export.folder import ModelFolder

PROTOCOL = Path(measure.__file__).with_name("protocol.py")
TESTS = (SpeedTest(8, 0), SpeedTest(0, 4))

# An adapter that runs the checkpoint as we do: the beginning of every other one here.
HEALTHY = """
from pocketlm.benchmarks.peers.ours import Model, convert as export

NAME, PACKAGE, PRECISIONS = "healthy", "numpy", {"whole": "fp32"}

def convert(checkpoint, out, precision, ours):
    export(checkpoint, out, "fp32", ours)
    return "has a note | with a bar"
"""
BROKEN = {
    "crashes_at_load": """
class Model:
    def __init__(self, folder, precision, threads):
        import os, signal
        print("no such instruction")
        os.kill(os.getpid(), signal.SIGILL)
""",
    "crashes_mid_round": """
class Model(Model):
    def generate(self, ids, count):
        if len(ids) == 8:
            raise MemoryError("out of it")
        return super().generate(ids, count)
""",
    "shifts_positions": """
class Model(Model):
    def generate(self, ids, count):
        return super().generate([ids[1], *ids[1:]] if len(ids) > 1 else ids, count)
""",
    "disagrees": """
class Model(Model):
    def generate(self, ids, count):
        return [(token + 1) % 97 for token in super().generate(ids, count)]
""",
    "gives_no_logits": """
class Model:
    def __init__(self, *arguments, whole=Model):
        self.generate = whole(*arguments).generate
""",
    "fails_at_logits": """
class Model(Model):
    def logits(self, ids):
        raise MemoryError("too many rows")
""",
    "rounds_logits": """
class Model(Model):
    def logits(self, ids):
        return super().logits(ids).round(1)
    def bytes_per_token(self):
        return 12345678
""",
    "does_not_convert": """
def convert(checkpoint, out, precision, ours):
    raise ValueError("no tensors named so:\\n  a\\n  b")
""",
}


def fake_peer(folder: Path, name: str, source: str, requirements: Path | None = None) -> Peer:
    """A peer whose adapter is this source."""
    file = folder / f"{name}.py"
    file.write_text(source)
    return Peer(name, {"whole": "fp32"}, str(file), requirements)


# ---- the whole command ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that ``measured`` tells of was given its text, and left its report."""
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(scope="module")
def measured(folder: Path, tiny_checkpoint: Path) -> dict[str, dict[str, Any]]:
    """The row of every peer, from one run of the command over good and bad ones."""
    requirements = folder / "absent.txt"
    requirements.write_text("pocketlm-is-not-this==1.0\n")
    peers = [fake_peer(folder, "healthy", HEALTHY)]
    peers += [fake_peer(folder, name, HEALTHY + source) for name, source in BROKEN.items()]
    peers.append(fake_peer(folder, "not_installed", HEALTHY, requirements))
    options = ["--checkpoint", str(tiny_checkpoint), "--folder", str(folder / "kept")]
    options += ["--prompt", "8", "--generation", "4", "--rounds", "2", "--threads", "1"]
    options += ["--parallel", "2", "--own-bench"]
    report = folder / "results.json"
    options += ["--precision", "fp32", "--quiet", "--discard", "--json", str(report)]
    (folder / "text.txt").write_text(" ".join(f"word {i}" for i in range(40)))
    options += ["--text", str(folder / "text.txt"), "--window", "32", "--limit", "100"]
    options += ["--html", str(folder / "report.html")]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(command, "known_peers", lambda: {peer.key: peer for peer in peers})
        patch.setenv("PIP_NO_INDEX", "1")  # pip finds nothing, at once
        patch.setenv("PIP_CONFIG_FILE", "/dev/null")
        patch.delenv("PIP_FIND_LINKS", raising=False)
        assert command.main(options) == 0
    assert not list((folder / "kept").glob("tmp*"))  # our fp32's logits
    table = said.getvalue()
    (results,) = json.loads(report.read_text())
    assert results["circumstances"]["threads"] == 1
    found = {row["peer"]: row | {"table": table} for row in results["rows"]}
    assert found.keys() == {"pocketlm", *(peer.name for peer in peers)}
    return found


@pytest.mark.peers
def test_every_peer_has_figures_or_a_reason(measured: dict[str, dict[str, Any]]) -> None:
    healthy = measured["healthy"]
    for row in (measured["pocketlm"], healthy):
        assert row["failure"] is None
        assert row["agreement"] == 1
        assert row["load_seconds"] > 0
        assert row["peak_rss_bytes"] > 10_000_000
        assert row["bits_per_weight"] == pytest.approx(32, rel=0.3)  # with the graph
        assert all(len(row["tests"][name]["samples"]) == 2 for name in ("pp8", "tg4", "2 x tg64"))
    assert 0 < healthy["tests"]["pp8"]["ratio"]["median"] < 100
    assert measured["pocketlm"]["tests"]["pp8"]["ratio"] is None
    checked = PROMPTS * CHECKED_TOKENS + NARROW + 8  # the eight are two rows at once
    reasons = {
        "crashes_at_load": "crashed at opening the model: killed by signal 4 (Illegal instruction)"
        ": no such instruction",
        "crashes_mid_round": "failed at generate: MemoryError: out of it",
        "disagrees": f"not the same model: 8 of {checked} tokens agree",
        "does_not_convert": "not converted: exit code 1: ValueError: no tensors named so: a b",
        "not_installed": "not installed: exit code 1: ERROR: No matching distribution found for "
        "pocketlm-is-not-this==1.0",
    }
    assert {name: measured[name]["failure"] for name in reasons} == reasons
    for name in reasons:
        assert set(measured[name]["tests"].values()) == {None}
        assert reasons[name] in healthy["table"]
    assert "has a note \\| with a bar" in healthy["table"]
    assert len({line.replace("\\|", "").count("|") for line in _lines(healthy["table"])}) == 1


@pytest.mark.peers
def test_every_peer_says_what_it_loses_on_the_same_tokens(
    measured: dict[str, dict[str, Any]], folder: Path, tiny_folder: ModelFolder
) -> None:
    ours, healthy = measured["pocketlm"]["quality"], measured["healthy"]["quality"]
    assert healthy == ours
    against = ours["against"]
    assert against["kl"]["mean"]["value"] == 0 and against["top1_agreement"]["value"] == 1
    evaluated = measure_quality(
        {"fp32": tiny_folder}, [folder / "text.txt"], window=32, limit=100, threads=1
    )
    perplexity = evaluated["models"][0]["perplexity"]["token"]["value"]
    assert ours["perplexity"]["token"]["value"] == pytest.approx(perplexity, rel=1e-5)
    rounded = measured["rounds_logits"]
    kl = rounded["quality"]["against"]["kl"]
    assert 1e-5 < kl["mean"]["value"] < 1e-2 and kl["mean"]["value"] < kl["p99"]["value"]
    assert rounded["bytes_per_token"] == 12345678 and "| 12.3 |" in rounded["table"]
    assert measured["gives_no_logits"]["quality"] is None
    assert "| its API gives no logits; has a note" in rounded["table"]
    assert measured["disagrees"]["quality"] is None
    failed = measured["fails_at_logits"]
    assert failed["quality"] is None and failed["tests"]["pp8"] is not None
    assert failed["unscored"] == "failed at score: MemoryError: too many rows"
    assert " – pocketlm peers</title>" in (folder / "report.html").read_text("utf-8")


def _lines(table: str) -> list[str]:
    return [line for line in table.splitlines() if line.startswith("|")]


def test_a_conversion_is_kept_until_its_adapter_changes(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    peer = fake_peer(tmp_path, "healthy", HEALTHY)
    first = convert(peer, "whole", tiny_checkpoint, tmp_path)
    stamp = (first.folder / "conversion.json").stat().st_mtime_ns
    assert convert(peer, "whole", tiny_checkpoint, tmp_path) == first
    assert (first.folder / "conversion.json").stat().st_mtime_ns == stamp
    changed = fake_peer(tmp_path, "healthy", HEALTHY + "# another\n")
    assert convert(changed, "whole", tiny_checkpoint, tmp_path).folder != first.folder


def test_our_own_conversion_is_kept_until_the_exporter_changes(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = tmp_path / "exporter"
    exporter.mkdir()
    (exporter / "graph.py").write_text("A = 1\n")
    monkeypatch.setattr(conversions, "OUR_EXPORTER", [*conversions.OUR_EXPORTER, exporter])
    first = convert(our_peer(), "fp32", tiny_checkpoint, tmp_path)
    assert convert(our_peer(), "fp32", tiny_checkpoint, tmp_path).folder == first.folder
    (exporter / "graph.py").write_text("A = 2\n")
    assert convert(our_peer(), "fp32", tiny_checkpoint, tmp_path).folder != first.folder


def test_a_variant_is_made_again_when_a_file_among_its_options_changes(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def fill(folder: Path, program: list[str], precision: str, inputs: list[str]) -> None:
        made.append(precision)
        folder.mkdir(parents=True)
        (folder / conversions.RECORD).write_text('{"note": ""}')

    monkeypatch.setattr(conversions, "_fill", fill)
    plan = tmp_path / "plan.json"
    options = f"--precision int4 --plan {plan}"
    peer = our_peer({options: "int4"})
    for text in ("{}", "{}", '{"a": 1}'):
        if not plan.exists() or plan.read_text() != text:
            plan.write_text(text)
        found = convert(peer, options, tiny_checkpoint, tmp_path)
        assert found.precision == options and len(found.folder.name) < 100
    assert made == [options] * 2


def test_variants_that_are_run_otherwise_share_a_folder_and_say_how_they_run(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    plainly = ["--precision", "fp32"]
    variants = {kv: [*plainly, "--", "--kv", kv] for kv in ("auto", "fp32")}
    grid = SpeedGrid((8,), (), threads=(1,))
    settings = Settings(tmp_path, [], grid, ["fp32"], variants={"plain": plainly, **variants})
    run = Comparison("tiny", tiny_checkpoint, settings)
    main, plain, *others = run._prepare("fp32")
    assert main.contender is not None and plain.contender is not None
    assert plain.contender.folder == main.contender.folder
    for entry, kv in zip(others, variants, strict=True):
        assert entry.contender is not None and entry.level == "fp32"
        assert entry.contender.folder == plain.contender.folder
        assert run_options(entry.contender.precision) == ["--kv", kv]
        model = ours.Model(entry.contender.folder, entry.contender.precision, 1)
        assert model.settings == f"--kv {kv}"
    (alone,) = model.generate_many([[5]], 3)
    assert alone == model.generate([5], 3)


def test_precisions_of_a_peer_that_only_run_otherwise_share_a_folder(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    peer = fake_peer(tmp_path, "healthy", HEALTHY)
    peer = replace(
        peer, precisions={"whole": "fp32", "whole, fast": "fp32"}, same={"whole, fast": "whole"}
    )
    settings = Settings(tmp_path, [peer], SpeedGrid((8,), (), threads=(1,)), ["fp32"])
    run = Comparison("tiny", tiny_checkpoint, settings)
    found = run._prepare("fp32")[1:]
    contenders = [entry.contender for entry in found]
    assert [one and one.precision for one in contenders] == ["whole", "whole, fast"]
    assert len({one and one.folder for one in contenders}) == 1
    run._discard(found)
    assert not any(one and one.folder.exists() for one in contenders)
    known = known_peers()["openvino_genai"]
    for name, converted in known.same.items():
        assert known.level(name) == known.level(converted)


def test_pocketlm_run_is_timed_from_its_start_to_its_text_or_says_why_not(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    assert 0 < command_start(tiny_folder.path, "--precision fp32 -- --kv fp32", 1) < 60
    reason = "pocketlm run ended with exit code 2: .*No such option"
    with pytest.raises(PeerError, match=reason):
        command_start(tiny_folder.path, "fp32 -- --no-such-thing", 1)


def test_a_failed_conversion_leaves_nothing_but_its_log(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    peer = fake_peer(tmp_path, "broken", HEALTHY + BROKEN["does_not_convert"])
    with pytest.raises(PeerError, match="no tensors named so: a b"):
        convert(peer, "whole", tiny_checkpoint, tmp_path)
    (log,) = (path for path in (tmp_path / "models").rglob("*") if path.is_file())
    assert "Traceback" in log.read_text()


def test_a_full_disk_is_a_reason_unless_it_is_converted_already(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    peer = fake_peer(tmp_path, "healthy", HEALTHY)
    with pytest.raises(PeerError, match=r"expected 1,000,000 TB; make room, or use --discard"):
        convert(peer, "whole", tiny_checkpoint, tmp_path, needed_bytes=1e18)
    first = convert(peer, "whole", tiny_checkpoint, tmp_path)
    assert convert(peer, "whole", tiny_checkpoint, tmp_path, needed_bytes=1e18) == first


def test_bad_paths_and_numbers_are_found_out_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--checkpoint", str(tmp_path)]) == 2
    assert "found no config.json with safetensors files" in capsys.readouterr().err
    (tmp_path / "mine.json").write_text('{"years": "of work"}')
    for name, told in (
        ("nowhere/x.json", "expected a folder; make it first"),
        ("mine.json", "mine.json: found a file, expected a new name, or a file that this command"),
    ):
        with pytest.raises(SystemExit):
            command.main(["--shape", "gpt2-124m", "--json", str(tmp_path / name)])
        assert told in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == '{"years": "of work"}'
    with pytest.raises(SystemExit):
        command.main(["--shape", "gpt2-124m", "--threads", "0"])
    assert "threads is 0, expected an integer from 1 to" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--shape", "gpt2-124m", "--rounds", "-1"])
    assert "found -1, expected at least 0" in capsys.readouterr().err


def test_a_checkpoint_that_we_cannot_read_ends_it_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    options = ["--checkpoint", str(tmp_path), "--folder", str(tmp_path / "kept"), "--quiet"]
    assert command.main(options) == 2
    err = capsys.readouterr().err
    reason = "ChildError: model.safetensors has 0 bytes"
    assert err.startswith(f"peers: pocketlm itself not converted: exit code 1: {reason}")
    assert len(err.splitlines()) == 1


def test_unknown_peers_and_no_checkpoint_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--shape", "gpt2-124m", "--peer", "ollama"]) == 2
    assert "found the peer 'ollama', expected one of ctranslate2, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([])
    assert "found neither --shape nor --checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--generation", "0", "--depth", "9"], "found --depth and --generation 0, .* leave one"),
        (["--rounds", "0", "--prompt", "9"], "found --prompt and --rounds 0, which runs no test"),
        (["--rounds", "0", "--depth", "9"], "found --depth and --rounds 0, which runs no test"),
        (["--rounds", "0", "--own-bench"], "found --own-bench and --rounds 0, which runs no test"),
        (["--rounds", "-1"], "found -1, expected at least 0"),
    ],
)
def test_options_that_do_nothing_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.parse(["--shape", "gpt2-124m", *options])
    assert re.search(message, capsys.readouterr().err)


def test_what_is_asked_for_twice_is_measured_once() -> None:
    arguments = ["--shape", "gpt2-124m", *(2 * ["--peer", "pytorch", "--precision", "int8"])]
    found = command.settings(command.parse(arguments))
    assert ([peer.name for peer in found.peers], found.levels) == (
        [known_peers()["pytorch"].name],
        ["int8"],
    )
    assert found.on_progress is command.say


def test_a_checkpoint_without_a_text_takes_the_one_of_the_test_data_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(tmp_path)]
    monkeypatch.setenv(command.TEST_DATA, str(tmp_path))
    found = command.parse(given)
    assert (found.text, found.limit) == ([], None)
    assert "rows say nothing of what is lost" in capsys.readouterr().err
    file = tmp_path / command.HELD_OUT
    file.parent.mkdir()
    file.write_text("text")
    found = command.parse(given)
    assert (found.text, found.limit, found.window) == ([file], 4096, 512)
    assert command.parse([*given, "--limit", "9"]).limit == 9
    own = command.parse([*given, "--text", str(tmp_path / "own.txt")])
    assert (own.text, own.limit) == ([tmp_path / "own.txt"], None)
    assert command.parse(["--shape", "gpt2-124m"]).text == []


def test_a_prompt_is_run_without_a_depth() -> None:
    """Which only what is generated has before it: a peer is given a prompt as a whole."""
    tests = trials(SpeedGrid((16,), (4,), depths=(0, 32, 64)), 160, 16)
    names = ["pp16", "tg4", "tg4 @ d32", "tg4 @ d64", "16 x tg64"]
    assert [test.name for test in tests] == names


def test_logits_that_do_not_fit_the_disk_are_refused_before_a_model_runs(
    tmp_path: Path, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("word " * 40)
    reference = Entry("pocketlm", "fp32", "fp32")  # which cannot be started
    monkeypatch.setattr(shutil, "disk_usage", lambda root: SimpleNamespace(free=1000))
    texts = Texts([tmp_path / "text.txt"], window=32, limit=100)
    options = Options(TESTS, 1, 0, tmp_path, 5)
    with (
        pytest.raises(
            StorageError, match=r"found 1\.00 kB free, expected 119 kB for the logits of"
        ),
        scoring(texts, tiny_folder, reference, options, tmp_path),
    ):
        pass


# ---- rounds ----


class Scripted:
    """Stands for a process: takes ``seconds`` for anything, and dies at call ``dies_at``."""

    opened = {"version": "1", "settings": "", "can": ["logits", "generate_many", "own_bench"]}
    load_seconds = 0.5

    def __init__(self, name: str, log: list[str], seconds: float, dies_at: int | None) -> None:
        self.name, self.log, self.seconds, self.dies_at = name, log, seconds, dies_at

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        if do == "memory":
            return {"peak_rss_bytes": 1000}
        if do == "own_bench":
            self.log.append(f"{self.name} own {arguments}")
            return {"seconds": self.seconds * 0.75 * arguments["generation"]}
        count = arguments["count"]
        if do == "generate_many":
            rows = len(arguments["prompts"])
            return {"seconds": self.seconds * count, "tokens": [[0] * count] * rows}
        if count != CHECKED_TOKENS:
            self.log.append(f"{self.name} {len(arguments['ids'])} {count}")
            if len([line for line in self.log if line.startswith(self.name)]) == self.dies_at:
                raise PeerError("crashed")
        return {"seconds": self.seconds * count, "tokens": [0] * count}

    def close(self) -> None:
        self.log.append(f"{self.name} closed")


Scripts = Callable[..., tuple[list[Entry], list[str]]]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scripts:
    """Runs ``measure_level`` over scripted processes: name -> (seconds, call it dies at)."""

    def run(
        scripts: dict[str, tuple[float, int | None]],
        tests: Sequence[Trial] = (SpeedTest(8, 0), SpeedTest(0, 16)),
        together: int = 9,
        kept: list[Entry] | None = None,
        **options: Any,
    ) -> tuple[list[Entry], list[str]]:
        log: list[str] = []

        def start(entry: Entry, options: Options) -> Any:
            entry.process = Scripted(entry.peer, log, *scripts[entry.peer])  # type: ignore[assignment]
            return entry.process

        def fit(entry: Entry, group: Sequence[Entry], free: int | None) -> bool:
            return len(group) < together

        monkeypatch.setattr(measure, "start", start)
        monkeypatch.setattr(measure, "fits", fit)
        entries = [Entry(name, "whole", "fp32") for name in scripts]
        if kept is not None:
            kept += entries
        chosen = Options(tests, 1, 2, tmp_path, 5, **options)
        measure_level(entries, 97, {"fp32": [([1], CHECKED_TOKENS)]}, chosen)
        return entries, log

    return run


def test_rounds_are_interleaved_and_every_other_one_goes_backwards(scripted: Scripts) -> None:
    _, log = scripted({"ours": (1, None), "a": (2, None), "b": (3, None)})
    there, back = ["ours", "a", "b"], ["b", "a", "ours"]
    warm_up = [f"{name} {call}" for call in ("8 1", "1 8") for name in there]
    kept = [
        f"{name} {call}" for order in (back, there) for call in ("8 1", "1 16") for name in order
    ]
    assert log == [*warm_up, *kept, *(f"{name} closed" for name in there)]


def test_ratios_are_to_ours_of_the_same_rounds(scripted: Scripts) -> None:
    entries, _ = scripted({"ours": (1, None), "slow": (2, None), "fast": (0.5, None)})
    found = rows(entries, TESTS_OF_SCRIPTS, 100)
    ratios = [row["tests"]["tg16"]["ratio"] for row in found]
    assert ratios[0] is None
    assert [ratio["median"] for ratio in ratios[1:]] == [0.5, 2]
    assert found[1]["tests"]["pp8"]["tokens_per_second"]["median"] == 4
    assert found[1]["beside"] == ["ours whole", "fast whole"]
    assert "measured beside" not in peer_table(found, [test.name for test in TESTS_OF_SCRIPTS])


TESTS_OF_SCRIPTS = (SpeedTest(8, 0), SpeedTest(0, 16))


def test_one_that_dies_in_a_round_leaves_the_others_alone(scripted: Scripts) -> None:
    entries, log = scripted({"ours": (1, None), "dies": (1, 4), "b": (1, None)})
    assert [entry.failure for entry in entries] == [None, "crashed", None]
    assert entries[1].samples == {} and log.count("dies closed") == 1
    assert [len(samples) for samples in entries[2].samples.values()] == [2, 2]
    assert entries[2].our_samples is entries[0].samples


def test_ctrl_c_in_a_round_keeps_the_rounds_before_it(
    scripted: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Scripted):
        def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
            if self.name == "a" and arguments.get("count") == 16 and "a 1 16" in self.log:
                raise KeyboardInterrupt
            return super().ask(do, **arguments)

    monkeypatch.setattr(sys.modules[__name__], "Scripted", Interrupted)
    kept: list[Entry] = []
    with pytest.raises(KeyboardInterrupt):
        scripted({"ours": (1, None), "a": (2, None)}, kept=kept)
    assert [entry.samples for entry in kept] == [
        {"pp8": [1], "tg16": [16]},
        {"pp8": [2], "tg16": [32]},
    ]
    assert kept[1].our_samples == kept[0].samples
    assert kept[0].process is None and kept[1].process is None


def test_ours_that_dies_ends_the_run_with_every_process(scripted: Scripts) -> None:
    with pytest.raises(PeerError, match="crashed"):
        scripted({"ours": (1, 3), "a": (1, None)})


def test_what_does_not_fit_is_measured_later_beside_ours(scripted: Scripts) -> None:
    entries, log = scripted(
        {"ours": (1, None), "a": (1, None), "b": (1, None), "c": (1, None)}, together=2
    )
    assert [entry.beside for entry in entries[1:]] == [["ours whole"]] * 3
    assert log.count("ours closed") == 3
    found = rows(entries, TESTS_OF_SCRIPTS, 100)
    lines = peer_table(found, [test.name for test in TESTS_OF_SCRIPTS]).splitlines()
    assert "measured beside" not in lines[2]
    assert all(line.endswith("| measured beside ours whole only |") for line in lines[3:])
    assert all(len(entry.our_samples["pp8"]) == 2 for entry in entries[1:])


def test_fitting_counts_who_is_open_and_what_opening_takes(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    (tmp_path / "tokenizer.json").write_bytes(bytes(5000))
    contender = Contender(our_peer(), "fp32", Path(sys.executable), tmp_path, "")
    assert contender.weights_bytes == 1000
    entry = Entry("x", "fp32", "fp32", contender)
    open_ones = [
        Entry("ours", "", "", peak_rss_bytes=10**12),
        Entry("a", "", "", peak_rss_bytes=70),
    ]
    needed = measure.MEMORY_BYTES + 2000 + 70
    assert fits(entry, open_ones, needed + 1)
    assert not fits(entry, open_ones, needed)


def test_tests_are_those_of_llama_bench() -> None:
    def call(sign: int, ids: list[int], count: int) -> Call:
        return Call(sign, "generate", {"ids": ids, "count": count})

    assert list(calls(SpeedTest(8, 0), 97, 3)) == [call(1, token_ids(97, 8, 3), 1)]
    # A call for n tokens after one token is n forward passes of one token.
    assert list(calls(SpeedTest(0, 128), 97, 3)) == [call(1, token_ids(97, 1, 3), 128)]
    # 129 after 32 are a pass of 32 and 128 of one; what the first takes is taken off.
    deep = token_ids(97, 32, 3)
    assert list(calls(SpeedTest(0, 128, 32), 97, 3)) == [call(1, deep, 129), call(-1, deep, 1)]


def test_rows_that_decode_together_begin_with_a_token_each() -> None:
    trial = ManyRows(3)
    prompts = [[token] for token in token_ids(97, 3, 2)]
    assert list(calls(trial, 97, 2)) == [
        Call(1, "generate_many", {"prompts": prompts, "count": 64})
    ]
    assert (trial.name, trial.tokens) == ("3 x tg64", 192)


def test_rates_are_set_beside_those_of_a_peers_own_benchmark(scripted: Scripts) -> None:
    tests = (SpeedTest(0, 16), SpeedTest(0, 16, 8), ManyRows(2))
    entries, log = scripted({"ours": (1, None)}, tests=tests, own_bench=True)
    (found,) = rows(entries, tests, 100)
    asked = {"prompt": 0, "generation": 16}
    assert own_bench(tests[0]) == asked and own_bench(tests[1]) is own_bench(tests[2]) is None
    assert log.count(f"ours own {asked}") == 2
    assert found["tests"]["tg16"]["own_bench"]["median"] == 0.75
    assert found["tests"]["tg16 @ d8"]["own_bench"] is None
    assert found["tests"]["2 x tg64"]["tokens_per_second"]["median"] == 2
    lines = peer_table([found], [test.name for test in tests]).splitlines()
    assert "| tg16 tok/s | × ours | ÷ own bench | tg16 @ d8 tok/s | × ours | 2 x" in lines[0]
    assert "| 1.0 |  | 0.75 (0.75–0.75) |" in lines[2]


def test_one_without_batches_has_no_figure_for_many_rows(
    scripted: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "opened", {"version": "1", "settings": "", "can": []})
    tests = (SpeedTest(8, 0), ManyRows(2))
    entries, _ = scripted({"ours": (1, None), "a": (1, None)}, tests=tests)
    found = rows(entries, tests, 100)
    assert [row["failure"] for row in found] == [None, None]
    assert [row["tests"]["2 x tg64"] for row in found] == [None, None]


def test_each_is_started_by_itself_for_its_first_token(scripted: Scripts) -> None:
    entries, log = scripted({"ours": (1, None), "a": (2, None)}, starts=2)
    alone = [f"{FIRST_PROMPT} 1", "closed"]
    order = ["ours", "a", "a", "ours", "ours", "a"]  # the first round is not kept
    assert log[:12] == [f"{name} {what}" for name in order for what in alone]
    found = [row["first_token"] for row in rows(entries, (), 100)]
    assert [len(first["samples"]) for first in found] == [2, 2]
    assert found[1]["our_samples"] == found[0]["samples"] and found[0]["our_samples"] is None
    assert found[1]["ratio"] is not None and found[0]["ratio"] is None
    assert entries[1].our_samples.keys() == {"first token", "pp8", "tg16"}


def test_all_are_given_the_same_ids_and_others_in_the_next_round() -> None:
    assert token_ids(97, 50, 1) == token_ids(97, 50, 1) != token_ids(97, 50, 2)
    assert all(0 <= i < 97 for i in token_ids(97, 500, 1))


def test_ctrl_c_keeps_what_is_complete(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(entries: Sequence[Entry], *others: object) -> list[OthersUse]:
        if entries[0].level == "int8":
            raise KeyboardInterrupt
        entries[0].samples = {"pp8": [1.0]}
        return []

    monkeypatch.setattr(comparison, "measure_level", measured)
    settings = Settings(tmp_path, [], SpeedGrid((8,), (), threads=(1,)))
    run = Comparison("tiny", tiny_checkpoint, settings)
    run.measure()
    found = run.results()
    assert found["interrupted"]
    assert [row["failure"] for row in found["rows"]] == [None, "interrupted"]
    assert found["rows"][0]["tests"]["pp8"]["tokens_per_second"]["median"] == 8


# ---- a process ----


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., PeerProcess]]:
    """Starts an adapter whose model is this source."""
    started: list[PeerProcess] = []

    def start(source: str, seconds: float = 30) -> PeerProcess:
        file = tmp_path / "json.py"  # named as a module that it may import
        file.write_text(f'import json\nPACKAGE = "numpy"\n{source}')
        command = [sys.executable, "-P", str(PROTOCOL), str(file), "serve", "x", "whole", "1"]
        env = environments.child_environment(1)
        started.append(PeerProcess(command, tmp_path / "log", env, seconds))
        return started[-1]

    yield start
    for process in started:
        process.close()


def test_what_a_library_prints_is_no_answer(serving: Callable[..., PeerProcess]) -> None:
    source = """
print("loading", json.dumps(1))
class Model:
    def __init__(self, *arguments): print(arguments[1:])
    def generate(self, ids, count): print("generating"); return ids[:count]
"""
    process = serving(source)
    assert process.opened["version"] == np.__version__
    answer = process.ask("generate", ids=[1, 2, 3], count=2)
    assert answer["tokens"] == [1, 2] and answer["seconds"] >= 0
    assert process.ask("memory")["peak_rss_bytes"] > 1_000_000


def test_too_few_tokens_are_an_error(serving: Callable[..., PeerProcess]) -> None:
    process = serving("class Model:\n __init__ = lambda *a: None\n generate = lambda *a: [1]")
    with pytest.raises(PeerError, match="ValueError: 1 tokens came, expected 2"):
        process.ask("generate", ids=[0], count=2)
    with pytest.raises(PeerError, match="crashed at generate: exit code 1"):
        process.ask("generate", ids=[0], count=2)


def test_a_hanging_peer_is_a_reason(serving: Callable[..., PeerProcess]) -> None:
    source = "import time\nclass Model:\n def __init__(self, *a): time.sleep(60)"
    with pytest.raises(PeerError, match=r"no answer after 300 ms at opening the model"):
        serving(source, seconds=0.3)


# ---- environments ----


def test_adapters_and_requirements_are_the_same_peers_and_every_pin_is_exact() -> None:
    peers = known_peers()
    assert peers.keys() == {file.stem for file in REQUIREMENTS.glob("*.txt")}
    for name, peer in peers.items():
        assert peer.key == name
        assert peer.requirements is not None
        assert len(pinned(peer.requirements)) > 5
        assert {*peer.precisions.values(), *peer.calibrated.values()} <= set(LEVELS)
        assert "fp32" in peer.precisions.values()


def test_peers_are_those_that_the_readme_names() -> None:
    assert sorted(peer.name for peer in known_peers().values()) == [
        "CTranslate2",
        "OpenVINO GenAI",
        "llama.cpp",
        "onnxruntime-genai",
        "optimum-onnx",
        "torch",
    ]


@pytest.mark.parametrize("line", ["numpy", "numpy>=1", "numpy==1.*", "numpy==", "numpy==1,<2"])
def test_an_open_version_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text(f"{line}\n")
    with pytest.raises(ValueError, match="no exact version"):
        pinned(file)


def test_torch_is_installed_first_and_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("numpy==2.0\ntorch==2.13.0\n")
    rest = ["--no-deps", "--requirement", str(file)]
    assert install_steps(file) == [["torch==2.13.0"], rest]
    file.write_text("numpy==2.0\n")
    assert install_steps(file) == [rest]


def test_an_environment_is_made_again_when_its_pins_change_or_it_was_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    failing = False

    def run(command: Sequence[str], log: Path, seconds: float) -> str:
        (tmp_path / "x").mkdir(exist_ok=True)
        made.append(command[2])
        if failing and "pip" in command:
            raise PeerError("the network is gone")
        return ""

    monkeypatch.setattr(environments, "run_logged", run)
    file = tmp_path / "x.txt"
    file.write_text("numpy==2.0\n")
    python = environment(tmp_path / "x", file)
    assert made == ["venv", "pip"]
    assert environment(tmp_path / "x", file) == python
    assert made == ["venv", "pip"]
    file.write_text("numpy==2.1\n")
    failing = True
    with pytest.raises(PeerError, match="the network is gone"):
        environment(tmp_path / "x", file)
    assert not (tmp_path / "x" / STAMP).exists()
    failing = False
    environment(tmp_path / "x", file)
    made_from = hashlib.sha256(file.read_bytes() + sys.version.encode()).hexdigest()
    assert (tmp_path / "x" / STAMP).read_text() == made_from


def test_a_command_that_takes_too_long_or_is_not_there_is_a_reason(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with pytest.raises(PeerError, match=r"not done after 200 ms; see x\.log"):
        run_logged([sys.executable, "-c", "import time; time.sleep(60)"], log, 0.2)
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(PeerError, match="^killed, as the system does when memory runs out$"):
        run_logged([sys.executable, "-c", kill], log, 30)
    with pytest.raises(PeerError, match="nowhere/python: No such file"):
        run_logged([str(tmp_path / "nowhere/python")], log, 1)
    with pytest.raises(PeerError, match="^exit code 3: it said nothing$"):
        run_logged([sys.executable, "-c", "raise SystemExit(3)"], log, 30)


def test_peers_are_kept_off_the_network_and_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "x")
    found = environments.child_environment(3)
    assert "PYTHONPATH" not in found
    assert found["HF_HUB_OFFLINE"] == "1" and found["OMP_NUM_THREADS"] == "3"


# ---- the table ----


def test_table_shows_rates_ratios_and_reasons() -> None:
    good = Entry("a", "q8", "int8", version="1.0", load_seconds=0.25, peak_rss_bytes=5_000_000)
    good.agreement, good.samples = 0.9, {"pp8": [4.0, 2.0, 1.0]}
    good.our_samples = {"pp8": [2.0, 2.0, 2.0]}
    bad = Entry("b", "q4", "int4", failure="not installed: no network")
    tests = (SpeedTest(8, 0),)
    lines = peer_table(rows([good, bad], tests, 1000), [test.name for test in tests]).splitlines()
    assert lines[0].startswith("| runtime | version | precision | weights MB |")
    assert lines[2] == "| a | 1.0 | q8 |  |  | 0.25 | 4.0 | 1.00 (0.50–2.00) | 5.00 | 90% |  |"
    assert lines[3] == "| b |  | q4 |  |  |  |  |  |  |  | not installed: no network |"
    assert estimate([0.5, 1, 2]).low == 0.5


def test_settings_are_told_once_for_each_runtime_unless_its_precisions_differ() -> None:
    one = {"peer": "a", "precision": "q8", "settings": "flash"}
    other = {"peer": "b", "precision": "q8", "settings": "u8"}
    more = [one | {"precision": "q4"}, other | {"precision": "q4", "settings": "f32"}]
    assert settings_text([one, other, *more]) == "a: flash; b q8: u8; b q4: f32"
    assert settings_text([{"peer": "old", "precision": "q8"}]) == ""


# ---- where ours stands ----


def standing_row(
    peer: str,
    precision: str,
    seconds: list[float],
    ours: list[float] | None,
    kl: float | None = None,
    starts: tuple[list[float], list[float] | None] | None = None,
) -> dict[str, Any]:
    lost = None if kl is None else {"against": {"kl": {"mean": {"value": kl}}}}
    first = starts and {"samples": starts[0], "our_samples": starts[1]}
    return {
        "peer": peer,
        "precision": precision,
        "level": "int4",
        "tests": {"tg8": {"samples": seconds, "our_samples": ours}, "pp8": None},
        "first_token": first,
        "quality": lost,
    }


def standing_results(name: str, *found: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "tests": ["pp8", "tg8"], "rows": list(found)}


PLAIN = [1.0, 2.0, 4.0]  # seconds of ours, in three rounds


def test_ours_is_set_over_the_fastest_peer_round_by_round() -> None:
    slow = standing_row("a", "q4", [2.0, 4.0, 4.0], PLAIN)
    fast = standing_row("b", "q4", [0.5, 1.0, 6.0], PLAIN, starts=([3.0] * 2, [2.0, 1.0]))
    ours = standing_row("pocketlm", "int4", PLAIN, None, starts=([2.0, 1.0], None))
    # A variant of ours, measured beside another run of the plain one that was twice as slow.
    variant = standing_row("pocketlm", "mine", PLAIN, [2.0, 4.0, 8.0])
    one = standing_results("model", ours, variant, slow, fast)
    found = standings(one, {})
    assert [(line["precision"], line["test"]) for line in found] == [
        ("int4", "tg8"),
        ("int4", "first token"),
        ("mine", "tg8"),
    ]
    assert found[0]["best"] == found[0]["best_of_all"]
    assert found[0]["best"]["peer"] == "b"
    ratio = found[0]["best"]["ratio"]
    assert (ratio["median"], ratio["low"], ratio["high"]) == (0.5, 0.5, 1.5)
    assert found[1]["best"]["ratio"]["median"] == 2.25  # 3 / 2 and 3 / 1
    assert found[2]["best"]["ratio"]["median"] == 1.0


def test_a_peer_that_loses_more_does_not_count_and_random_weights_borrow_what_is_lost() -> None:
    def of(name: str, *kl: float | None) -> dict[str, Any]:
        return standing_results(
            name,
            standing_row("pocketlm", "int4", PLAIN, None, kl[0]),
            standing_row("fast", "q4", [0.5, 1.0, 2.0], PLAIN, kl[1]),
            standing_row("slow", "q4", [2.0, 4.0, 8.0], PLAIN, kl[2]),
        )

    results = [of("shape", None, None, None), of("real", 0.02, 0.03, 0.01)]
    lost = losses(results)
    assert lost == {("pocketlm", "int4"): 0.02, ("fast", "q4"): 0.03, ("slow", "q4"): 0.01}
    for one in results:
        one["standings"] = standings(one, lost)
        (line,) = one["standings"]
        assert (line["kl"], line["best"]["peer"], line["best_of_all"]["peer"]) == (
            0.02,
            "slow",
            "fast",
        )
    lines = standing_table(results).splitlines()
    assert lines[0] == "| model | width | ours | KL, 0.001 nats | tg8 |"
    cell = "2.00 (2.00–2.00) slow q4 / 0.50 (0.50–0.50) fast q4"
    assert lines[2] == f"| shape | int4 | int4 | 20.00 | {cell} |"
    # Calibrated, as it can be, the fast one loses less, and is as fast.
    (line,) = standings(results[0], {**lost, ("fast", "q4 imatrix"): 0.02})
    assert line["best"]["peer"] == "fast"
    (best,) = standings(of("best", 0.0, 0.03, 0.01), {})
    assert best["best"] is None and best["best_of_all"]["peer"] == "fast"
    assert standing_table([of("old", None, None, None)]) == ""


# ---- OpenVINO's checkpoint ----


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ({"bos_token": "x"}, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "x"}),
        ({"tokenizer_class": "Own"}, {"tokenizer_class": "Own"}),
    ],
)
def test_a_tokenizer_without_a_class_gets_one_and_the_checkpoint_stays_as_it_is(
    given: dict[str, str] | None, expected: dict[str, str], tmp_path: Path
) -> None:
    from pocketlm.benchmarks.peers.adapters.openvino_genai import _with_tokenizer_class

    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "out"
    checkpoint.mkdir()
    folder.mkdir()
    (checkpoint / "config.json").write_text("{}")
    if given is not None:
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(given))
    files = {path.name: path.read_text() for path in checkpoint.iterdir()}
    assert _with_tokenizer_class(checkpoint, folder) == folder
    assert json.loads((folder / "tokenizer_config.json").read_text()) == expected
    assert (folder / "config.json").read_text() == "{}"
    assert {path.name: path.read_text() for path in checkpoint.iterdir()} == files


# ---- llama.cpp's importance matrix and file ----


def test_importance_is_the_mean_square_of_what_a_matrix_is_multiplied_with() -> None:
    inputs = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
    nodes = {name: importance.Tensor(name=name) for name in (b"blk.0.up.weight", b"cache_k_l0")}
    given = importance.Tensor(type=0, data=inputs.ctypes.data, ne=(3, 2, 1, 1), nb=(4, 12, 24, 24))
    collector = importance.Collector({1: b"MUL_MAT", 2: b"ADD"}.__getitem__)

    def seen(op: int, source: bytes) -> list[bool]:
        """Whether it is wanted, and whether the computation goes on; it is computed twice."""
        node = importance.Tensor(op=op)
        node.src[0], node.src[1] = (ctypes.pointer(one) for one in (nodes[source], given))
        address = ctypes.addressof(node)
        return [collector(address, ask, None) for ask in (True, False, False)]

    assert seen(1, b"blk.0.up.weight") == [True] * 3
    assert seen(2, b"blk.0.up.weight") == seen(1, b"cache_k_l0") == [False, True, True]
    assert collector.sums.keys() == {"blk.0.up.weight"} and collector.counts.popitem()[1] == 4
    np.testing.assert_array_equal(collector.sums["blk.0.up.weight"], [20, 16, 20])


def test_what_calibrated_precisions_are_made_of_decides_whether_they_are_made_again() -> None:
    peer = known_peers()["llama_cpp"]
    assert Path(str(importance.__file__)) in [path.resolve() for path in peer.sources]
    assert peer.calibrated.keys().isdisjoint(peer.precisions) and peer.level("IQ4_XS imatrix")


def rotated(x: Any, position: int, pairs: list[tuple[int, int]], theta: float) -> Any:
    """x (E,) with each pair of rows turned by position times its frequency."""
    out = x.copy()
    for i, (a, b) in enumerate(pairs):
        angle = position * theta ** (-2 * i / len(x))
        out[a] = x[a] * np.cos(angle) - x[b] * np.sin(angle)
        out[b] = x[b] * np.cos(angle) + x[a] * np.sin(angle)
    return out


def test_interleaved_rows_give_the_scores_of_rotated_halves() -> None:
    from pocketlm.benchmarks.peers.adapters.llama_cpp import interleave

    H, E, D = 3, 8, 10
    random = np.random.default_rng(0)
    q, k = random.normal(size=(2, H * E, D))
    x, y = random.normal(size=(2, D))
    halves = [(i, i + E // 2) for i in range(E // 2)]
    neighbours = [(2 * i, 2 * i + 1) for i in range(E // 2)]
    for h in range(H):
        head = slice(h * E, (h + 1) * E)
        expected = rotated(q[head] @ x, 5, halves, 100.0) @ rotated(k[head] @ y, 2, halves, 100.0)
        q2, k2 = interleave(q, H)[head], interleave(k, H)[head]
        found = rotated(q2 @ x, 5, neighbours, 100.0) @ rotated(k2 @ y, 2, neighbours, 100.0)
        assert found == pytest.approx(expected)


def test_rope_factors_divide_into_the_frequencies_of_our_own_graph() -> None:
    from pocketlm.benchmarks.peers.adapters.llama_cpp import rope_factors

    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    found = rope_factors(64, 500000.0, scaling)
    expected = []
    for i in range(32):  # one by one, as the published code says it
        wavelength = 2 * np.pi * 500000.0 ** (2 * i / 64)
        if wavelength < 8192 / 4:
            expected.append(1.0)
        elif wavelength > 8192 / 1:
            expected.append(8.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append(1 / ((1 - smooth) / 8 + smooth))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[0] == 1 and found[-1] == 8
    with pytest.raises(ValueError, match="rope scaling 'yarn' is not converted"):
        rope_factors(64, 1e4, {"rope_type": "yarn"})
