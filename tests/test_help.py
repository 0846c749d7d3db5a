"""The help of every verb: there is one, it explains every option, and its defaults are true."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest

import pocketlm
from pocketlm import cli
from pocketlm.benchmarks.quality.measure import measure_quality
from pocketlm.export.writing import export_model
from pocketlm.quantize.precisions import FULL, PRECISIONS
from pocketlm.quantize.run import precision_of


def command(verb: str) -> click.Command:
    found = importlib.import_module(f"pocketlm.commands.{verb}").command
    assert isinstance(found, click.Command)
    return found


def options(verb: str) -> dict[str, click.Option]:
    return {
        str(parameter.name): parameter
        for parameter in command(verb).params
        if isinstance(parameter, click.Option)
    }


def help_text(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--help"])
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    return out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_explains_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_text(capsys, verb)
    assert text.startswith(f"Usage: pocketlm {verb} ")
    for option in options(verb).values():
        assert f"  {option.opts[0]}" in text
        assert option.help and option.help[0].isupper() | option.help[0].isdigit()
        assert option.help.endswith(".")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_begins_with_a_sentence_and_has_an_example(verb: str) -> None:
    text = inspect.cleandoc(str(command(verb).help))
    first = text.split("\n\n")[0]
    assert re.fullmatch(r"[A-Z][^.]*\.", first.replace("\n", " ")), first
    assert f"\n  pocketlm {verb} " in text.split("Example", 1)[1]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_arguments_are_explained(verb: str) -> None:
    text = str(command(verb).help)
    for parameter in command(verb).params:
        if isinstance(parameter, click.Argument):
            for name in re.findall(r"[A-Z]+", parameter.make_metavar(click.Context(command(verb)))):
                assert re.search(rf"\b{name}\b", text), name


@pytest.mark.parametrize("verb", cli.VERBS)
def test_examples_parse(verb: str) -> None:
    """The examples of the help name arguments and options that exist."""
    lines = re.findall(rf"pocketlm ({verb} .*)", str(command(verb).help).split("Example", 1)[1])
    assert lines
    for line in lines:
        arguments = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
        command(verb).make_context(verb, arguments[1:])


@pytest.mark.parametrize(
    ("verb", "function"),
    [
        ("run", pocketlm.Model.stream),
        ("run", pocketlm.load),
        ("batch", pocketlm.Model.stream),
        ("export", export_model),
        ("export", precision_of),
        ("quantize", export_model),
        ("quantize", precision_of),
        ("eval", measure_quality),
    ],
)
def test_defaults_are_those_of_the_function(verb: str, function: Callable[..., Any]) -> None:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    # No option for these: the command fills them itself.
    own = {
        "prompt",
        "path",
        "cancellation",
        "cache",
        "draft",
        "change",
        "calibration",
        "observer",
        "variants",
        "on_progress",
        "prefix_cache_bytes",
    }
    if verb == "batch":  # whose tokens are reproducible, and so not guessed
        own |= {"lookup", "prompt_cache", "reproducible"}
    if function is precision_of:  # whose option names the second set
        own |= {"prefill"}
    required = ["--to", "int8"] if verb == "quantize" else []
    given = command(verb).make_context(verb, ["a", "b", *required]).params
    for name in defaults.keys() - own:
        option = options(verb)[name]
        # An option that may be given several times is () where it is not, if nothing is made of it.
        listed = option.multiple and option.callback is None
        absent = False if option.is_flag else () if listed else defaults[name]
        assert given[name] == absent, name
        assert given[name] in (None, (), False) or options(verb)[name].show_default, name


def test_precisions_are_all_offered() -> None:
    for verb, name, expected in (
        ("run", "precision", [*PRECISIONS]),
        ("export", "precision", [*PRECISIONS]),
        ("quantize", "precision", [name for name in PRECISIONS if name != FULL]),
    ):
        choice = options(verb)[name].type
        assert isinstance(choice, click.Choice)
        assert list(choice.choices) == expected


def test_only_the_verb_asked_for_is_imported() -> None:
    """Listing the verbs loads neither a verb nor anything that computes."""
    script = (
        "import sys; from pocketlm import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'onnxruntime', 'onnx', 'rich', 'tokenizers'}\n"
        "print(sorted(heavy & sys.modules.keys()),"
        " [m for m in sys.modules if m.startswith('pocketlm.commands')], file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stderr == "[] []\n"
