"""pyproject.toml and ``.typing`` name every package that exists, and nothing else."""

from __future__ import annotations

import os
import tomllib

from source_tree import FOLDERS, FRONT, FRONT_FOLDER, ROOT, module_name, sources

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]


def test_packages_are_the_folders_with_an_init() -> None:
    found = [module_name(path) for path in sources() if path.name == "__init__.py"]
    assert sorted(SETUPTOOLS["packages"]) == sorted(found)


def test_every_folder_with_modules_is_a_package() -> None:
    for path in sources():
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} lacks __init__.py"


def test_package_folders_are_mapped() -> None:
    expected = {FRONT: f"src/{FRONT}"} | {f"pocketlm.{folder}": folder for folder in FOLDERS}
    assert SETUPTOOLS["package-dir"] == expected


def test_every_needed_link_exists_and_points_right() -> None:
    links = ROOT / ".typing" / FRONT
    front = {
        path.name
        for path in FRONT_FOLDER.iterdir()
        if path.suffix == ".py" or path.name == "py.typed" or (path / "__init__.py").is_file()
    }
    expected = {name: f"../../src/{FRONT}/{name}" for name in front}
    expected |= {folder: f"../../{folder}" for folder in FOLDERS}
    assert {link.name: os.readlink(link) for link in links.iterdir()} == expected


def test_extra_all_holds_every_extra_a_user_may_want() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    # Not "optimum", whose transformers wants an older huggingface_hub than "hub".
    assert extras["all"] == ["pocketlm[cli,gguf,grammar,report,serve]"]
    # Not "cuda": onnxruntime-gpu and onnxruntime are two packages in one place.
    # Not "lm-eval": a program of its own, with some thirty packages. Nor "ray", a cluster. "llm"
    # and "langchain" are for those who have either; "docs" builds the pages.
    users = {
        "export",
        "gguf",
        "hub",
        "chat",
        "grammar",
        "cli",
        "report",
        "cuda",
        "optimum",
        "lm-eval",
    }
    users |= {"ray", "llm", "langchain", "serve"}
    assert set(extras) == users | {"test", "all", "docs"}


def test_version_is_the_packages() -> None:
    import pocketlm

    assert PYPROJECT["project"]["version"] == pocketlm.__version__


def test_slow_markers_stay_out_of_the_plain_run() -> None:
    options = PYPROJECT["tool"]["pytest"]["ini_options"]
    names = [marker.split(":")[0] for marker in options["markers"]]
    expression = options["addopts"][options["addopts"].index("-m") + 1]
    assert expression == f"not ({' or '.join(names)})"
