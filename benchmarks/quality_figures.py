"""The figures of ``measure_quality``, and the sentences that belong above and below them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .figures import Figure

SECTION = "quality"


def self_check_sentence(quality: dict[str, Any]) -> str:
    """What comes first: whether the comparison can be trusted."""
    check = quality["self_check"]
    name = check["model"]
    return (
        f"self-check: KL({name} ‖ {name}) = {check['kl']:g} over {check['tokens']:,} tokens "
        f"({check['kl_other_text']:.2f} on another text)"
    )


def text_sentence(quality: dict[str, Any]) -> str:
    """What the figures are of."""
    names = ", ".join(Path(text).name for text in quality["texts"])
    start = quality["start_token"]
    beginning = (
        f"begins with {start}"
        if start is not None
        else "has no start token: its first token is not scored"
    )
    return (
        f"{names}: {quality['tokens']:,} tokens, {quality['bytes']:,} bytes, "
        f"{quality['words']:,} words; window {quality['window']:,}, stride {quality['stride']:,} "
        f"tokens; a text {beginning}"
    )


def reference_sentence(quality: dict[str, Any]) -> str:
    """What ± is, and KL and Δp if there is a model beside the reference."""
    error = f"± one standard error, between {quality['windows']:,} windows"
    if len(quality["models"]) == 1:
        return error
    name = quality["models"][0]["model"]
    return f"KL({name} ‖ model) in nats per token; Δp: of the true token; {error}"


def quality_figures(quality: dict[str, Any]) -> Iterator[Figure]:
    """All figures, measure by measure for each model."""
    item = " + ".join(Path(text).name for text in quality["texts"])
    for entry in quality["models"]:
        for measure, mean, percent in _means(entry):
            yield Figure.mean(SECTION, item, measure, entry["model"], mean, percent)


def _means(entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    perplexity, against = entry["perplexity"], entry["against"]
    yield "perplexity per token", perplexity["token"], False
    yield "perplexity per byte", perplexity["byte"], False
    yield "perplexity per word", perplexity["word"], False
    yield "bits per byte", {"value": entry["bits_per_byte"], "standard_error": None}, False
    if against is None:
        return
    kl, delta = against["kl"], against["delta_p"]
    yield "KL mean", kl["mean"], False
    yield "KL median", kl["median"], False
    yield "KL p99", kl["p99"], False
    yield "KL max", {"value": kl["max"], "standard_error": None}, False
    yield "top-1 agreement", against["top1_agreement"], True
    yield "top-5 overlap", against["top5_overlap"], True
    yield "Δp mean", delta["mean"], True
    yield "|Δp| mean", delta["mean_absolute"], True
    yield "|Δp| p99", delta["p99_absolute"], True
