"""The figures of ``measure_quality``, and the sentences that belong above and below them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..figures import Figure

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
    documents, skipped = _documents(quality)
    divided = documents + skipped > len(quality["texts"])
    noun = "document" if divided else "text"
    count = f"{documents:,} document{'s' * (documents != 1)}, " if divided else ""
    more = f"; {skipped:,} more {noun}{'s have' if skipped > 1 else ' has'} no token to score"
    return (
        f"{names}: {count}{quality['tokens']:,} tokens, "
        f"{quality['bytes']:,} bytes, {quality['words']:,} words{more if skipped else ''}; window "
        f"{quality['window']:,}, stride {quality['stride']:,} tokens; a {noun} {beginning}"
    )


def _documents(quality: dict[str, Any]) -> tuple[int, int]:
    """Scored and skipped; of results that were saved when a text was always one document too."""
    return quality.get("documents", len(quality["texts"])), quality.get("skipped_documents", 0)


def reference_sentence(quality: dict[str, Any]) -> str:
    """What ± is, and KL and Δp if there is a model beside the reference."""
    clusters = quality.get("clusters", "windows")
    error = f"± one standard error, between {quality[clusters]:,} {clusters}"
    if quality[clusters] == 1:
        error = f"a single {clusters[:-1]}, so no standard errors"
    if len(quality["models"]) == 1:
        return error
    name = quality["models"][0]["model"]
    return (
        f"KL({name} ‖ model) in nats per token; Δp: of the true token's probability, in percentage "
        f"points; {error}"
    )


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
