"""What ``pocketlm bench --output json`` prints, made up: the demo model in some precisions."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

TESTS = (("pp512", "prefill", 512, 0, 0), ("tg128", "decode", 0, 128, 0))
MORE_TESTS = (*TESTS, ("tg128 @ d512", "decode", 0, 128, 512), ("pp512+tg128", "both", 512, 128, 0))
# disk bytes, relative speed of prefill and decode, mean KL, relative weight error
MODELS = {
    "fp32": (30_315_368, 1.0, 1.0, 0.0, 0.0),
    "int8": (8_569_901, 1.9, 2.6, 0.0021, 0.0153),
    "int4": (5_430_019, 0.8, 4.6, 0.0413, 0.1004),
}
PARAMETERS = 7_498_240


def estimate(value: float, spread: float = 0.02, repetitions: int = 5) -> dict[str, float]:
    """An Estimate; one repetition has no interval."""
    if repetitions == 1:
        return {"median": value, "low": value, "high": value, "confidence": 0.0}
    low, high = value * (1 - spread), value * (1 + 1.3 * spread)
    return {"median": value, "low": low, "high": high, "confidence": 0.9375}


def mean(value: float, error: float | None) -> dict[str, float | None]:
    """A Mean."""
    return {"value": value, "standard_error": error}


def bench_results(
    models: dict[str, tuple[int, float, float, float, float]] | None = None,
    tests: Sequence[tuple[str, str, int, int, int]] = MORE_TESTS,
    repetitions: int = 5,
    quality: bool = True,
    energy: bool = False,
) -> dict[str, Any]:
    """Results of the models, the first being the reference; the same each time."""
    models = MODELS if models is None else models
    chance = random.Random(0)
    names = list(models)
    return {
        "format": 1,
        "verdict": [_verdict(name, *models[name]) for name in names[1:]],
        "reference": names[0],
        "circumstances": _circumstances(repetitions),
        "models": [_model(name, repetitions, *models[name]) for name in names],
        "speed": [
            _speed(name, test, repetitions, energy, models[name], name == names[0])
            for test in tests
            for name in names
        ],
        "quality": _quality(models, chance) if quality else None,
        "failed": [],
        "interrupted": None,
    }


def _verdict(
    name: str, disk: int, prefill: float, decode: float, kl: float, weight_error: float
) -> str:
    smaller = MODELS["fp32"][0] / disk
    return (
        f"{name} is {decode:.1f}× faster at tg128 than fp32, {smaller:.1f}× smaller; "
        f"it disagrees with fp32 on 1 token in {round(1 / _disagreement(kl)):,}"
    )


def _disagreement(kl: float) -> float:
    return 0.12 * math.sqrt(kl) + 1e-9


def _circumstances(repetitions: int) -> dict[str, Any]:
    return {
        "cpu": "Intel(R) Xeon(R) Processor @ 2.60GHz",
        "features": ["avx2", "avx512f", "avx512_vnni"],
        "cores": 2,
        "threads": 2,
        "memory_bytes": 25_180_000_000,
        "system": "Linux x86_64",
        "python": "3.11.2",
        "onnxruntime": "1.31.0",
        "numpy": "2.4.1",
        "pocketlm": "0.1.0",
        "command": "pocketlm bench out-fp32/ out-int8/ out-int4/ --text held-out.txt --html r.html",
        "started": "2026-11-25T14:00:00+00:00",
        "load_average": {"before": 0.12, "after": 1.87},
        "other_cores_busy": 0.03,
        "busy": None,
        "read_bandwidth": {"2": 21_437_000_000.0},
        "repetitions": repetitions,
        "warmup": 1,
    }


def _model(
    name: str,
    repetitions: int,
    disk: int,
    prefill: float,
    decode: float,
    kl: float,
    weight_error: float,
) -> dict[str, Any]:
    weights = disk - 310_000
    layers = ["embedding", *(f"h.{i}" for i in range(8))]
    return {
        "name": name,
        "path": f"out-{name}",
        "precision": name[-4:],
        "kv": "fp32",
        "prefill": "none",
        "architecture": "gpt2",
        "parameters": PARAMETERS,
        "context_length": 512,
        "disk_bytes": disk,
        "weights_bytes": weights,
        "bits_per_weight": 8 * weights / PARAMETERS,
        "load": estimate(0.031 + disk / 1e9, 0.08, repetitions),
        "first_token": estimate(0.214 + disk / 5e8, 0.05, repetitions),
        "peak_rss_bytes": 92_000_000 + int(1.6 * disk),
        "weight_errors": [
            {
                "layer": layer,
                "relative_error": weight_error
                * (0.07 if place == 0 else 1 + 0.05 * math.sin(place)),
                "bits_per_weight": 8.25 if place == 0 else 4.25,
            }
            for place, layer in enumerate(layers)
        ]
        if weight_error
        else [],
    }


def _speed(
    name: str,
    test: tuple[str, str, int, int, int],
    repetitions: int,
    energy: bool,
    model: tuple[int, float, float, float, float],
    is_reference: bool,
) -> dict[str, Any]:
    title, kind, prompt, generation, depth = test
    disk, prefill, decode, _, _ = model
    ratio = {"prefill": prefill, "decode": decode, "both": (prefill + decode) / 2}[kind]
    full = {"prefill": 5210.0, "decode": 196.4, "both": 702.0}[kind] / (1 + depth / 1500)
    rate = ratio * full
    return {
        "model": name,
        "test": title,
        "kind": kind,
        "prompt": prompt,
        "generation": generation,
        "depth": depth,
        "batch": 256,
        "threads": 2,
        "tokens_per_second": estimate(rate, 0.021, repetitions),
        "spread": 0.0173 if repetitions > 1 else 0.0,
        "ratio": None if is_reference else estimate(ratio, 0.013, repetitions),
        "bytes_per_token": disk + depth * 16_384 if kind == "decode" else None,
        "roofline": rate * disk / 21.4e9 if kind == "decode" else None,
        "joules_per_token": estimate(21.0 / rate, 0.05, repetitions) if energy else None,
        "samples": [(prompt + generation) / rate * (1 + 0.01 * i) for i in range(repetitions)],
    }


def _quality(
    models: dict[str, tuple[int, float, float, float, float]], chance: random.Random
) -> dict[str, Any]:
    names = list(models)
    return {
        "texts": ["held-out.txt"],
        "tokens": 98_304,
        "bytes": 371_220,
        "words": 70_551,
        "window": 512,
        "stride": 256,
        "windows": 384,
        "self_check": {"model": names[0], "kl": 0.0, "tokens": 1_023},
        "models": [_quality_of(name, models[name][3], name == names[0], chance) for name in names],
    }


def _quality_of(name: str, kl: float, is_reference: bool, chance: random.Random) -> dict[str, Any]:
    loss = 3.4127 + 0.4 * kl
    along = [
        {
            "position": (i + 0.5) / 100,
            "kl": None if is_reference else kl * math.exp(chance.gauss(0, 0.25)),
            "loss": loss + chance.gauss(0, 0.3),
        }
        for i in range(100)
    ]
    return {
        "model": name,
        "perplexity": {
            "token": mean(math.exp(loss), 0.213),
            "byte": mean(math.exp(loss / 3.78), 0.0043),
            "word": mean(math.exp(loss * 1.39), 1.31),
        },
        "loss": mean(loss, 0.0071),
        "bits_per_byte": loss / math.log(2) / 3.78,
        "against": None
        if is_reference
        else {
            "kl": {
                "mean": mean(kl, kl / 90),
                "median": mean(kl / 2.3, kl / 200),
                "p99": mean(kl * 8.1, kl / 5),
                "max": kl * 42,
            },
            "top1_agreement": mean(1 - _disagreement(kl), 0.0004),
            "top5_overlap": mean(1 - 0.8 * _disagreement(kl), 0.0002),
            "delta_p": {
                "mean": mean(-kl / 40, kl / 300),
                "mean_absolute": mean(math.sqrt(kl) / 12, kl / 300),
                "p99_absolute": mean(math.sqrt(kl) / 1.7, kl / 20),
            },
        },
        "along": along,
        "examples": [] if is_reference or not kl else [_example(i, kl) for i in range(8)],
    }


CONTEXTS = (
    ("It was late, and the rain had not stopped since noon. She put the letter on the", " table"),
    ("“You cannot mean it,” said he.\n\n“I do mean it,” said the", " old"),
    ("CHAPTER XII.\n\nIn which the captain, who had been asleep,", " wakes"),
    ("and from the window of the second floor one saw the whole of the", " harbour"),
)


def _example(place: int, kl: float) -> dict[str, Any]:
    context, true = CONTEXTS[place % len(CONTEXTS)]
    top = [[true, 0.31], [" ground", 0.22], ["\n", 0.08], [" man", 0.05], [" “", 0.03]]
    return {
        "context": f"{context}",
        "true": true,
        "reference": top,
        "model": [
            [" door", 0.28],
            [true, 0.19],
            [" ground", 0.17],
            [" sea", 0.06],
            [" fire", 0.04],
        ],
        "kl": kl * (42 - 3 * place),
        "position": 0.07 + 0.11 * place,
    }
