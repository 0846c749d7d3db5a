"""``pocketlm eval``: what it prints in each form, and every refusal. Level: end to end."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, write_checkpoint
from command_line import Run, assert_refused
from model_folders import with_files

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.quantize.run import export_checkpoint

WINDOW = ["--window", "32"]
SHARED_MEASURES = ["perplexity per token", "perplexity per byte", "perplexity per word"]
MEASURES = [
    *SHARED_MEASURES,
    "bits per byte",
    *("KL mean", "KL median", "KL p99", "KL max"),
    *("top-1 agreement", "top-5 overlap"),
    *("Δp mean", "|Δp| mean", "|Δp| p99"),
]


@pytest.fixture(scope="module")
def models(
    tiny_checkpoint: Path, tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The same model in full precision, and in int4."""
    out = tmp_path_factory.mktemp("eval") / "int4"
    return tiny_folder.path, export_checkpoint(open_checkpoint(tiny_checkpoint), out, "int4").path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "held-out.txt"
    path.write_text("It was late, and no one heard the rest of the story.\n" * 12)
    return path


@pytest.fixture
def compare(run: Run, models: tuple[Path, Path], text: Path) -> Any:
    fp32, int4 = models

    def call(*options: str) -> str:
        ended = run("eval", int4, "--against", fp32, "--text", text, *WINDOW, *options)
        assert (ended.code, ended.err) == (0, "")
        return ended.out

    return call


def test_the_first_line_is_the_self_check(compare: Any) -> None:
    lines = compare().splitlines()
    assert re.fullmatch(
        r"self-check: KL\(fp32 ‖ fp32\) = 0 over 31 tokens \(\d+\.\d\d on another text\)", lines[0]
    )
    assert re.fullmatch(
        r"held-out.txt: \d+ tokens, 636 bytes, 145 words; window 32, stride 16 tokens; "
        r"a text begins with <\|endoftext\|>",
        lines[1],
    )
    assert lines[3].split() == ["measure", "fp32", "int4"]
    for line, measure in zip(lines[4:], MEASURES, strict=False):
        assert line.startswith(measure)
        if measure not in ("bits per byte", "KL max"):
            assert "±" in line
    *_, legend, _, circumstances = lines
    assert legend.startswith("KL(fp32 ‖ model) in nats per token; Δp: of the true token; ±")
    assert legend.endswith("between 30 windows")
    assert re.search(r"\d+ cores, \d+ threads, ONNX Runtime [\d.]+, Python 3", circumstances)


def test_every_form_has_the_same_figures(compare: Any) -> None:
    results = json.loads(compare("-o", "json"))
    quality = results["quality"]
    assert results["circumstances"]["threads"] >= 1 and results["circumstances"]["started"]
    assert [model["model"] for model in quality["models"]] == ["fp32", "int4"]
    against = quality["models"][1]["against"]

    rows = [*csv.DictReader(io.StringIO(compare("-o", "csv")))]
    lines = [json.loads(line) for line in compare("-o", "jsonl").splitlines()]
    assert [row["measure"] for row in rows if row["model"] == "int4"] == MEASURES
    for row, line in zip(rows, lines, strict=True):
        assert line.keys() == row.keys()
        assert float(row["value"]) == line["value"]
        assert (row["section"], row["item"]) == ("quality", "held-out.txt")
    found = {row["measure"]: row for row in lines if row["model"] == "int4"}
    assert found["KL mean"]["value"] == against["kl"]["mean"]["value"] > 0
    assert found["KL mean"]["standard_error"] == against["kl"]["mean"]["standard_error"] > 0
    assert found["KL max"]["standard_error"] is None
    assert found["top-1 agreement"]["value"] == against["top1_agreement"]["value"] < 1

    markdown = compare("-o", "md")
    assert markdown.startswith("self-check: KL(fp32 ‖ fp32) = 0")
    assert "| measure | fp32 | int4 |\n| --- | --: | --: |\n| perplexity per token | " in markdown


def test_a_single_model_has_only_its_own_figures(
    run: Run, models: tuple[Path, Path], text: Path
) -> None:
    ended = run("eval", models[1], "--text", text, *WINDOW, "-o", "csv")
    rows = [*csv.DictReader(io.StringIO(ended.out))]
    assert [row["measure"] for row in rows] == MEASURES[:4]
    printed = run("eval", models[1], "--text", text, *WINDOW).out
    assert (
        printed.startswith("self-check: KL(int4 ‖ int4) = 0") and "KL(int4 ‖ model)" not in printed
    )


def test_several_models_are_compared_with_the_first(
    run: Run, models: tuple[Path, Path], text: Path
) -> None:
    ended = run("eval", *models, "--text", text, *WINDOW, "-o", "json")
    quality = json.loads(ended.out)["quality"]
    assert quality["models"][0]["against"] is None
    assert quality["models"][1]["against"]["kl"]["mean"]["value"] > 0


def test_an_option_takes_several_texts(
    run: Run, models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copy(text, tmp_path / "other.txt"))
    together = run("eval", models[1], *WINDOW, "--text", text, other, "-o", "json")
    apart = run("eval", models[1], *WINDOW, "--text", text, "--text", other, "-o", "json")
    quality = json.loads(together.out)["quality"]
    assert quality["texts"] == [str(text), str(other)]
    assert quality == json.loads(apart.out)["quality"]


def test_a_checkpoint_is_exported_in_the_precision_asked_for(
    run: Run, models: tuple[Path, Path], tiny_checkpoint: Path, text: Path
) -> None:
    ended = run(
        *("eval", tiny_checkpoint, "--precision", "int4", "--against", models[0]),
        *("--text", text, *WINDOW, "-o", "json"),
    )
    names = [model["model"] for model in json.loads(ended.out)["quality"]["models"]]
    assert names == ["fp32", f"{tiny_checkpoint.name}-int4"]


def test_a_checkpoint_to_compare_with_comes_in_full_precision(
    run: Run, models: tuple[Path, Path], tiny_checkpoint: Path, text: Path
) -> None:
    ended = run(
        *("eval", tiny_checkpoint, "--precision", "int8", "--against", tiny_checkpoint),
        *("--text", text, *WINDOW, "-o", "json"),
    )
    names = [model["model"] for model in json.loads(ended.out)["quality"]["models"]]
    assert names == [f"{tiny_checkpoint.name}-fp32", f"{tiny_checkpoint.name}-int8"]


def test_the_running_value_is_drawn_on_a_terminal(
    run: Run, models: tuple[Path, Path], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    ended = run("eval", *models, "--text", text, *WINDOW, "-o", "csv")
    assert re.search(r"KL\(int4\) 0\.\d{5}", ended.err)
    assert ended.out.startswith("section,item,measure,model,value,standard_error\n")


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"too short", [], "held-out.txt: found 9 tokens, expected .* window of 160.* --window 9"),
        (b"", [], "held-out.txt: found an empty file"),
        (b"one\ntwo\xff", [], r"held-out.txt: found the byte 0xff at 7 \(line 2\), expected UTF-8"),
        (None, [], "held-out.txt: cannot be read .* check path and permissions"),
        (b"x" * 99, ["--window", "161"], "window is 161 tokens, expected 3 to 160"),
        (b"x" * 99, ["--window", "50", "--stride", "50"], "stride is 50 tokens, expected 1 to 49"),
        (b"x" * 99, ["--limit", "9"], "limit is 9 tokens, expected at least a window of 160"),
        (b"x" * 999, ["--threads", "0"], "threads is 0, expected an integer from 1 to"),
    ],
)
def test_bad_texts_and_sizes_are_refused(
    content: bytes | None,
    options: list[str],
    message: str,
    run: Run,
    models: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    text = tmp_path / "held-out.txt"
    if content is not None:
        text.write_bytes(content)
    assert_refused(run("eval", models[1], "--text", text, *options), message)


def test_a_bad_text_is_found_before_a_model_is_looked_for(run: Run, tmp_path: Path) -> None:
    ended = run("eval", "no/such/model/anywhere", "--text", tmp_path / "no.txt")
    assert_refused(ended, "no.txt: cannot be read")


def test_a_missing_reference_is_named(run: Run, models: tuple[Path, Path], text: Path) -> None:
    ended = run("eval", models[1], "--against", text.parent / "out-fp32", "--text", text)
    assert_refused(ended, "out-fp32' does not exist, expected a folder")


def test_a_damaged_reference_is_named(
    run: Run, models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(models[0], tmp_path / "damaged"))
    data = bytearray((damaged / "model.onnx_data").read_bytes())
    data[100] ^= 1
    (damaged / "model.onnx_data").write_bytes(data)
    ended = run("eval", models[1], "--against", damaged, "--text", text)
    assert_refused(ended, "damaged/model.onnx_data: found SHA-256")


def test_models_with_different_tokenizers_are_refused(
    run: Run, models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    content = json.loads((models[0] / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"]["add_prefix_space"] = True
    files = {"tokenizer.json": json.dumps(content)}
    other = with_files(ModelFolder.open(models[1]), tmp_path / "other", files)
    ended = run("eval", other.path, "--against", models[0], "--text", text)
    assert_refused(ended, "tokenizers of fp32 and other differ: .* another 'pre_tokenizer'")
    config = gpt2_config(vocab_size=290, n_positions=160)
    small = write_checkpoint(tmp_path / "small", config)
    ended = run("eval", small, "--against", models[0], "--text", text)
    assert_refused(ended, "fp32 and small-int8 differ: found logits for 300 and 290 tokens")


def test_nothing_to_evaluate_on_says_what_to_give(run: Run, models: tuple[Path, Path]) -> None:
    assert_refused(run("eval", models[1]), "found nothing to evaluate on.*add --text FILE")
    assert_refused(run("eval", models[1], "--text"), "'--text' requires an argument")
    assert_refused(run("eval"), "Missing argument 'MODEL...'")
