"""The whole bench: models go in; speed, quality, a verdict and the circumstances come out.

One dict of what JSON knows (unknown is None, sizes in bytes, times in seconds, divergences in
nats), from which the tables, ``--output json`` and the report are made:

    verdict         a sentence per model but the reference
    reference       the first model: ratios and divergences are against it
    circumstances   ``describe_machine``, load average, what others used, bandwidth, repetitions
    models          size, load, first token, memory, rounding errors per layer
    speed           a row per test and model: ``Estimate`` of the rate, paired ratio, roofline
    quality         what ``quality`` measures over ``--text``; None without
    failed          models whose process died, how, and the exit code for it
    interrupted     None, or how many rounds of how many there are, and in which phase it was
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..export.folder import ModelFolder
from .intervals import estimate, paired_ratio, spread
from .machine import CpuWatch, OthersUse, busy_sentence, describe_machine, load_average
from .quality.measure import measure_quality
from .quality.plan import check_texts
from .session_variant import PLAIN, Variant
from .speed.bandwidth import read_bandwidth
from .speed.measure import Recording, Sample, SpeedTest, measure, thread_counts
from .speed.roofline import kv_bytes_per_token, weight_bytes_per_token
from .weight_errors import weight_errors

FORMAT = 1
MANY = 0.3  # of the tokens: above that "1 in 3" would be too coarse
# What is under way: {"phase": "speed" or "quality", …} with what a progress bar may show.
OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class BenchPlan:
    """What to measure on which folders, by their unique names; the first is the reference."""

    folders: dict[str, ModelFolder]
    tests: Sequence[SpeedTest]
    repetitions: int = 9
    warmup: int = 1
    variants: Mapping[str, Variant] = field(default_factory=dict)  # by name; the others are plain
    texts: Sequence[Path] = ()  # to compare the models on; none: speed only
    window: int | None = None  # tokens, as are the next two: see ``quality``
    stride: int | None = None
    limit: int | None = None
    split: str | None = None  # what stands between the documents of a text


def run_bench(plan: BenchPlan, on_event: OnEvent = lambda event: None) -> dict[str, Any]:
    """Measures and returns the dict above: speed first, then, alone in memory, quality.

    Ctrl-C ends the measuring: what is there of complete rounds is returned, and ``interrupted``
    says so; before there is any, KeyboardInterrupt is raised. Raises RequestError for texts that
    will not do, before any work, and WorkerDied when no model is left.
    """
    if plan.texts:
        check_texts(plan.folders, plan.texts, **_windows(plan))
    recording = Recording()
    circumstances = _begin(plan)
    watch = CpuWatch()
    interrupted = None
    try:
        _measure_speed(plan, recording, circumstances["read_bandwidth"], on_event)
    except KeyboardInterrupt:
        if not recording.rounds:
            raise
        interrupted = "speed"
    _end(circumstances, watch.stop())
    results = _results(plan, recording, circumstances)
    if plan.texts and not interrupted:
        try:
            results["quality"] = _measure_quality(plan, results, on_event)
        except KeyboardInterrupt:
            interrupted = "quality"
    if interrupted:
        of = plan.repetitions * len(thread_counts(plan.tests))
        results["interrupted"] = {"phase": interrupted, "rounds": recording.rounds, "of": of}
    results["verdict"] = verdict(results)
    return results


def _measure_speed(
    plan: BenchPlan, recording: Recording, bandwidth: dict[str, float], on_event: OnEvent
) -> None:
    _measure_bandwidth(plan, bandwidth, on_event)
    measure(
        {name: folder.path for name, folder in plan.folders.items()},
        plan.tests,
        plan.repetitions,
        recording,
        warmup=plan.warmup,
        variants=plan.variants,
        on_progress=lambda done, total, what: on_event(
            {"phase": "speed", "done": done, "total": total, "what": what}
        ),
    )
    _measure_bandwidth(plan, bandwidth, on_event)


def _measure_quality(plan: BenchPlan, results: dict[str, Any], on_event: OnEvent) -> dict[str, Any]:
    """Of the models that are left, with the threads of the first test."""
    names = [model["name"] for model in results["models"]]
    return measure_quality(
        {name: plan.folders[name] for name in names},
        plan.texts,
        **_windows(plan),
        variants=plan.variants,
        threads=plan.tests[0].threads,
        on_progress=lambda share, value: on_event(
            {"phase": "quality", "done": share, "total": 1.0, "what": value}
        ),
    )


def _windows(plan: BenchPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in ("window", "stride", "limit", "split")}


def _measure_bandwidth(plan: BenchPlan, best: dict[str, float], on_event: OnEvent) -> None:
    """By number of threads; before and after the tests, since others may slow down either."""
    on_event({"phase": "bandwidth"})
    for threads in thread_counts(plan.tests):
        best[str(threads)] = max(read_bandwidth(threads), best.get(str(threads), 0.0))


def _begin(plan: BenchPlan) -> dict[str, Any]:
    return {
        **describe_machine(plan.tests[0].threads),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": {"before": load_average(), "after": None},
        "read_bandwidth": {},
        "repetitions": plan.repetitions,
        "warmup": plan.warmup,
    }


def _end(circumstances: dict[str, Any], others: OthersUse | None) -> None:
    """Adds what is known once the speed has been measured."""
    load = circumstances["load_average"]
    load["after"] = load_average()
    circumstances |= {
        "other_cores_busy": others.other_cores if others else None,
        "stolen_cores": others.stolen_cores if others else None,
        "busy": busy_sentence(others, load["before"]),
    }


def _results(
    plan: BenchPlan, recording: Recording, circumstances: dict[str, Any]
) -> dict[str, Any]:
    names = [name for name in plan.folders if name not in recording.failed]
    if not names:
        raise next(iter(recording.failed.values()))
    return {
        "format": FORMAT,
        "verdict": [],
        "reference": names[0],
        "circumstances": circumstances,
        "models": [
            describe_model(name, plan.folders[name], recording, plan.variants.get(name, PLAIN))
            for name in names
        ],
        "speed": _speed(plan, names, recording, circumstances["read_bandwidth"]),
        "quality": None,
        "failed": [
            {"model": name, "error": str(error), "exit_code": error.exit_code}
            for name, error in recording.failed.items()
        ],
        "interrupted": None,
    }


def describe_model(
    name: str, folder: ModelFolder, recording: Recording, variant: Variant = PLAIN
) -> dict[str, Any]:
    """What the folder is, and what it took to open it."""
    starts = recording.cold_starts[name]
    return describe_folder(name, folder) | {
        "kv": variant.kv,
        "prefill": variant.prefill,
        "load": estimate([start.load_seconds for start in starts]).to_json(),
        "first_token": estimate([start.first_token_seconds for start in starts]).to_json(),
        "peak_rss_bytes": recording.peak_rss_bytes(name),
        "weight_errors": weight_errors(folder),
    }


def describe_folder(name: str, folder: ModelFolder) -> dict[str, Any]:
    """What the folder is, as far as its files say."""
    manifest = folder.manifest
    return {
        "name": name,
        "path": str(folder.path),
        "precision": manifest.precision.name,
        "architecture": manifest.architecture,
        "parameters": manifest.num_parameters,
        "context_length": folder.shape.context_length,
        "disk_bytes": sum(entry.bytes for entry in folder.files.values()),
        "weights_bytes": folder.weights_bytes,
        "bits_per_weight": 8 * folder.weights_bytes / manifest.num_parameters,
        "weight_bytes_per_token": weight_bytes_per_token(folder),
    }


def _speed(
    plan: BenchPlan, names: Sequence[str], recording: Recording, bandwidth: dict[str, float]
) -> list[dict[str, Any]]:
    """A row per test that has samples, and model."""
    weights = {name: weight_bytes_per_token(plan.folders[name]) for name in names}
    rows = []
    for test in plan.tests:
        reference = recording.samples.get((names[0], test))
        if reference is None:
            continue
        for name in names:
            row = _row(name, test, recording.samples[name, test])
            if name != names[0]:
                row["ratio"] = paired_ratio(
                    _rates(test, recording.samples[name, test]), _rates(test, reference)
                ).to_json()
            if test.kind == "decode":
                held = plan.variants.get(name, PLAIN).kv
                kv = kv_bytes_per_token(plan.folders[name], test.depth, test.generation, held)
                row |= _roofline(row, weights[name] + kv, bandwidth[str(test.threads)])
            rows.append(row)
    return rows


def _row(name: str, test: SpeedTest, samples: Sequence[Sample]) -> dict[str, Any]:
    rates = _rates(test, samples)
    joules = [sample.joules for sample in samples if sample.joules is not None]
    return {
        "model": name,
        "test": test.name,
        "kind": test.kind,
        "prompt": test.prompt,
        "generation": test.generation,
        "depth": test.depth,
        "batch": test.batch,
        "threads": test.threads,
        "tokens_per_second": estimate(rates).to_json(),
        "spread": spread(rates),
        "ratio": None,
        "bytes_per_token": None,
        "roofline": None,
        "joules_per_token": estimate([j / test.tokens for j in joules]).to_json()
        if joules
        else None,
        "outside_kernel": estimate([s.outside_kernel for s in samples]).to_json(),
        "samples": [sample.seconds for sample in samples],
    }


def _rates(test: SpeedTest, samples: Sequence[Sample]) -> list[float]:
    return [test.tokens / sample.seconds for sample in samples]


def _roofline(row: dict[str, Any], bytes_per_token: float, bandwidth: float) -> dict[str, Any]:
    """Share of the read bandwidth that a median token's bytes make.

    More than 1 is possible: weights that stay in the cache are not read from memory.
    """
    rate = row["tokens_per_second"]["median"]
    return {
        "bytes_per_token": round(bytes_per_token),
        "roofline": bytes_per_token * rate / bandwidth,
    }


def verdict(results: dict[str, Any]) -> list[str]:
    """A sentence per model but the reference: speed, size, and what it answers differently.

    The speed is that of the first test that generates, else of the first.
    """
    reference = results["reference"]
    models = {model["name"]: model for model in results["models"]}
    rows = results["speed"]
    if not rows:
        return []
    first = next((row for row in rows if row["kind"] == "decode"), rows[0])
    key = ("test", "batch", "threads")
    shown = [row for row in rows if all(row[k] == first[k] for k in key)]
    quality = {m["model"]: m for m in (results["quality"] or {"models": []})["models"]}
    sentences = []
    for row in shown:
        name = row["model"]
        if name == reference:
            continue
        text = f"{name} is {_faster(row['ratio'])} {reference} at {row['test']}, "
        text += _smaller(models[reference]["disk_bytes"] / models[name]["disk_bytes"])
        against = quality.get(name, {}).get("against")
        if against is not None:
            text += f"; {_disagreement(reference, against['top1_agreement']['value'])}"
        sentences.append(text)
    return sentences


def _faster(ratio: dict[str, float]) -> str:
    median = ratio["median"]
    if ratio["low"] <= 1 <= ratio["high"] or abs(median - 1) < 0.005:
        return "about as fast as"
    return f"{_times(median)} faster than" if median > 1 else f"{_times(1 / median)} slower than"


def _smaller(ratio: float) -> str:
    if 0.99 < ratio < 1.01:
        return "as large"
    return f"{_times(ratio)} smaller" if ratio > 1 else f"{_times(1 / ratio)} larger"


def _times(factor: float) -> str:
    """4.6×; 1.04× where one digit would say 1.0×."""
    return f"{factor:.2f}×" if factor < 1.1 else f"{factor:.1f}×"


def _disagreement(reference: str, agreement: float) -> str:
    share = 1 - agreement
    if share <= 0:
        return f"it agrees with {reference} on every token"
    if share > MANY:
        return f"it disagrees with {reference} on {100 * share:.0f} % of the tokens"
    return f"it disagrees with {reference} on 1 token in {1 / share:,.0f}"
