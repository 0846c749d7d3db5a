"""Forms of output that a compiler had better not see in this process: tried in one of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import pocketlm
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.form_process import FormProcess

pytest.importorskip("llguidance", reason="the extra 'grammar' is not installed")

DEEP = 20_000  # rules that refer to one another: more than any stack holds


def chain_of_rules(last: str) -> str:
    """A grammar whose rules each refer to the next one."""
    rules = [f'a{index}: "x" a{index + 1} "y"' for index in range(DEEP)]
    return "\n".join(["start: a0", *rules, f"a{DEEP}: {last}"])


REFERENCES: dict[str, Any] = {
    f"a{index}": {"$ref": f"#/$defs/a{index + 1}"} for index in range(DEEP)
}
PATTERNS = [{"type": "string", "pattern": f"a{index}"} for index in range(60)]
# By what they do to a process that compiles them.
FORMS: dict[str, dict[str, Any]] = {
    "rules as deep as the stack": {"grammar": chain_of_rules('"z"')},
    "references as deep": {
        "json_schema": {"$ref": "#/$defs/a0", "$defs": {**REFERENCES, f"a{DEEP}": {}}}
    },
}


@pytest.fixture(scope="module")
def model(tiny_folder: ModelFolder) -> Iterator[pocketlm.Model]:
    with pocketlm.Model(tiny_folder, threads=1) as found:
        found.try_forms_apart()
        yield found


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_ends_its_process_is_refused(name: str, model: pocketlm.Model) -> None:
    with pytest.raises(RequestError, match="for llguidance, expected a smaller one") as told:
        model.request("a", **FORMS[name])
    assert str(told.value).startswith(next(iter(FORMS[name])))
    assert model.request("a", choices=["yes", "no"]).grammar is not None


def test_a_form_that_takes_too_long_is_refused() -> None:
    """Patterns that all have to match are tried against one another."""
    process = FormProcess(0.2)
    with pytest.raises(RequestError, match=r"json_schema takes longer than 0\.2 s to compile"):
        process.try_out("json_schema", f"start: %json {json.dumps({'allOf': PATTERNS})}")
    process.try_out("regex", "start: /a/")


def test_a_form_that_is_wrong_is_told_as_ever(model: pocketlm.Model) -> None:
    with pytest.raises(RequestError, match="regex was refused .*unclosed group"):
        model.request("a", regex="(")


def test_a_form_is_tried_once(model: pocketlm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.request("a", regex="ab+")
    monkeypatch.setattr(FormProcess, "request", None)
    model.request("a", regex="ab+")


@pytest.mark.parametrize("depth", [1, 90])
def test_a_form_of_ordinary_depth_passes(depth: int, model: pocketlm.Model) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth // 2):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    model.request("a", json_schema=schema)


def test_an_application_without_an_interpreter_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "")
    with pytest.raises(RequestError, match="found no Python interpreter beside this application"):
        FormProcess().try_out("regex", "start: /a/")
