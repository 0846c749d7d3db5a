"""``pocketlm eval``: what it prints in each form, and every refusal. Level: end to end."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from character_tokenizers import characters, opened
from checkpoint_files import gpt2_config, write_checkpoint
from command_line import Run, assert_refused
from model_folders import with_files

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

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
    return tiny_folder.path, export_model(
        open_checkpoint(tiny_checkpoint), out, precision_of("int4")
    ).path


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


def test_an_int8_cache_is_compared_with_the_references_own(
    run: Run, int8_kv_folder: ModelFolder, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The rest of the story is told in the other room.\n" * 6)
    path = int8_kv_folder.path
    arguments = [path, "--against", path, "--text", text, "--window", "32", "--kv", "int8"]
    ended = run("eval", *arguments, "-o", "json")
    assert (ended.code, ended.err) == (0, "")
    reference, model = json.loads(ended.out)["quality"]["models"]
    assert model["model"].endswith(", int8 KV") and not reference["model"].endswith("KV")
    assert 0 < model["against"]["kl"]["mean"]["value"] < 0.1


def test_prompts_of_the_second_weights_are_scored_by_those_that_generate(
    run: Run, prefill_folder: ModelFolder, tmp_path: Path
) -> None:
    """So a first window, without a context, is as the reference's; others are of a mixed run."""
    text = tmp_path / "text.txt"
    text.write_text("The rest of the story is told in the other room.\n" * 12)
    path = prefill_folder.path
    arguments = [path, "--against", path, "--text", text, "--window", "140", "--prefill", "int8"]
    found = []
    for more in (["--limit", "130"], []):
        ended = run("eval", *arguments, *more, "-o", "json")
        assert (ended.code, ended.err) == (0, "")
        reference, model = json.loads(ended.out)["quality"]["models"]
        assert model["model"].endswith(", int8 prefill") and "prefill," not in reference["model"]
        found.append(model["against"]["kl"]["mean"]["value"])
    assert found[0] == 0 < found[1]


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
        if measure not in ("bits per byte", "KL max", "|Δp| p99"):  # that of few texts may be alone
            assert "±" in line
    *_, legend, _, circumstances = lines
    assert legend.startswith(
        "KL(fp32 ‖ model) in nats per token; Δp: of the true token's probability, in "
    )
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
    assert ended.out.startswith("section,item,measure,model,value,standard_error,unit\n")


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", [], "held-out.txt: found an empty file"),
        (b"one\ntwo\xff", [], r"held-out.txt: found the byte 0xff at 7 \(line 2\), expected UTF-8"),
        (None, [], "held-out.txt: cannot be read .* check path and permissions"),
        (b"x" * 99, ["--window", "161"], "window is 161 tokens, expected 3 to 160"),
        (b"x" * 99, ["--window", "50", "--stride", "50"], "stride is 50 tokens, expected 1 to 49"),
        (b"x" * 99, ["--limit", "1"], "limit is 1 tokens, expected at least 2"),
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
    assert_refused(ended, "out-fp32': found nothing at this path, expected")


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


# Options that belong to something else -----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "x.jsonl", "--limit", "9"], "found --limit without --text, .* leave it out"),
        (["--recite", "x.txt", "--split", "|"], "found --split without --text"),
        (["--tasks", "x.jsonl", "--window", "9", "--stride", "3"], "--window and --stride without"),
        (["--text", "x.txt", "--items", "3"], "found --items without --tasks, .* add --tasks FILE"),
        (["--text", "x.txt", "--passages", "50"], "found --passages without --recite"),
        (["--tasks", "x.jsonl", "--prompt-tokens", "5", "--continuation-tokens", "5"],
         "found --prompt-tokens and --continuation-tokens without --recite, .* leave them out"),
    ],
)  # fmt: skip
def test_an_option_of_what_is_not_measured_is_refused(
    options: list[str], message: str, run: Run, models: tuple[Path, Path]
) -> None:
    assert_refused(run("eval", models[1], *options), message)


def test_a_tokenizer_is_for_models_without_one(
    run: Run, models: tuple[Path, Path], tiny_checkpoint: Path, text: Path
) -> None:
    options = ["--text", text, "--tokenizer", tiny_checkpoint, *WINDOW]
    for command in ("eval", "bench"):
        ended = run(command, *models, *options)
        assert_refused(ended, "--tokenizer is .* for a model folder, expected it only for")
    assert run("eval", models[1], "--against", tiny_checkpoint, *options).code == 0


# Documents, and what a tokenizer does not read ---------------------------------------------------


def test_a_text_is_split_and_json_lines_have_a_document_a_line(
    run: Run, models: tuple[Path, Path], tmp_path: Path
) -> None:
    stories = [f"It was {number}.\nNo one heard." for number in range(40)]
    text, lines = tmp_path / "stories.txt", tmp_path / "stories.jsonl"
    text.write_text("\n\n\n".join(stories))
    lines.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    split = run("eval", *models, "--text", text, "--split", r"\n\n\n")
    assert re.search(
        r"stories.txt: 40 documents, \d+ tokens, 950 bytes, 240 words; window 160, stride 80 "
        r"tokens; a document begins with <\|endoftext\|>",
        split.out,
    )
    assert "± one standard error, between 40 documents" in split.out
    figures = [
        run("eval", *models, "--text", *arguments, "-o", "json").out
        for arguments in ([text, "--split", "\n\n\n"], [lines])
    ]
    one, other = (json.loads(found)["quality"] for found in figures)
    assert one["models"] == other["models"]
    assert (one["split"], other["split"]) == ("\n\n\n", None)


def test_a_short_text_is_a_window_of_its_own(
    run: Run, models: tuple[Path, Path], text: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    ended = run("eval", models[1], "--text", short)
    assert "short.txt: 8 tokens, 9 bytes, 2 words; window 160" in ended.out
    assert "\na single window, so no standard errors\n" in ended.out
    together = run("eval", models[1], "--text", short, text, *WINDOW, "-o", "json")
    assert json.loads(together.out)["quality"]["documents"] == 2


@pytest.fixture(scope="module")
def character_model(tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Knows eight characters, and drops all others."""
    root = tmp_path_factory.mktemp("characters")
    opened(characters(), root)
    files = {"tokenizer.json": (root / "tokenizer.json").read_text("utf-8")}
    return with_files(tiny_folder, root / "model", files).path


def test_characters_that_a_tokenizer_drops_are_told_in_every_form(
    run: Run, character_model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc 한국 dead. é\n" * 30, encoding="utf-8")
    for form in ("table", "md", "csv", "json", "jsonl"):
        ended = run("eval", character_model, "--text", text, "-o", form)
        out, said = ended.out, ended.out if form == "table" else ended.err
        assert ended.code == 0
        assert re.match(
            r"WARNING: 90 characters of the text \(40.0 % of its bytes\) have no token in this "
            r"tokenizer: the models did not read them",
            said,
        )
        if form == "md":
            assert out.startswith("**90 characters of the text")
        if form == "json":
            quality = json.loads(out)["quality"]
            assert (quality["bytes"], quality["words"]) == (30 * 12, 61)
            assert quality["without_token"] == {
                "characters": 90, "bytes": 240, "share": pytest.approx(240 / 600),
            }  # fmt: skip
            loss = quality["models"][0]["loss"]["value"] * quality["tokens"]
            bits = quality["models"][0]["bits_per_byte"]
            assert bits == pytest.approx(loss / (30 * 12) / math.log(2))


def test_a_text_of_which_nothing_is_left_is_refused(
    run: Run, character_model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("한국어" * 30, encoding="utf-8")
    ended = run("eval", character_model, "--text", text)
    assert_refused(ended, "text.txt: found no token to score, expected a character that this")


def test_characters_that_tasks_and_recitation_drop_are_told(
    run: Run, character_model: Path, tmp_path: Path
) -> None:
    tasks, book = tmp_path / "tasks.jsonl", tmp_path / "book.txt"
    item = {"query": "abc 한", "choices": ["dead", "é"], "gold": 0}
    tasks.write_text(json.dumps(item, ensure_ascii=False) + "\n", encoding="utf-8")
    book.write_text("abc 한국 dead. é\n" * 30, encoding="utf-8")
    lengths = ["--prompt-tokens", "4", "--continuation-tokens", "4"]
    options = ["--tasks", tasks, "--recite", book, *lengths]
    ended = run("eval", character_model, *options, "-o", "json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["tasks"][0]["without_token"] == {
        "characters": 2, "bytes": 5, "share": pytest.approx(5 / 13),
    }  # fmt: skip
    assert found["recitation"][0]["without_token"] == {
        "characters": 90, "bytes": 240, "share": pytest.approx(240 / 600),
    }  # fmt: skip
    warnings = [
        "WARNING: 2 characters of tasks.jsonl (38.5 % of its bytes) have no token in this",
        "WARNING: 90 characters of book.txt (40.0 % of its bytes) have no token in this",
    ]
    told = ended.err.splitlines()
    assert [line[: len(text)] for line, text in zip(told, warnings, strict=True)] == warnings
    book.write_text("abc 한국\n" * 3, encoding="utf-8")
    ended = run("eval", character_model, "--recite", book)
    assert_refused(ended, r"book.txt \(6 characters of it have no token\): found 12 tokens")
    book.write_text("한국", encoding="utf-8")
    ended = run("eval", character_model, "--recite", book)
    assert_refused(ended, "book.txt: found no character with a token in this tokenizer")


def test_a_chat_tells_what_of_a_message_is_left_out(
    run: Run, character_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO("ab한국c\nabc\n".encode()), "utf-8")
    )
    ended = run("chat", character_model, "--max-tokens", "2", "--system", "aé")
    assert ended.code == 0
    lost = [line for line in ended.err.splitlines() if "no token" in line]
    assert lost == [
        "pocketlm: the model has no token for 1 of the system message's 2 characters, which are "
        "left out: 'é'",
        "pocketlm: the model has no token for 2 of the message's 5 characters, which are left out: "
        "'한국'",
    ]


def test_a_prompt_is_told_what_does_not_reach_the_model(run: Run, character_model: Path) -> None:
    ended = run("run", character_model, "ab한국c", "--max-tokens", "2", "--temperature", "0")
    assert ended.code == 0
    assert ended.err == (
        "pocketlm: the model has no token for 2 of the prompt's 5 characters, which are left out: "
        "'한국'\n"
    )
    assert run("run", character_model, "abc", "--max-tokens", "2").err == ""


@pytest.mark.parametrize("option", ["--text", "--recite"])
def test_a_text_that_can_be_read_only_once_is_refused(
    run: Run, option: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    """As ``<(cat text)`` is, and without waiting for who writes to it."""
    os.mkfifo(tmp_path / "pipe")
    ended = run("eval", models[0], option, tmp_path / "pipe")
    assert_refused(ended, "pipe: found a pipe, expected a regular file: .* more than once")
    assert_refused(run("eval", models[0], option, os.devnull), "null: found a device or socket")


def test_a_separator_is_utf_8_whatever_the_locale(
    run: Run, models: tuple[Path, Path], tmp_path: Path
) -> None:
    """In the locale "C" an argument has lone surrogates for the bytes above 127."""
    text = tmp_path / "cafe.txt"
    text.write_text("a café by the sea\n" * 8, "utf-8")
    ended = run("eval", models[0], "--text", text, "--split", "\udcc3\udca9", "-o", "json")
    assert (ended.code, ended.err) == (0, "")
    quality = json.loads(ended.out)["quality"]
    assert (quality["split"], quality["documents"]) == ("é", 9)


def test_no_quantile_is_above_the_largest(compare: Any) -> None:
    kl = json.loads(compare("--output", "json"))["quality"]["models"][1]["against"]["kl"]
    assert 0 < kl["median"]["value"] <= kl["p99"]["value"] <= kl["max"]
