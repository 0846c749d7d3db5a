"""The page of a comparison with other runtimes: charts of those that lose something, and words."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from pocketlm.benchmarks.html.runtimes import loss_charts
from pocketlm.benchmarks.peers.report import html
from pocketlm.benchmarks.peers.table import markdown

# runtime, precision, level, bytes per token, tokens/s, KL
ROWS = (
    ("pocketlm", "fp32", "fp32", 500e6, 50.0, 0.0),
    ("pocketlm", "int8", "int8", 130e6, 200.0, 0.03),
    ("llama.cpp", "Q8_0", "int8", 140e6, 110.0, 0.004),
    ("llama.cpp", "Q4_0", "int4", None, None, 0.3),
    ("<b>", "int4", "int4", 90e6, 300.0, None),
)


def row(
    peer: str, precision: str, level: str, read: float | None, rate: float | None, kl: float | None
) -> dict[str, Any]:
    mean = {"value": kl, "standard_error": 0.001}
    lost = {"kl": {"mean": mean, "p99": mean}, "top1_agreement": mean}
    figures = {"tokens_per_second": {"median": rate}, "ratio": None, "samples": [1.0]}
    return {
        "peer": peer,
        "version": "1.0",
        "precision": precision,
        "level": level,
        "weights_bytes": 95_000_000,
        "bits_per_weight": 5.0,
        "load_seconds": 1.0,
        "tests": {"pp512": None, "tg128": None if rate is None else figures},
        "peak_rss_bytes": 1000,
        "agreement": 1.0,
        "quality": None if kl is None else {"against": lost, "perplexity": {"token": mean}},
        "unscored": "its API gives no logits" if kl is None else None,
        "bytes_per_token": read,
        "failure": None,
        "note": "",
        "beside": [],
    }


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """What ``peers`` writes of one checkpoint."""
    about = {
        "cpu": "x",
        "features": [],
        "cores": 2,
        "threads": 2,
        "onnxruntime": "1",
        "python": "3",
    }
    about |= {"busy": None, "command": "peers", "repetitions": 3}
    about["load_average"] = {"before": 0.1, "after": 0.2}
    return {
        "name": "model",
        "parameters": 10**8,
        "circumstances": about,
        "quality": None,
        "interrupted": False,
        "tests": ["pp512", "tg128"],
        "rows": [row(*one) for one in ROWS],
    }


def test_charts_hold_what_was_measured_and_say_it_in_words(results: dict[str, Any]) -> None:
    by_bytes, by_speed = loss_charts(results, "0")
    assert [by_bytes.title, by_speed.title] == ["Divergence over bytes", "Divergence over speed"]
    spoken = ElementTree.fromstring(by_bytes.svg).findtext("desc") or ""
    assert spoken.split("; ") == [
        "pocketlm int8: 130 MB of weights read per token, 0.0300 nats",
        "llama.cpp Q8_0: 140 MB of weights read per token, 0.00400 nats",
        "llama.cpp Q4_0: 95.0 MB of weights read per token, 0.300 nats.",  # by its file
    ]
    spoken = ElementTree.fromstring(by_speed.svg).findtext("desc") or ""
    assert "pocketlm int8: 200 tokens/s at tg128, 0.0300 nats" in spoken
    assert "Q4_0" not in spoken and "fp32" not in spoken
    for name in ("int8", "Q8_0", "Q4_0"):
        assert f">{name}</text>" in by_bytes.svg


def test_without_quality_there_is_no_chart_and_no_column(results: dict[str, Any]) -> None:
    rows = [one | {"quality": None} for one in results["rows"]]
    plain = results | {"rows": rows}
    assert loss_charts(plain, "0") == []
    assert "MB/token" in markdown(results) and "MB/token" not in markdown(plain)


def test_the_page_is_one_document_and_escapes_names(results: dict[str, Any]) -> None:
    page = html([results, results | {"name": "<i>other</i>"}])
    assert page == html([results, results | {"name": "<i>other</i>"}])
    assert "&lt;i&gt;other&lt;/i&gt;" in page and "<i>other" not in page
    assert "&lt;b&gt;" in page and "<b>" not in page
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    assert "pp512" not in page  # which nobody ran
