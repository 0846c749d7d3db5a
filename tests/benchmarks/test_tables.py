"""Tables of a bench: what they show, what they leave out, and that all forms agree."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from bench_results import MODELS, bench_results, estimate
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.benchmarks import summary, tables
from pocketlm.benchmarks.tables import Table, flat_rows, model_table, speed_table

words = st.text(st.characters(categories=["L", "N"], include_characters=" |"), min_size=1)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def results(**options: Any) -> dict[str, Any]:
    """The report's sample with what a bench adds to it."""
    found = bench_results(**options)
    found |= {"failed": [], "interrupted": None}
    for row in found["speed"]:
        row["outside_kernel"] = estimate(0.02)
    if found["quality"]:
        found["quality"] |= {"start_token": "<s>", "limit": None}
        found["quality"]["self_check"]["kl_other_text"] = 5.1
    return found


# A table -----------------------------------------------------------------------------------------


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(words, min_size=n, max_size=n))))
def test_markdown_has_a_cell_per_cell(rows: list[list[str]]) -> None:
    width = len(rows[0]) if rows else 3
    table = Table(["c"] * width, rows, labels=1)
    lines = table.markdown().split("\n")
    assert len(lines) == len(rows) + 2
    assert {line.replace("\\|", "").count("|") for line in lines} == {width + 1}


def test_a_narrow_place_gets_the_columns_that_matter() -> None:
    table = Table(
        ["model", "MB", "rate", "of it"],
        [["int4", "5.4", "231", "33 %"]],
        optional=["of it", "MB"],
    )
    assert table.width(2) == 5 + 2 + 3 + 2 + 4 + 2 + 5
    assert table.fitting(23, 2) == table
    assert table.fitting(22, 2).columns == ["model", "MB", "rate"]
    assert table.fitting(11, 2).rows == [["int4", "231"]]
    assert table.fitting(1, 2).columns == ["model", "rate"]


# What is shown -----------------------------------------------------------------------------------


def test_the_speed_table_has_rates_ratios_and_shares() -> None:
    table = speed_table(results())
    assert list(table.columns) == [
        "test",
        "model",
        "tokens/s",
        "tokens/s interval",
        "ratio",
        "ratio interval",
        "roofline",
    ]
    assert list(table.rows[0]) == ["pp512", "fp32", "5210", "5101 to 5352", "-", "-", "-"]
    assert list(table.rows[5]) == [
        "tg128",
        "int4",
        "903",
        "884 to 928",
        "4.60×",
        "4.54× to 4.68×",
        "23 %",
    ]


@pytest.mark.parametrize("name", ["threads", "batch"])
def test_what_varies_gets_a_column(name: str) -> None:
    found = results()
    found["speed"][0][name] = 7
    table = speed_table(found)
    assert table.columns[2] == name
    assert table.rows[0][2] == "7"


def test_a_column_of_nothing_is_left_out() -> None:
    table = Table(["a", "b", "c"], [["1", "-", "-"], ["2", "-", "3"]], optional=["b", "c"])
    assert table.filled() == Table(["a", "c"], [["1", "-"], ["2", "3"]], optional=["c"])
    alone = speed_table(results(models={"fp32": MODELS["fp32"]}, repetitions=1))
    assert list(alone.columns) == ["test", "model", "tokens/s", "roofline"]


def test_energy_gets_a_column_where_it_is_known() -> None:
    table = speed_table(results(energy=True))
    assert table.columns[-1] == "J/token"
    assert table.rows[0][-1] == "0.004"


def test_the_model_table_has_what_a_model_costs() -> None:
    table = model_table(results())
    assert list(table.columns) == [
        "model",
        "MB",
        "bits/weight",
        "load s",
        "first token s",
        "peak RSS MB",
    ]
    assert list(table.rows[2]) == ["int4", "5.43", "5.46", "0.036", "0.225", "101"]


@pytest.mark.parametrize(
    ("rate", "text"), [(0.834, "0.83"), (8.311, "8.31"), (61.24, "61.2"), (231.7, "232")]
)
def test_rates_have_three_digits(rate: float, text: str) -> None:
    assert tables.rate_text(rate) == text


def test_circumstances_are_said_in_words() -> None:
    text = tables.describe_circumstances(results())
    for part in (
        "Intel(R) Xeon(R) Processor @ 2.60GHz (avx2, avx512f, avx512_vnni), 2 cores",
        "Memory reads 21.4 GB/s with 2 threads",
        "medians of 5 interleaved rounds, intervals of 94 % confidence",
        "load average 0.1 before and 1.9 after",
        "ONNX Runtime 1.31.0, Python 3.11.2",
        "files in the page cache",
    ):
        assert part in text
    assert "one round, so no intervals" in tables.describe_circumstances(results(repetitions=1))


# The whole ---------------------------------------------------------------------------------------

BUSY = "the machine was busy: other processes used 1.00 of its 2 cores"


def test_warnings_are_the_first_and_the_last_that_is_said() -> None:
    found = results()
    found["circumstances"]["busy"] = BUSY
    found["interrupted"] = {"phase": "speed", "rounds": 3, "of": 9}
    found["failed"] = [{"model": "int2", "error": "int2: found its process killed"}]
    parts = summary.markdown(found).split("\n\n")
    loud = [
        f"**{BUSY}**",
        "**interrupted after 3 of 9 rounds**",
        "**not measured: int2: found its process killed**",
    ]
    assert parts[:3] == parts[-3:] == loud
    found["interrupted"]["phase"] = "quality"
    assert tables.warnings(found)[1] == "interrupted after 3 of 9 rounds, and quality is missing"


def test_what_a_tokenizer_did_not_read_is_a_warning() -> None:
    found = results()
    found["quality"]["without_token"] = {"characters": 1234, "bytes": 3702, "share": 0.00456}
    (warning,) = tables.warnings(found)
    assert warning.startswith(
        "1,234 characters of the text (0.456 % of its bytes) have no token in this tokenizer: "
    )
    found["quality"]["without_token"] = {"characters": 0, "bytes": 0, "share": 0.0}
    assert tables.warnings(found) == []


def test_a_quiet_bench_begins_with_its_self_check() -> None:
    found = results()
    assert tables.warnings(found) == []
    text = summary.markdown(found)
    assert text.startswith("self-check: KL(fp32 ‖ fp32) = 0 over 1,023 tokens")
    assert "\n".join(found["verdict"]) in text
    without = summary.markdown(results(quality=False))
    assert "KL" not in without.replace(results()["verdict"][0], "")


# For programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [True, False])
def test_csv_json_lines_and_json_agree(quality: bool) -> None:
    found = results(quality=quality)
    lines = [json.loads(line) for line in tables.to_jsonl(found).splitlines()]
    read = list(csv.DictReader(io.StringIO(tables.to_csv(found))))
    assert len(lines) == len(read) == len(found["speed"]) == 4 * len(MODELS)
    for line, record, row in zip(lines, read, found["speed"], strict=True):
        assert {name: "" if value is None else str(value) for name, value in line.items()} == record
        assert (line["test"], line["model"]) == (row["test"], row["model"])
        assert line["tokens_per_second"] == row["tokens_per_second"]["median"]
        assert line["ratio_low"] == (row["ratio"] and row["ratio"]["low"])
        assert line["repetitions"] == 5
        assert (line["features"], line["load_after"]) == ("avx2 avx512f avx512_vnni", 1.87)
        assert line["read_bandwidth"] == found["circumstances"]["read_bandwidth"]["2"]
        assert (line["kl"] is not None) == (quality and row["model"] != "fp32")
        assert (line["perplexity"] is not None) == quality


def test_the_tables_agree_with_the_rows() -> None:
    found = results()
    lines = speed_table(found).markdown().splitlines()[2:]
    for line, row in zip(lines, flat_rows(found), strict=True):
        test, model, rate, *_ = cells(line)
        assert (test, model) == (row["test"], row["model"])
        assert float(rate) == pytest.approx(row["tokens_per_second"], rel=0.005)
