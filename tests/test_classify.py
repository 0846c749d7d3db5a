"""``pocketlm classify``: a label for every line, accuracy where the truth is given, bad input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import Run, assert_refused

import pocketlm
from pocketlm.export.folder import ModelFolder

LABELS = ("--labels", "other,rain and")
TEMPLATE = r"the {text}\nis:"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.tsv"
    path.write_text("house\tother \n\na \\t b\train and\nstory\n", encoding="utf-8")
    return path


def test_a_line_of_output_for_each_line_of_input(
    run: Run, tiny_folder: ModelFolder, tiny_model: pocketlm.Model, file: Path
) -> None:
    ended = run("classify", tiny_folder.path, file, *LABELS, "--template", TEMPLATE, "--all")
    assert ended.code == 0
    classifier = tiny_model.classifier(["other", "rain and"], "the {text}\nis:")
    lines = [line.split("\t") for line in ended.out.split("\n")]
    assert lines[1] == lines[4] == [""]
    for line, text in ((0, "house"), (2, "a \t b"), (3, "story")):
        found = classifier.classify(text)
        assert lines[line][0] == found.label
        shares = [found.probability, *found.probabilities]
        assert [float(value) for value in lines[line][1:]] == pytest.approx(shares, rel=1e-4)


def test_accuracy_and_confusion_where_the_truth_is_given(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    path = tmp_path / "texts.tsv"
    words = ("house", "story", "heart", "there", "went")
    path.write_text("".join(f"{word}\n" for word in words))
    options = (*LABELS, "--threads", 1)
    plain = run("classify", tiny_folder.path, path, *options)
    assert (plain.code, plain.err) == (0, "")
    given = [line.split("\t")[0] for line in plain.out.splitlines()]
    truths = ["other", "rain and", "other", "other"]  # of the last one it is not known
    pairs = list(zip(words, truths, strict=False))
    path.write_text("".join(f"{word}\t{truth}\n" for word, truth in pairs) + "went\n")
    ended = run("classify", tiny_folder.path, path, *options)
    assert ended.out == plain.out
    right = sum(a == b for a, b in zip(given, truths, strict=False))
    first, header, *table = ended.err.splitlines()
    assert first == f"accuracy {right / 4:.3f}: {right} of 4 right"
    assert header.split("  ") == ["truth, labelled as", "other", "rain and"]
    counts = {
        truth: [
            sum(t == truth and g == label for g, t in zip(given, truths, strict=False))
            for label in ("other", "rain and")
        ]
        for truth in ("other", "rain and")
    }
    assert [line.split()[-2:] for line in table] == [[*map(str, n)] for n in counts.values()]
    ended = run("classify", tiny_folder.path, path, *options, "--json")
    found = json.loads(ended.out)
    assert (ended.err, found["accuracy"], found["bad_lines"]) == ("", right / 4, 0)
    assert [[*row.values()] for row in found["confusion"].values()] == [*counts.values()]
    assert [result["label"] for result in found["results"]] == given
    assert [result["truth"] for result in found["results"]] == [*truths, None]
    assert [result["line"] for result in found["results"]] == [1, 2, 3, 4, 5]
    assert sum(found["results"][0]["probabilities"].values()) == pytest.approx(1)


def test_examples_and_calibration_are_those_of_the_classifier(
    run: Run, tiny_folder: ModelFolder, tiny_model: pocketlm.Model, file: Path, tmp_path: Path
) -> None:
    examples = tmp_path / "examples.tsv"
    examples.write_text("heart\\n\train and\nthere\tother\n")
    options = (*LABELS, "--template", TEMPLATE, "--examples", examples, "--calibrate", "--json")
    ended = run("classify", tiny_folder.path, file, *options)
    expected = tiny_model.classifier(
        ["other", "rain and"],
        "the {text}\nis:",
        examples=[("heart\n", "rain and"), ("there", "other")],
        calibrate=True,
    ).classify("house")
    (found, *_) = json.loads(ended.out)["results"]
    assert [*found["probabilities"].values()] == pytest.approx(expected.probabilities, rel=1e-4)


def test_texts_come_from_stdin(
    run: Run, tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"house\nx\ty\n")))
    ended = run("classify", tiny_folder.path, "-", *LABELS)
    assert_refused(ended, "stdin, line 2: found the label 'y', expected one of other, rain and")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--labels", ""), "--labels is empty, expected at least two labels"),
        (("--labels", "a"), "--labels is 'a', expected at least two labels"),
        (("--labels", "a,,b"), "found the label '', expected text"),
        (("--labels", "a,b, a"), "found the label 'a' twice"),
        (("--labels", "b,ba"), "found the label 'b', which begins the label 'ba'"),
        ((*LABELS, "--template", "what:"), r"--template is 'what:', expected \{text\} in it"),
        ((*LABELS, "--template", "{word}{text}"), r"found \{word\} in it, expected \{text\}"),
        ((), "Missing option '--labels'"),
    ],
)
def test_labels_and_templates_that_cannot_be_are_refused(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("house\n")
    assert_refused(run("classify", tiny_folder.path, path, *options), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\tother\tx\n", "line 2: found 3 fields, expected 1 or 2: text<TAB>truth"),
        ("a\nb\tsun\n", "line 2: found the label 'sun', expected one of other, rain and"),
        (f"a\n{'z' * 200}\n", r"line 2: the context has 2\d\d tokens and the continuation"),
    ],
)
def test_a_bad_line_is_refused_or_left_out_and_counted(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "texts.tsv"
    path.write_text(content)
    assert_refused(run("classify", tiny_folder.path, path, *LABELS), message)
    ended = run("classify", tiny_folder.path, path, *LABELS, "--skip-bad")
    assert ended.code == 0
    assert [line == "" for line in ended.out.splitlines()] == [False, True]
    assert ended.err.startswith("pocketlm: left out 1 bad line; the first: ")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n", "examples.tsv, line 1: found 1 field, expected 2: text<TAB>label"),
        (
            "a\tother\nb\tsun\n",
            "examples.tsv, line 2: found the label 'sun', expected one of other,",
        ),
        ("", "examples.tsv: found no text"),
    ],
)
def test_bad_examples_are_refused_even_where_bad_lines_are_left_out(
    run: Run, tiny_folder: ModelFolder, file: Path, tmp_path: Path, content: str, message: str
) -> None:
    examples = tmp_path / "examples.tsv"
    examples.write_text(content)
    options = (*LABELS, "--examples", examples, "--skip-bad")
    assert_refused(run("classify", tiny_folder.path, file, *options), message)


def test_a_file_that_is_not_there_is_refused(run: Run, tiny_folder: ModelFolder) -> None:
    ended = run("classify", tiny_folder.path, "nowhere.tsv", *LABELS)
    assert_refused(ended, "nowhere.tsv: found 'No such file or directory'")


def test_an_interrupt_ends_it_with_what_was_printed(
    run: Run, tiny_folder: ModelFolder, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def classify(self: object, text: str) -> object:
        if text == "house":
            return pocketlm.LabelDistribution(("other", "rain and"), (0.5, 0.5))
        raise KeyboardInterrupt

    monkeypatch.setattr(pocketlm.Classifier, "classify", classify)
    ended = run("classify", tiny_folder.path, file, *LABELS)
    assert (ended.code, ended.out, ended.err.strip()) == (130, "other\t0.5\n\n", "")
