"""The verb and the module: every check is made, told alike to people and programs, and alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Run

import pocketlm
import pocketlm.doctor.__main__ as module
from pocketlm.doctor import as_json, as_text, examination, examine, exit_code
from pocketlm.doctor.finding import OK, UNKNOWN, WARNING, WRONG, Finding
from pocketlm.export.errors import MissingExtraError

QUICK = ["python", "packages", "extras", "onnxruntime", "telemetry", "processor"]
QUICK += ["fp32", "int8", "int8-weight", "int4", "cores", "memory"]
QUICK += ["cache", "disk", "models", "locks", "provider"]


def one(finding: Finding) -> examination.Check:
    def check() -> Iterator[Finding]:
        yield finding

    return check


def failing(error: Exception) -> examination.Check:
    def check() -> Iterator[Finding]:
        yield Finding("first", OK, "well")
        raise error

    return check


def test_a_check_that_fails_is_told_and_takes_nothing_from_the_others() -> None:
    checks = {
        "bug": failing(ZeroDivisionError("division by zero")),
        "extra": failing(MissingExtraError('found no x, expected it; pip install "y"')),
        "last": one(Finding("last", WRONG, "bad")),
    }
    found = list(examine(checks=checks))
    assert [finding.name for finding in found] == ["first", "bug", "first", "extra", "last"]
    assert [finding.state for finding in found] == [OK, UNKNOWN, OK, UNKNOWN, WRONG]
    assert found[1].found == "could not be checked: ZeroDivisionError: division by zero"
    assert found[3].found == "could not be checked: found no x, expected it"
    assert found[3].advice == 'pip install "y"'


def test_what_a_frozen_application_comes_without_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    (_, found) = examine(checks={"x": failing(ModuleNotFoundError("No module named 'psutil'"))})
    assert (found.state, found.advice) == (UNKNOWN, "nothing: this application comes without it")


def test_only_what_is_wrong_fails() -> None:
    warned = [Finding("a", OK, "x"), Finding("b", WARNING, "x"), Finding("c", UNKNOWN, "x")]
    assert exit_code(warned) == 0
    assert exit_code([*warned, Finding("d", WRONG, "x")]) == 1


def test_lines_have_what_json_has() -> None:
    """Each finding can be made again of its object, and is then the same lines."""
    found = [*examine(self_test=False), Finding("last", WRONG, "bad", "mend it", {"a": 1})]
    report = json.loads(as_json(found))
    assert report["pocketlm"] == pocketlm.__version__
    assert report["state"] == WRONG
    again = [Finding(**finding) for finding in report["findings"]]
    assert again == found
    text = as_text(again)
    assert text == as_text(found)
    assert "\n                      -> mend it\n" in text
    assert text.endswith("1 thing is wrong\n") or ", " in text.splitlines()[-1]


def test_lines_are_no_wider_than_a_terminal_but_for_what_is_copied() -> None:
    text = as_text([Finding("x", WARNING, "many words " * 40, "pip install " + "y " * 60)])
    *lines, advice, _, summary = text.splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) > 3
    assert advice.endswith("y " * 59 + "y ")
    assert summary == "1 warning"


def test_what_others_named_does_not_drive_the_terminal() -> None:
    text = as_text([Finding("x", OK, "a\x1b[31mb\nc", "d\x07")])
    assert "\x1b" not in text and "\x07" not in text and "\\x1b[31mb" in text


def test_every_check_has_its_findings(run: Run) -> None:
    ended = run("doctor", "--quick", "--json")
    report = json.loads(ended.out)
    assert [finding["name"] for finding in report["findings"]] == QUICK
    assert all(finding["found"] for finding in report["findings"])
    assert ended.err == ""


def test_the_verb_prints_lines_or_json_and_ends_as_the_findings_say(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [Finding("a", OK, "well"), Finding("b", WRONG, "bad", "mend")]
    monkeypatch.setattr("pocketlm.commands.doctor.examine", lambda self_test: iter(findings))
    ended = run("doctor")
    assert (ended.code, ended.out, ended.err) == (1, as_text(findings), "")
    assert run("doctor", "--json").out == as_json(findings) + "\n"


def doctor(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"POCKETLM_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )


def test_a_process_ends_with_0_where_all_is_well(tmp_path: Path) -> None:
    ended = doctor("-m", "pocketlm", "doctor", "--quick", cache=tmp_path / "cache")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"ok cache {tmp_path / 'cache'}, 0 B ok" in " ".join(ended.stdout.split())
    assert "telemetry    off" in ended.stdout


def test_without_the_command_line_a_module_tells_it_and_ends_with_1(tmp_path: Path) -> None:
    """As where something is wrong: with the cache in the way of a file, as nobody could write."""
    (tmp_path / "file").write_text("")
    code = """
import importlib.abc, runpy, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"click", "rich", "psutil", "onnx", "onnx_ir", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
runpy.run_module("pocketlm.doctor", run_name="__main__")
"""
    ended = doctor("-W", "error", "-c", code, cache=tmp_path / "file" / "cache")
    assert (ended.returncode, ended.stderr) == (1, "")
    lines = ended.stdout.splitlines()
    (cache,) = (number for number, line in enumerate(lines) if line.startswith("WRONG"))
    told = " ".join(line.strip() for line in lines[cache : cache + 5])
    assert "file/cache cannot be written (" in told and "POCKETLM_CACHE=FOLDER" in told
    assert lines[-1].startswith("1 thing is wrong")
    (tokens,) = (line for line in lines if line[9:].startswith("tokens "))
    assert tokens.startswith("unknown") and "could not be checked" in tokens


def test_the_module_takes_the_options_of_the_command(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And prints the same; an option that it does not know is refused."""
    asked: list[bool] = []

    def examined(self_test: bool) -> Iterator[Finding]:
        asked.append(self_test)
        yield from (Finding("a", OK, "well"), Finding("b", WRONG, "bad", "mend"))

    monkeypatch.setattr("pocketlm.commands.doctor.examine", examined)
    monkeypatch.setattr(module, "examine", examined)
    for options in ([], ["--quick"], ["--json"], ["--quick", "--json"]):
        expected = run("doctor", *options)
        assert module.main(options) == expected.code == 1
        assert capsys.readouterr().out == expected.out
        assert asked[-2:] == ["--quick" not in options] * 2
    with pytest.raises(SystemExit) as ended:
        module.main(["--jsn"])
    assert ended.value.code == 2 and "--jsn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "path", "code"),
    [("ascii", None, 0), ("utf-8", "pipe", 0), ("utf-8", "/dev/full", 4)],
)
def test_the_module_ends_well_whatever_it_prints_to(
    encoding: str, path: str | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that went away, a full disk, and a terminal that cannot show a name."""
    findings = [Finding("a", OK, "well"), Finding("b", OK, "a folder called Bücher")]
    monkeypatch.setattr(module, "examine", lambda self_test: iter(findings))
    if path == "pipe":
        reading, writing = os.pipe()
        os.close(reading)
        out = os.fdopen(writing, "w", encoding=encoding)
    else:
        if path is not None and not Path(path).exists():
            pytest.skip("this system has no disk that is always full")
        out = open(path or tmp_path / "out", "w", encoding=encoding)
    with out:
        monkeypatch.setattr(sys, "stdout", out)
        assert module.main([]) == code
        monkeypatch.undo()
    if path is None:
        assert r"a folder called B\xfccher" in (tmp_path / "out").read_text("ascii")


def test_a_ctrl_c_ends_the_module_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self_test: bool) -> Iterator[Finding]:
        yield Finding("a", OK, "well")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "examine", interrupted)
    assert module.main([]) == 130
    assert capsys.readouterr().err == ""
