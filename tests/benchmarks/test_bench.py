"""The bench as a whole: what its dict holds, where its figures come from, its verdict, its ends."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_results import bench_results

from pocketlm.benchmarks import bench
from pocketlm.benchmarks.bench import BenchPlan, run_bench, verdict
from pocketlm.benchmarks.intervals import estimate, paired_ratio
from pocketlm.benchmarks.session_variant import Variant
from pocketlm.benchmarks.speed import measure as speed
from pocketlm.benchmarks.speed.measure import ColdStart, Recording, SpeedTest
from pocketlm.benchmarks.speed.remote import Remote, WorkerDied
from pocketlm.benchmarks.speed.roofline import weight_bytes_per_token
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

TESTS = (SpeedTest(24, 0), SpeedTest(0, 6), SpeedTest(0, 6, depth=10), SpeedTest(8, 4))
BANDWIDTH = 1e9
WINDOW = 32


@pytest.fixture(scope="module")
def folders(
    tiny_checkpoint: Path, tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ModelFolder]:
    out = tmp_path_factory.mktemp("bench") / "int4"
    return {
        "fp32": tiny_folder,
        "int4": export_model(open_checkpoint(tiny_checkpoint), out, precision_of("int4")),
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held-out.txt"
    path.write_text("The rest of the story is told in the other room.\n" * 6)
    return path


@pytest.fixture(scope="module")
def results(folders: dict[str, ModelFolder], text: Path) -> dict[str, Any]:
    """One bench over everything, as JSON has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "read_bandwidth", lambda threads: BANDWIDTH)
        plan = BenchPlan(folders, TESTS, repetitions=3, texts=[text], window=WINDOW)
        found = json.loads(json.dumps(run_bench(plan), allow_nan=False))
    assert isinstance(found, dict)
    return found


@pytest.fixture(autouse=True)
def quick_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "read_bandwidth", lambda threads: BANDWIDTH)


# The dict ----------------------------------------------------------------------------------------


def assert_like(found: object, sample: object, path: str = "results") -> None:
    """``found`` has all that ``sample`` has, of its types; None stands where a thing is unknown."""
    if found is None or sample is None:
        return
    if isinstance(sample, dict):
        assert isinstance(found, dict), path
        free = path.endswith("read_bandwidth")  # its keys are numbers of threads
        for key in [] if free else sample:
            assert key in found, f"{path}.{key}"
            assert_like(found[key], sample[key], f"{path}.{key}")
    elif isinstance(sample, list):
        assert isinstance(found, list), path
        for i, item in enumerate(found if sample else []):
            assert_like(item, sample[0], f"{path}[{i}]")
    elif isinstance(sample, float):
        assert isinstance(found, float | int), path
    else:
        assert isinstance(found, type(sample)), path


def test_the_results_hold_what_the_report_is_made_from(results: dict[str, Any]) -> None:
    assert_like(results, bench_results())


def test_rows_go_by_test_and_then_by_model(results: dict[str, Any]) -> None:
    found = [(row["test"], row["model"]) for row in results["speed"]]
    assert found == [(test.name, name) for test in TESTS for name in ("fp32", "int4")]
    assert [model["name"] for model in results["models"]] == ["fp32", "int4"]
    assert results["reference"] == "fp32"
    assert (results["interrupted"], results["failed"]) == (None, [])


def test_rates_and_ratios_are_those_of_the_samples(results: dict[str, Any]) -> None:
    rates = {}
    for row in results["speed"]:
        tokens = row["prompt"] + row["generation"]
        assert len(row["samples"]) == 3
        rates[row["test"], row["model"]] = [tokens / seconds for seconds in row["samples"]]
        own = rates[row["test"], row["model"]]
        assert row["tokens_per_second"] == estimate(own).to_json()
        if row["model"] == "fp32":
            assert row["ratio"] is None
        else:
            assert row["ratio"] == paired_ratio(own, rates[row["test"], "fp32"]).to_json()


def test_the_roofline_is_bytes_by_rate_by_bandwidth(
    results: dict[str, Any], folders: dict[str, ModelFolder]
) -> None:
    for row in results["speed"]:
        if row["kind"] != "decode":
            assert (row["bytes_per_token"], row["roofline"]) == (None, None)
            continue
        folder = folders[row["model"]]
        # Of 6 tokens after a depth: 1 to 6 more are attended to, 3.5 on average.
        kv = (row["depth"] + 3.5) * folder.shape.kv_bytes_per_token
        read = weight_bytes_per_token(folder) + kv
        assert row["bytes_per_token"] == round(read)
        rate = row["tokens_per_second"]["median"]
        assert row["roofline"] == pytest.approx(read * rate / BANDWIDTH)


def test_models_are_described(results: dict[str, Any], folders: dict[str, ModelFolder]) -> None:
    for model in results["models"]:
        folder = folders[model["name"]]
        on_disk = sum(f.stat().st_size for f in folder.path.iterdir() if f.name != "pocketlm.json")
        assert model["disk_bytes"] == on_disk
        assert model["bits_per_weight"] * model["parameters"] == 8 * model["weights_bytes"]
        assert 0 < model["load"]["median"] < model["first_token"]["median"]
        assert model["context_length"] == 160
    assert results["models"][0]["weight_errors"] == []
    assert len(results["models"][1]["weight_errors"]) >= 3


def test_circumstances_say_what_else_happened(results: dict[str, Any]) -> None:
    found = results["circumstances"]
    assert found["read_bandwidth"] == {"1": BANDWIDTH}
    assert (found["repetitions"], found["warmup"], found["threads"]) == (3, 1, 1)
    assert found["load_average"].keys() == {"before", "after"}
    assert found["started"].endswith("+00:00")
    if Path("/proc/stat").exists():
        assert found["other_cores_busy"] >= 0
        others = found["other_cores_busy"] + found["stolen_cores"]
        assert (found["busy"] is None) == (others < 0.2)


def test_quality_is_that_of_the_texts(results: dict[str, Any]) -> None:
    quality = results["quality"]
    assert [model["model"] for model in quality["models"]] == ["fp32", "int4"]
    assert quality["window"] == WINDOW
    assert quality["self_check"]["kl"] == 0
    assert quality["models"][1]["against"]["kl"]["mean"]["value"] > 0


# Ends --------------------------------------------------------------------------------------------


@pytest.fixture
def no_cold_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fresh processes of every round, which take most of a short bench."""
    monkeypatch.setattr(speed, "cold_start", lambda *arguments: ColdStart(0.1, 0.2))


def in_round(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> None:
    """Does something when that many rounds are complete."""
    add = Recording.add

    def add_and_act(self: Recording, *arguments: Any) -> None:
        add(self, *arguments)
        if self.rounds == number:
            action()

    monkeypatch.setattr(Recording, "add", add_and_act)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("no_cold_starts")
def test_an_interrupted_bench_returns_its_rounds(
    folders: dict[str, ModelFolder], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_round(monkeypatch, 2, interrupt)
    plan = BenchPlan(folders, TESTS[:2], repetitions=7, texts=[text], window=WINDOW)
    found = run_bench(plan)
    assert found["interrupted"] == {"phase": "speed", "rounds": 2, "of": 7}
    assert {len(row["samples"]) for row in found["speed"]} == {2}
    assert found["quality"] is None
    assert found["circumstances"]["load_average"]["after"] is not None


@pytest.mark.usefixtures("no_cold_starts")
def test_interrupted_among_the_threads_it_has_the_tests_that_ran(
    folders: dict[str, ModelFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_round(monkeypatch, 2, interrupt)
    tests = [SpeedTest(0, 4, threads=1), SpeedTest(0, 4, threads=2)]
    found = run_bench(BenchPlan(folders, tests, repetitions=2))
    assert found["interrupted"] == {"phase": "speed", "rounds": 2, "of": 4}
    assert {row["threads"] for row in found["speed"]} == {1}


@pytest.mark.usefixtures("no_cold_starts")
def test_interrupted_before_a_round_there_is_nothing_to_return(
    folders: dict[str, ModelFolder],
) -> None:
    def on_event(event: dict[str, Any]) -> None:
        if event.get("what") == "int4, pp24, round 1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(BenchPlan(folders, TESTS[:2], repetitions=7), on_event)


@pytest.mark.usefixtures("no_cold_starts")
def test_interrupted_in_quality_the_speed_is_there(
    folders: dict[str, ModelFolder], text: Path
) -> None:
    def on_event(event: dict[str, Any]) -> None:
        if event["phase"] == "quality":
            raise KeyboardInterrupt

    plan = BenchPlan(folders, TESTS[:1], repetitions=1, texts=[text], window=WINDOW)
    found = run_bench(plan, on_event)
    assert found["interrupted"] == {"phase": "quality", "rounds": 1, "of": 1}
    assert (len(found["speed"]), found["quality"]) == (2, None)
    assert len(found["verdict"]) == 1


def kill_workers_of(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Kills the processes of some models once they are open."""

    class Doomed(Remote):
        def __init__(self, name: str, folder: Path, threads: int, variant: Variant) -> None:
            super().__init__(name, folder, threads, variant)
            if name in names:
                os.kill(self._process.pid, signal.SIGKILL)

    monkeypatch.setattr(speed, "Remote", Doomed)


@pytest.mark.usefixtures("no_cold_starts")
def test_a_model_that_dies_is_told_and_the_next_is_the_reference(
    folders: dict[str, ModelFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_workers_of(monkeypatch, "fp32")
    found = run_bench(BenchPlan(folders, TESTS[:2], repetitions=1))
    assert [failed["model"] for failed in found["failed"]] == ["fp32"]
    assert found["failed"][0]["error"].startswith("fp32: found its process killed by signal 9")
    assert (found["reference"], found["verdict"]) == ("int4", [])
    assert [row["model"] for row in found["speed"]] == ["int4", "int4"]


@pytest.mark.usefixtures("no_cold_starts")
def test_when_all_models_die_it_is_an_error(
    folders: dict[str, ModelFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_workers_of(monkeypatch, "fp32", "int4")
    with pytest.raises(WorkerDied, match="(fp32|int4): found its process killed"):
        run_bench(BenchPlan(folders, TESTS[:1], repetitions=1))


def test_texts_are_refused_before_any_work(
    folders: dict[str, ModelFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure", lambda *args, **kwargs: pytest.fail("it began"))
    (tmp_path / "text.txt").write_text("A text.")
    with pytest.raises(RequestError, match="split is '<|end|>', .* nowhere in .*text.txt"):
        run_bench(BenchPlan(folders, TESTS, texts=[tmp_path / "text.txt"], split="<|end|>"))


# The verdict -------------------------------------------------------------------------------------


def judged(
    median: float = 4.61,
    low: float = 4.5,
    high: float = 4.7,
    smaller: float = 6.94,
    agreement: float | None = 1 - 1 / 41,
) -> str:
    """The sentence on a model of these figures."""
    results = copy.deepcopy(bench_results(quality=agreement is not None))
    results["models"] = [results["models"][0], results["models"][2]]
    results["models"][0]["disk_bytes"] = round(results["models"][1]["disk_bytes"] * smaller)
    results["speed"] = [row for row in results["speed"] if row["model"] != "int8"]
    for row in results["speed"]:
        if row["model"] == "int4" and row["test"] == "tg128":
            row["ratio"] = {"median": median, "low": low, "high": high, "confidence": 0.96}
    if agreement is not None:
        (model,) = (m for m in results["quality"]["models"] if m["model"] == "int4")
        model["against"]["top1_agreement"]["value"] = agreement
    (sentence,) = verdict(results)
    return sentence


def test_the_verdict_is_speed_size_and_disagreement() -> None:
    assert judged() == (
        "int4 is 4.6× faster than fp32 at tg128, 6.9× smaller; "
        "it disagrees with fp32 on 1 token in 41"
    )


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"median": 0.5, "low": 0.4, "high": 0.6}, "int4 is 2.0× slower than fp32 at tg128"),
        ({"median": 1.04, "low": 1.02, "high": 1.06}, "int4 is 1.04× faster than fp32"),
        ({"median": 1.04, "low": 0.99, "high": 1.06}, "int4 is about as fast as fp32 at tg128"),
        ({"median": 1.002, "low": 1.001, "high": 1.003}, "int4 is about as fast as fp32"),
        ({"smaller": 1.0}, "at tg128, as large; it"),
        ({"smaller": 0.5}, "at tg128, 2.0× larger; it"),
        ({"agreement": 1.0}, "; it agrees with fp32 on every token"),
        ({"agreement": 0.36}, "; it disagrees with fp32 on 64 % of the tokens"),
        ({"agreement": 0.9995}, "; it disagrees with fp32 on 1 token in 2,000"),
        ({"agreement": None}, "at tg128, 6.9× smaller"),
    ],
)
def test_the_verdict_says_what_the_figures_say(figures: dict[str, Any], words: str) -> None:
    assert words in judged(**figures)


def test_without_a_generation_the_verdict_is_on_the_first_test() -> None:
    results = bench_results(tests=[("pp512", "prefill", 512, 0, 0)], quality=False)
    assert verdict(results) == [
        "int8 is 1.9× faster than fp32 at pp512, 3.5× smaller",
        "int4 is 1.2× slower than fp32 at pp512, 5.6× smaller",
    ]


def test_a_single_model_has_no_verdict() -> None:
    results = bench_results({"fp32": (30_000_000, 1, 1, 0, 0)})
    assert verdict(results) == []
