"""Calibrated on the way from a model to a folder: what that leaves there, keeps, and refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import gpt2_config, write_checkpoint
from command_line import Run, assert_refused
from graph_folders import traced_folder
from model_folders import report_of
from traced_graphs import LLAMA

from pocketlm.commands import options
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.manifest import INT8_KV_DECODER
from pocketlm.export.observer import Observer
from pocketlm.export.writing import export_model, open_decoder
from pocketlm.quantize import calibration as module
from pocketlm.quantize import measuring, search
from pocketlm.quantize import options as options_module
from pocketlm.quantize.dream import windows_of
from pocketlm.quantize.fidelity import mean_kl
from pocketlm.quantize.plan import Plan, Rotated
from pocketlm.quantize.precisions import UNSEEN, Budget, Calibration
from pocketlm.quantize.rotation import Rotation
from pocketlm.quantize.run import plan_of, planned, precision_of, within
from pocketlm.quantize.statistics import Statistics, StatisticsError
from pocketlm.runtime.session import Session
from pocketlm.runtime.tokenizer import Tokenizer

WINDOW = 160  # the context of the tiny model
UP = "h.0.mlp.c_fc.weight"
NOT_POSITIVE = "the Hessian is not positive, damped or not"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some words more than the fewest tokens that will do."""
    file = tmp_path_factory.mktemp("calibration") / "text.txt"
    words = np.random.default_rng(3).choice("the sea was calm and cold at night".split(), 1200)
    file.write_text(" ".join(words), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def kept(text: Path) -> Path:
    """Where the statistics of ``calibrated`` stay."""
    return text.parent / "kept"


@pytest.fixture(scope="module")
def on_text(text: Path, kept: Path) -> Calibration:
    return Calibration((text,), tokens=2048, folder=kept)


@pytest.fixture(scope="module")
def calibrated(tiny_checkpoint: Path, on_text: Calibration, text: Path) -> ModelFolder:
    """The tiny model in int4; not to be written to."""
    change = precision_of("int4", calibration=on_text)
    return export_model(open_checkpoint(tiny_checkpoint), text.parent / "int4", change)


@pytest.fixture
def short_dreams(monkeypatch: pytest.MonkeyPatch) -> Calibration:
    """A calibration on a dream of few tokens."""
    monkeypatch.setattr(module, "UNSEEN", 2 * WINDOW)
    return Calibration(tokens=4 * WINDOW)


def contents(folder: ModelFolder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.path.iterdir()}


@pytest.fixture
def few_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search tries few plans."""
    monkeypatch.setattr(search, "thinned", partial(search.thinned, count=4))


def measured_never(*_: object) -> None:
    raise AssertionError("measured")


# What it leaves ---------------------------------------------------------------------------------


def test_what_was_measured_is_in_the_manifest(
    calibrated: ModelFolder, tiny_folder: ModelFolder, on_text: Calibration
) -> None:
    """The divergence is what plain runs of both models say of the windows at the end."""
    tokenizer = Tokenizer.open(tiny_folder.path / "tokenizer.json")
    windows = windows_of(on_text.files, tokenizer, WINDOW, on_text.tokens + UNSEEN)
    precision = calibrated.manifest.precision
    entry, promise = precision.calibration, precision.promise
    assert entry is not None and promise is not None
    assert (precision.name, entry.kind, entry.seed) == ("int4", "text", None)
    unseen = len(windows) // 4
    assert entry.tokens == WINDOW * (len(windows) - unseen)
    assert (promise.tokens, promise.max_kl, promise.max_bytes) == (WINDOW * unseen, None, None)
    full, rounded = (Session(folder, 1) for folder in (tiny_folder, calibrated))
    divergences = [
        mean_kl(*(session.all_logits(row, session.new_cache()) for session in (full, rounded)))
        for row in windows[-unseen:]
    ]
    assert promise.kl == pytest.approx(np.mean(divergences), rel=1e-2)


def test_a_graph_with_an_int8_cache_comes_with_it(calibrated: ModelFolder) -> None:
    assert INT8_KV_DECODER in calibrated.manifest.graphs
    session = Session(calibrated, 1, kv="int8")
    assert np.isfinite(session.step([1, 2, 3], session.new_cache())).all()


def test_roundings_that_make_up_for_each_other_lose_less(
    calibrated: ModelFolder, tiny_checkpoint: Path, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    source = open_checkpoint(tiny_checkpoint)
    plain = export_model(source, tmp_path / "plain", precision_of("int4"))
    assert plain.manifest.precision.calibration is None
    assert plain.manifest.precision.promise is None
    assert list(plain.manifest.graphs) == ["decoder"]
    ids = np.random.default_rng(0).integers(0, 300, WINDOW)
    sessions = [Session(folder, 1) for folder in (tiny_folder, plain, calibrated)]
    full, *others = (session.all_logits(ids, session.new_cache()) for session in sessions)
    before, after = (mean_kl(full, logits) for logits in others)
    assert after < 0.9 * before


def test_a_folder_in_full_precision_gives_the_same_bytes(
    calibrated: ModelFolder, tiny_folder: ModelFolder, on_text: Calibration, tmp_path: Path
) -> None:
    change = precision_of("int4", calibration=replace(on_text, folder=None))
    assert contents(export_model(tiny_folder, tmp_path / "out", change)) == contents(calibrated)


def test_a_dream_is_the_same_again(
    short_dreams: Calibration, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    found = []
    for name in ("one", "two"):
        dream = replace(short_dreams, folder=tmp_path / name)
        change = precision_of("int4", calibration=dream)
        found.append(export_model(tiny_folder, tmp_path / f"out-{name}", change))
    entry = found[0].manifest.precision.calibration
    assert entry is not None and (entry.kind, entry.seed) == ("dream", 0)
    assert contents(found[0]) == contents(found[1])


# What it keeps ----------------------------------------------------------------------------------


def test_kept_statistics_are_used_and_nothing_is_measured_again(
    calibrated: ModelFolder,
    tiny_folder: ModelFolder,
    on_text: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "_measure_part", measured_never)
    plan_of(calibrated).write(tmp_path / "plan.json")
    change = planned(Plan.read(tmp_path / "plan.json"), on_text)
    assert contents(export_model(tiny_folder, tmp_path / "out", change)) == contents(calibrated)


def test_what_lies_in_the_cache_goes_once_it_was_used_and_stays_after_an_error(
    on_text: Calibration,
    tiny_folder: ModelFolder,
    cache_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change = precision_of("int4", calibration=replace(on_text, folder=None, tokens=2049))
    cache = cache_folder / "calibration"
    messages: list[str] = []
    measure_part = measuring._measure_part

    def interrupted(work: Any, parts: Any, number: int, *others: Any) -> None:
        if number == 2:
            raise KeyboardInterrupt
        measure_part(work, parts, number, *others)

    monkeypatch.setattr(measuring, "_measure_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_model(tiny_folder, tmp_path / "out", change)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(measuring, "_measure_part", measure_part)
    observer = Observer(message=messages.append)
    export_model(tiny_folder, tmp_path / "out", change, observer=observer)
    assert "measured 2 of 4 parts of the model" in messages
    assert "measured 1 of 4 parts of the model" not in messages
    assert not list(cache.iterdir())


# Refused or told --------------------------------------------------------------------------------


def test_a_text_that_is_too_short_is_refused_with_what_is_needed(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("the sea " * 60)
    change = precision_of("int4", calibration=Calibration((tmp_path / "short.txt",)))
    with pytest.raises(RequestError, match=r"short.txt: found \d+ tokens .* at least 2,048:"):
        export_model(tiny_folder, tmp_path / "out", change)
    assert not (tmp_path / "out").exists()


def test_what_each_weight_could_be_is_kept_beside_the_statistics(
    calibrated: ModelFolder,
    tiny_folder: ModelFolder,
    on_text: Calibration,
    kept: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second budget measures nothing; what another version measured is measured again."""
    copied = replace(on_text, folder=Path(shutil.copytree(kept, tmp_path / "kept")))
    budget = Budget(max_bytes=3 * tiny_folder.weights_bytes // 4)
    first = export_model(tiny_folder, tmp_path / "first", within(budget, copied))
    file = tmp_path / "kept" / options_module.FILE
    assert file.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(options_module, "options_of", measured_never)
        second = export_model(tiny_folder, tmp_path / "second", within(budget, copied))
        assert contents(second) == contents(first)
        patch.setattr(options_module, "PROBE", "int4-block32")
        with pytest.raises(AssertionError, match="measured"):
            export_model(tiny_folder, tmp_path / "third", within(budget, copied))
    file.write_text(file.read_text().replace('"int4-block128",', "", 1))
    with pytest.raises(StatisticsError, match="options.json: found no complete record"):
        export_model(tiny_folder, tmp_path / "third", within(budget, copied))


def test_a_plan_is_calibrated_as_it_is_rotated(
    calibrated: ModelFolder, tiny_folder: ModelFolder, on_text: Calibration, tmp_path: Path
) -> None:
    """By its own seed and parts; what was measured of another rotation is refused."""
    other = Rotated(seed=1, parts=("R1",))
    plan = replace(plan_of(calibrated), rotation=other, calibration=None, promise=None)
    own = replace(on_text, folder=tmp_path / "own")
    export_model(tiny_folder, tmp_path / "out", planned(plan, own))
    found = Statistics.open(tmp_path / "own/statistics").hessian(UP)

    model = open_decoder(tiny_folder).model
    Rotation(other.seed, other.parts).apply(model)
    tokenizer = Tokenizer.open(tiny_folder.path / "tokenizer.json")
    windows = windows_of(on_text.files, tokenizer, WINDOW, on_text.tokens + UNSEEN)
    seen = windows[: len(windows) - len(windows) // 4]
    expected = measuring.measure(model, seen, tmp_path / "expected", {}).hessian(UP)
    assert found is not None and expected is not None
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(StatisticsError, match="found statistics of another rotation"):
        export_model(tiny_folder, tmp_path / "third", planned(plan, on_text))


def test_statistics_of_another_model_are_refused(
    calibrated: ModelFolder, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_windows", measured_never)  # it is found before
    config = gpt2_config(vocab_size=300, n_positions=WINDOW)
    source = open_checkpoint(write_checkpoint(tmp_path / "other", config))
    change = precision_of("int4", calibration=Calibration(folder=kept))
    with pytest.raises(StatisticsError, match="found statistics of another model .* choose a new"):
        export_model(source, tmp_path / "out", change)


def test_a_hessian_without_a_factor_is_told_and_its_weight_plainly_rounded(
    calibrated: ModelFolder,
    kept: Path,
    tiny_folder: ModelFolder,
    on_text: Calibration,
    tmp_path: Path,
) -> None:
    copied = Path(shutil.copytree(kept, tmp_path / "kept"))
    part, number = json.loads((copied / "statistics/statistics.json").read_text())["hessians"][UP]
    file = copied / f"statistics/hessian-{part:03}-{number}.npy"
    np.save(file, -np.load(file))
    change = precision_of("int4", calibration=replace(on_text, folder=copied))
    found = report_of(export_model(tiny_folder, tmp_path / "out", change))
    plain = report_of(export_model(tiny_folder, tmp_path / "plain", precision_of("int4")))
    for row, calibrated_row, plain_row in zip(
        found.tensors, report_of(calibrated).tensors, plain.tensors, strict=True
    ):
        if row.name == UP:
            assert row.reason == f"rounded to the nearest: {NOT_POSITIVE}"
            assert replace(row, reason=plain_row.reason) == plain_row
        else:
            assert row == calibrated_row


def test_fewer_bytes_than_there_can_be_are_refused_and_the_fewest_are_kept(
    on_text: Calibration, tmp_path: Path
) -> None:
    """Also of widths that no block divides, and where arrays begin on a page of the file."""
    config = gpt2_config(vocab_size=300, n_positions=WINDOW, n_embd=80, n_head=5, n_inner=368)
    source = open_checkpoint(write_checkpoint(tmp_path / "source", config))
    kept = replace(on_text, folder=tmp_path / "kept")
    with pytest.raises(RequestError, match="budget is 1,000 bytes, expected at least") as caught:
        export_model(source, tmp_path / "out", within(Budget(max_bytes=1000), kept))
    assert not (tmp_path / "kept").exists()  # before anything is measured
    fewest = int(str(caught.value).partition("at least ")[2].partition(":")[0].replace(",", ""))
    budget = Budget(max_bytes=fewest)
    folder = export_model(source, tmp_path / "out", within(budget, kept))
    assert folder.weights_bytes == fewest
    promise = folder.manifest.precision.promise
    assert promise is not None and promise.max_bytes == fewest


def test_a_promise_is_kept_on_what_was_not_calibrated_on(
    calibrated: ModelFolder,
    tiny_folder: ModelFolder,
    on_text: Calibration,
    few_plans: None,
    tmp_path: Path,
) -> None:
    given = calibrated.manifest.precision.promise
    assert given is not None
    change = within(Budget(max_kl=given.kl), on_text)
    folder = export_model(tiny_folder, tmp_path / "out", change)
    promise = folder.manifest.precision.promise
    assert promise is not None and promise.kl <= given.kl == promise.max_kl
    assert folder.weights_bytes < tiny_folder.weights_bytes


# The command line -------------------------------------------------------------------------------


def test_an_export_in_int4_calibrates_where_that_takes_not_long(
    short_dreams: Calibration,
    tiny_checkpoint: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["export", tiny_checkpoint, tmp_path / "out", "--precision", "int4", "--force"]
    for seconds, told in ((600.0, "dreamt 960 of 960 tokens"), (0.0, "not calibrated: it would ")):
        monkeypatch.setattr(options, "AUTOMATIC", replace(short_dreams, most_seconds=seconds))
        ended = run(*command)
        assert ended.code == 0 and told in ended.err
        calibration = ModelFolder.open(tmp_path / "out").manifest.precision.calibration
        assert (calibration is not None) == bool(seconds)
    assert "to do it all the same, say: --calibrate dream" in ended.err


def test_a_dry_run_tells_what_calibrating_would_take(
    tiny_checkpoint: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", tiny_checkpoint, tmp_path / "out", "--dry-run", "--precision"]
    assert "\n  calibration   about " in run(*command, "int4").out
    assert "calibration" not in run(*command, "int4", "--calibrate", "none").out
    assert "calibration" not in run(*command, "int8").out
    monkeypatch.setattr(options, "AUTOMATIC", Calibration(most_seconds=0))
    left_out = "calibration   left out unless you say --calibrate dream: about "
    assert left_out in run(*command, "int4").out
    found = json.loads(run(*command, "int4", "--json").out)["calibration"]
    assert found["left_out"] and found["seconds"] > 0 and found["disk_bytes"] > 0


def test_a_traced_graph_is_calibrated_only_if_that_can_be(run: Run, tmp_path: Path) -> None:
    folder = traced_folder(tmp_path / "traced", LLAMA, rewrite=True)
    command = ["quantize", folder.path, tmp_path / "out", "--to", "int4"]
    assert_refused(run(*command, "--calibrate", "dream"), "cannot be calibrated: found a traced")
    assert not (tmp_path / "out").exists()
    ended = run(*command)
    assert ended.code == 0 and "not calibrated: found a traced graph" in ended.err
    assert ModelFolder.open(tmp_path / "out").manifest.precision.promise is None


REFUSED: dict[str, tuple[list[str], str]] = {
    "no nats": (["--max-kl", "0"], "found --max-kl 0, expected a number of nats above 0"),
    "not a number of nats": (["--max-kl", "nan"], "found --max-kl nan, expected a number of nats"),
    "no size": (["--max-bytes", "80 cows"], "found the size '80 cows', expected a number above 0"),
    "a budget that nothing is measured for": (
        ["--max-kl", "0.1", "--calibrate", "none"],
        "found --calibrate none with --max-kl, expected dream or a text: the search has to measure",
    ),
    "statistics of nothing": (
        ["--to", "int4", "--calibrate", "none", "--statistics", "folder"],
        "found --statistics with --calibrate none, expected one of them",
    ),
    "two kinds": (
        ["--to", "int4", "--calibrate", "none", "--calibrate", "text.txt"],
        "found --calibrate none with another, expected dream, none or files",
    ),
    "two budgets": (
        ["--max-kl", "0.1", "--max-bytes", "80MB"],
        "found --max-kl and --max-bytes, expected one of them",
    ),
    "a plan and a budget": (
        ["--plan", "plan.json", "--max-bytes", "80MB"],
        "found --plan and --max-bytes, expected one of them",
    ),
    "a budget and a head": (
        ["--max-kl", "0.1", "--head", "int4"],
        "found --head with --max-kl, expected it left to the search",
    ),
    "no text": (
        ["--to", "int4", "--calibrate", "nowhere.txt"],
        "found --calibrate nowhere.txt, expected dream, none or a text; there is no such file",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(
    name: str, run: Run, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    arguments, told = REFUSED[name]
    assert_refused(run("quantize", tiny_folder.path, tmp_path / "out", *arguments), told)
    assert not (tmp_path / "out").exists()


def test_full_precision_is_not_calibrated(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    ended = run("export", tiny_checkpoint, tmp_path / "out", "--calibrate", "dream")
    assert_refused(ended, "found --calibrate with fp32, expected it with a precision that rounds")
