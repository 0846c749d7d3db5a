"""What may not be in the tree at all, and what every public name must have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_tree import ROOT, sources, tracked_files

LARGEST_FILE = 1 << 20
LARGE = {"src/pocketlm/demo/model.safetensors"}
# Folders of somebody's machine; /usr, /etc and the like are the same everywhere.
MACHINE_PATH = re.compile(rb"(?<![\w.~>)\]}/-])(?:/(?:home|Users|root|work|mnt|opt)/|[A-Z]:\\)\w")
EMPTY_NAMES = {"utils", "util", "common", "base", "helpers", "helper", "manager", "misc"}


def test_no_file_names_a_path_of_one_machine() -> None:
    for path in tracked_files():
        if path.suffix != ".safetensors":
            for number, line in enumerate(path.read_bytes().splitlines(), 1):
                found = MACHINE_PATH.search(line)
                assert not found, f"{path}:{number}: names {found[0]!r}"


@pytest.mark.parametrize(
    "line, caught",
    [
        ("see /{home}/ada/models", True),
        ('open("/{root}/x")', True),
        ("PATH=/{opt}/bin", True),
        ("https://example.org/{home}/x", False),
        ("./{opt}/x", False),
        ("/usr/bin/env", False),
    ],
)
def test_the_pattern_knows_a_machine_path(line: str, caught: bool) -> None:
    # The braces keep these lines from being caught themselves.
    written = line.translate({ord("{"): None, ord("}"): None}).encode()
    assert bool(MACHINE_PATH.search(written)) == caught


def test_no_large_file() -> None:
    large = {path for path in tracked_files() if path.stat().st_size > LARGEST_FILE}
    assert {path.relative_to(ROOT).as_posix() for path in large} == LARGE


def test_modules_are_named_after_what_they_hold() -> None:
    for path in [*sources(), *sources("tests")]:
        words = set(path.stem.split("_")) | set(path.parent.name.split("_"))
        assert not words & EMPTY_NAMES, path


def test_test_files_have_distinct_names() -> None:
    names = [path.name for path in sources("tests") if path.name.startswith("test_")]
    assert len(names) == len(set(names))


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def without_a_body_of_its_own(node: ast.FunctionDef) -> bool:
    """An overload is described where it is implemented."""
    return any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)


def is_property(node: ast.FunctionDef) -> bool:
    """The name of one may tell all."""
    return any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_public_names_say_what_they_do_and_return(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), f"{path}: no module docstring"
    for node in public(tree.body):
        place = f"{path}:{node.lineno}: {node.name}"
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, f"{place} has no return annotation"
            if without_a_body_of_its_own(node) or is_property(node):
                continue
        assert ast.get_docstring(node), f"{place} has no docstring"
