"""The HTML report: complete, self-contained, harmless with hostile text, and written whole."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from bench_results import MODELS, MORE_TESTS, TESTS, bench_results

from pocketlm.benchmarks import report
from pocketlm.benchmarks.report import html, open_report, write_report
from pocketlm.export.errors import MissingExtraError, RequestError

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{ 7 * 7 }}$x^2$"
ODD = "a\x00b\x1b[31m\u202ec\udce9d\n"
LARGEST = 300_000  # bytes, for three models


class Page(HTMLParser):
    """Elements, attributes and visible text of a page; fails where tags do not match."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.style = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.style += data
        elif "head" not in self._open and data.strip():
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        """All that can be read."""
        return " ".join(self.texts)


def ten_models() -> dict[str, Any]:
    models = {
        f"llama-3.2-1b-instruct-with-a-long-name-{i}-int4": (
            *(30_000_000 - 2_000_000 * i, 1 + 0.2 * i, 1 + 0.4 * i),
            *(0.001 * 2**i if i else 0.0, 0.01 * i),
        )
        for i in range(10)
    }
    many = [(f"tg{n}", "decode", 0, n, 0) for n in (1, 2)]
    return bench_results(models, [*MORE_TESTS, *many], energy=True)


def nothing_known() -> dict[str, Any]:
    """Every figure that may be missing is."""
    results = bench_results()
    for model in results["models"]:
        model |= dict.fromkeys(("load", "first_token", "peak_rss_bytes", "disk_bytes"))
        model["weight_errors"] = []
    for row in results["speed"]:
        row |= dict.fromkeys(("ratio", "roofline", "bytes_per_token", "joules_per_token"))
    results["circumstances"] |= dict.fromkeys(("other_cores_busy", "load_average", "cpu"))
    for entry in results["quality"]["models"]:
        entry |= {"along": [], "examples": [], "bits_per_byte": None}
        entry["perplexity"]["word"] = None
    return results


def hostile() -> dict[str, Any]:
    """Markup and control characters wherever text comes from outside."""

    def poisoned(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: poisoned(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [poisoned(inner, key) for inner in value]
        if isinstance(value, str) and key != "kind":
            return f"{value}{HOSTILE}{ODD}"
        return value

    results: dict[str, Any] = poisoned(bench_results(), "")
    results["circumstances"]["busy"] = HOSTILE + ODD
    results["failed"] = [{"model": HOSTILE, "error": HOSTILE + ODD}]
    return results


def without_loss() -> dict[str, Any]:
    """A model compared with its copy."""
    return bench_results({"fp32": MODELS["fp32"], "copy": MODELS["fp32"]})


RESULTS: dict[str, Callable[[], dict[str, Any]]] = {
    "three models": bench_results,
    "one model": lambda: bench_results({"fp32": MODELS["fp32"]}),
    "one model, speed only": lambda: bench_results({"fp32": MODELS["fp32"]}, quality=False),
    "no quality": lambda: bench_results(quality=False),
    "one repetition": lambda: bench_results(repetitions=1, tests=TESTS),
    "no speed": lambda: bench_results(tests=()),
    "ten models": ten_models,
    "nothing known": nothing_known,
    "hostile": hostile,
    "no loss": without_loss,
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: html(make()) for name, make in RESULTS.items()}


@pytest.mark.parametrize("name", RESULTS)
def test_a_page_needs_nothing_but_itself(name: str, pages: dict[str, str]) -> None:
    page = Page(pages[name])
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "image", "base"}
    values = [value for _, value in page.attributes]
    assert not [value for value in [*values, page.style] if re.search(r"//|@import", value)]
    assert not [key for key, _ in page.attributes if key in ("src", "srcset", "xmlns")]
    assert all(value.startswith("#") for key, value in page.attributes if key == "href")
    assert "url(" not in page.style
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


@pytest.mark.parametrize("name", RESULTS)
def test_every_id_that_is_referred_to_exists_once(name: str, pages: dict[str, str]) -> None:
    page = Page(pages[name])
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    referred = {
        found
        for key, value in page.attributes
        for found in (
            value.split() if key == "aria-labelledby" else re.findall(r"#([\w-]+)", value)
        )
        if key in ("aria-labelledby", "href") or "url(" in value
    }
    assert referred <= set(ids)
    # Without quality and weight errors there may be no chart with a marker.
    assert referred or name == "one model, speed only"


@pytest.mark.parametrize("name", RESULTS)
def test_colours_are_the_pages_in_light_and_in_dark(name: str, pages: dict[str, str]) -> None:
    page = Page(pages[name])
    light, dark = page.style.split("prefers-color-scheme: dark")
    used = set(re.findall(r"var\((--[\w-]+)\)", pages[name])) - {"--models"}
    for scheme in (light, dark):
        assert used <= set(re.findall(r"(--[\w-]+):", scheme))
    drawn = " ".join(value for key, value in page.attributes if key in ("style", "fill"))
    assert "--fg" in drawn and "#fe0" not in drawn and "#000" not in drawn


@pytest.mark.parametrize("name", RESULTS)
def test_texts_of_a_chart_do_not_collide(name: str, pages: dict[str, str]) -> None:
    for svg in re.findall(r"<svg.*?</svg>", pages[name], re.DOTALL):
        boxes = [box_of(*found) for found in TEXT.findall(svg)]
        for place, one in enumerate(boxes):
            for other in boxes[:place]:
                assert not overlap(one, other), svg[:300]


TEXT = re.compile(r'<text style="([^"]*)" x="([^"]*)" y="([^"]*)" transform="([^"]*)">([^<]*)<')
Box = tuple[float, float, float, float]


def box_of(style: str, x: str, y: str, transform: str, text: str) -> Box:
    """Left, top, right, bottom of a text in a usual font, half an em wide per character."""
    em = float(re.findall(r"font-size: ([\d.]+)px", style)[0])
    width, height = 0.5 * em * len(text.replace("&lt;", "<").replace("&gt;", ">")), 0.7 * em
    shift = 0.5 if "middle" in style else 1.0 if "text-anchor: end" in style else 0.0
    left, bottom = float(x) - shift * width, float(y)
    if "rotate(-90" in transform:
        return (float(x) - height, float(y) - width / 2, float(x), float(y) + width / 2)
    return (left, bottom - height, left + width, bottom)


def overlap(one: Box, other: Box) -> bool:
    return all(max(one[i], other[i]) < min(one[i + 2], other[i + 2]) for i in (0, 1))


def test_hostile_text_is_only_text(pages: dict[str, str]) -> None:
    page = Page(pages["hostile"])
    harmless = Page(pages["three models"])
    # One element more, the alarm of the failed model, and one of the busy machine.
    assert set(page.tags) == set(harmless.tags) | {"strong"}
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text and "$x^2$" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", pages["hostile"])
    assert r"a\x00b\x1b[31m\u202ec\udce9d" in page.text


def test_the_first_line_is_the_self_check(pages: dict[str, str]) -> None:
    assert Page(pages["three models"]).texts[0] == "KL of fp32 against itself: 0 over 1,023 tokens"
    assert "against itself" not in Page(pages["no quality"]).text
    assert "Quality was not measured" in Page(pages["no quality"]).text


def test_a_failed_self_check_is_an_alarm() -> None:
    results = bench_results(tests=())
    results["quality"]["self_check"]["kl"] = 0.25
    found = html(results)
    assert "against itself: 0.250 over 1,023 tokens, not 0: the comparison" in Page(found).texts[0]
    assert 'class="check"' not in found


def test_what_makes_the_figures_doubtful_is_loud() -> None:
    results = bench_results(quality=False, tests=())
    assert "alert" not in html(results)
    results["circumstances"]["busy"] = "the machine was busy: others used 1.0 of 2 cores"
    results["interrupted"] = {"phase": "speed", "rounds": 3, "of": 9}
    results["failed"] = [{"model": "int2", "error": "int2: killed by signal 9"}]
    found = html(results)
    assert found.count('role="alert"') == 3
    unread = {"characters": 12, "bytes": 36, "share": 0.01}
    results = bench_results(tests=())
    results["quality"] |= {"without_token": unread, "documents": 619, "skipped_documents": 0}
    compared = html(results)
    assert compared.count('role="alert"') == 1
    assert "12 characters of the text (1.00 % of its bytes) have no token" in Page(compared).text
    assert "tokens in 619 documents of held-out.txt" in Page(compared).text
    text = Page(found).text
    for told in ("others used 1.0 of 2 cores", "after 3 of 9 rounds", "killed by signal 9"):
        assert told in text


def test_the_figures_of_the_results_are_there(pages: dict[str, str]) -> None:
    results, text = bench_results(), Page(pages["three models"]).text
    for sentence in results["verdict"]:
        assert sentence in text
    for row in results["speed"]:
        assert f"{row['tokens_per_second']['median']:,.0f}" in text
    expected = ["7,498,240", "30.3 MB", "3.54× smaller", "5.46", "225 ms", "214–239 ms"]
    expected += ["4.60× (4.54–4.68)", "20.7 %", "30.35 ± 0.21", "0.04130 ± 0.00046", "1.303"]
    expected += [
        "97.561 % ± 0.040",
        "−0.103 % ± 0.014",
        "percentage points",
        "98,304 tokens of held-out.txt",
        "window 512, stride 256",
    ]
    assert [figure for figure in expected if figure not in text] == []


def test_every_circumstance_is_there() -> None:
    results = bench_results()
    results["circumstances"]["governor"] = "schedutil"  # one that the page does not know of
    text = Page(html(results)).text
    expected = ["Xeon(R) Processor @ 2.60GHz", "avx512_vnni", "25.2 GB", "governor schedutil"]
    expected += ["before 0.12, after 1.87", "21.4 GB/s with 2 threads", "2026-11-25T14:00:00"]
    expected += [results["circumstances"]["command"], "out-int8", "3.11.2", "2.4.1"]
    assert [fact for fact in expected if fact not in text] == []


def test_examples_show_where_models_part(pages: dict[str, str]) -> None:
    text = Page(pages["three models"]).text
    assert "She put the letter on the ␣table" in text
    assert "␣door 28.0 % ␣table 19.0 % ✓" in text
    assert "↵ 8.00 %" in text
    assert "KL 1.73 nats, at 7 % of the text" in text


def test_what_is_not_known_is_a_dash_or_left_out(pages: dict[str, str]) -> None:
    text = Page(pages["nothing known"]).text
    assert "None" not in text and "nan" not in text
    assert "energy" not in text and "roofline" not in text and "on disk" not in text
    assert "energy" in Page(pages["ten models"]).text
    assert "processor –" in text


def test_the_same_results_give_the_same_page(pages: dict[str, str]) -> None:
    assert html(bench_results()) == pages["three models"]


def test_a_page_of_three_models_is_small(pages: dict[str, str]) -> None:
    assert len(pages["three models"].encode()) <= LARGEST


def test_a_users_matplotlibrc_changes_nothing(pages: dict[str, str]) -> None:
    import matplotlib

    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        assert html(bench_results()) == pages["three models"]


# Writing --------------------------------------------------------------------------------------


def test_a_report_replaces_the_one_before_and_no_other_page(
    tmp_path: Path, pages: dict[str, str]
) -> None:
    path = tmp_path / "bench.html"
    path.write_text(pages["ten models"], encoding="utf-8")
    results = bench_results(quality=False, tests=TESTS)
    write_report(results, open_report(path))
    assert path.read_text(encoding="utf-8") == html(results)
    path.write_text("<title>a page of mine</title>")
    with pytest.raises(RequestError, match="found a file, expected a new name, or a file that thi"):
        open_report(path)
    assert os.listdir(tmp_path) == ["bench.html"]


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_names_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r'pip install "pocketlm\[report\]"'):
        open_report(tmp_path / "report.html")


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report.main()


def test_saved_results_become_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = bench_results(quality=False, tests=TESTS)
    (tmp_path / "results.json").write_text(json.dumps(results))
    run_main(monkeypatch, tmp_path / "results.json", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html(results)


@pytest.mark.parametrize(
    "content, told",
    [
        ("", "results.json"),
        ("[", "results.json"),
        ("{}", "found format None, expected 1"),
        ('{"format": 2}', "found format 2, expected 1"),
        ('{"format": 1}', "found no circumstances, failed, interrupted, models"),
        (json.dumps(bench_results() | {"reference": "x"}), "the reference 'x', expected one of"),
        (json.dumps(bench_results() | {"models": {}}), "the reference 'fp32', expected one of"),
    ],
)
def test_other_json_is_refused_in_a_line(
    content: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        run_main(monkeypatch, tmp_path / "results.json", tmp_path / "report.html")
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and told in said and len(said.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()
