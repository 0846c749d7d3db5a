"""The wheel, a base install and an editable one, each made from a clean copy of the tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from source_tree import FRONT_FOLDER, ROOT, clean_copy, module_name, sources

from pocketlm.export.folder import ModelFolder

pytestmark = pytest.mark.packaging

GENERATE = """
import sys, pocketlm
result = pocketlm.load(sys.argv[1], threads=1).generate("a", max_tokens=5, ignore_eos=True)
print(pocketlm.__file__, len(result.token_ids))
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another test has exported would hide that an extra is missing."""
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))


def run_command(
    *command: str | Path, folder: Path, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs a command that must end with ``code``, in ``folder``, without our environment."""
    ours = ("PYTHON", "VIRTUAL_ENV", "COV_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )
    assert result.returncode == code, f"{command}:\n{result.stdout}\n{result.stderr}"
    return result


def new_environment(folder: Path) -> Path:
    """Makes a virtual environment and returns where its programs are."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = clean_copy(tmp_path_factory.mktemp("wheel") / "tree")
    out = copy.parent / "dist"
    run_command(sys.executable, "-m", "build", "--wheel", "--outdir", out, copy, folder=out.parent)
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def base_programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and no extra."""
    folder = tmp_path_factory.mktemp("base")
    programs = new_environment(folder / "environment")
    run_command(programs / "python", "-m", "pip", "install", "-q", wheel, folder=folder)
    return programs


def test_wheel_holds_the_sources_and_nothing_else(wheel: Path) -> None:
    def in_wheel(path: Path) -> str:
        name = module_name(path).replace(".", "/")
        return f"{name}/__init__.py" if path.name == "__init__.py" else f"{name}.py"

    def in_folder(name: str, folder: Path) -> set[str]:
        return {f"{name}/{path.name}" for path in folder.iterdir()}

    benchmarks = ROOT / "benchmarks"
    data = in_folder("pocketlm/demo", FRONT_FOLDER / "demo")
    data |= in_folder("pocketlm/recipes", FRONT_FOLDER / "recipes")
    data |= in_folder("pocketlm/runtime/server/page", ROOT / "runtime" / "server" / "page")
    data |= in_folder("pocketlm/benchmarks/html/templates", benchmarks / "html" / "templates")
    data |= in_folder(
        "pocketlm/benchmarks/peers/requirements", benchmarks / "peers" / "requirements"
    )
    data |= {"pocketlm/py.typed", "pocketlm/pyinstaller/rthooks.dat"}
    expected = {in_wheel(path) for path in sources()} | data
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        license_text = archive.read(
            f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/licenses/LICENSE"
        )
    assert names == expected
    assert license_text == (ROOT / "LICENSE").read_bytes()


def test_every_module_of_the_wheel_imports_elsewhere(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    names = [module_name(path) for path in sources() if path.name != "__main__.py"]
    # Imported by other programs, which are not installed.
    others = (
        "pocketlm.lm_eval",
        "pocketlm.langchain",
        "pocketlm.llm_plugin",
        "pocketlm.pyinstaller",
    )
    names = [name for name in names if not name.startswith(others)]
    code = (
        "import importlib, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    module = importlib.import_module(name)\n"
        "    assert module.__file__.startswith(sys.argv[1]), module.__file__\n"
    )
    site = tmp_path / "site"
    # From the checkout, where sources must not shadow what is installed.
    run_command(sys.executable, "-c", code, site, *names, folder=ROOT)


def test_base_install_generates(
    base_programs: Path, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    python = base_programs / "python"
    for folder in (tmp_path, ROOT):
        found = run_command(python, "-c", GENERATE, tiny_folder.path, folder=folder).stdout.split()
        assert found[0].startswith(str(base_programs.parent))
        assert found[1] == "5"
    listed = run_command(python, "-m", "pip", "list", "--format=freeze", folder=tmp_path).stdout
    installed = {line.split("==")[0].replace("_", "-") for line in listed.splitlines()}
    assert not installed & {"onnx", "onnx-ir", "safetensors", "ml-dtypes", "torch"}


@pytest.fixture(scope="module")
def full_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with every package that the tests' own has, but pocketlm."""
    folder = tmp_path_factory.mktemp("full")
    programs = new_environment(folder / "environment")
    python = programs / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = run_command(python, "-c", where, folder=folder).stdout.strip()
    for path in sys.path:
        if any(Path(path).glob("*.dist-info")):
            for entry in Path(path).iterdir():
                if "pocketlm" not in entry.name and not Path(site, entry.name).exists():
                    Path(site, entry.name).symlink_to(entry)
    return programs


@pytest.mark.parametrize("installed", ["wheel", "editable"])
@pytest.mark.parametrize("place", ["inside the checkout", "elsewhere"])
def test_readme_python_runs(
    installed: str, place: str, wheel: Path, full_programs: Path, tmp_path: Path
) -> None:
    copy = clean_copy(tmp_path / "tree")
    python = full_programs / "python"
    pip = (python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall")
    run_command(*pip, *(["-e", copy] if installed == "editable" else [wheel]), folder=tmp_path)
    folder = copy if place == "inside the checkout" else tmp_path
    readme = (ROOT / "README.md").read_text("utf-8")
    program = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    program += "print()\nprint(pocketlm.__file__)\n"
    found = run_command(python, "-c", program, folder=folder).stdout.splitlines()[-1]
    parent = copy / "src" if installed == "editable" else full_programs.parent
    assert found.startswith(str(parent))
    for module in set(re.findall(r"python -m (pocketlm\.benchmarks[\w.]*)", readme)):
        run_command(python, "-m", module, "--help", folder=folder)


@pytest.mark.parametrize("program", [("pocketlm",), ("python", "-m", "pocketlm")])
def test_base_install_names_the_extra_of_a_command(
    program: tuple[str, ...], base_programs: Path, tmp_path: Path
) -> None:
    command: list[str | Path] = [base_programs / program[0], *program[1:], "run", "x"]
    result = run_command(*command, folder=tmp_path, code=2)
    # "cli" without click; "export" where another package has brought click.
    assert re.search(r'pip install "pocketlm\[(cli|export)\]"', result.stderr)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_base_install_names_the_extra_of_an_export(base_programs: Path, tmp_path: Path) -> None:
    code = (
        "import pocketlm\n"
        "try: pocketlm.load()\n"
        "except pocketlm.MissingExtraError as error: print(error)\n"
    )
    found = run_command(base_programs / "python", "-c", code, folder=tmp_path).stdout
    assert 'pip install "pocketlm[export]"' in found


def test_editable_install_works_from_anywhere(
    base_programs: Path, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    """Last, since it takes the place of the wheel in that environment."""
    copy = clean_copy(tmp_path / "tree")
    pip = (base_programs / "python", "-m", "pip", "install", "-q")
    run_command(*pip, "--no-deps", "-e", copy, folder=tmp_path)
    for folder in (tmp_path, copy, copy / "src", Path(tmp_path.anchor)):
        found = run_command(
            base_programs / "python", "-c", GENERATE, tiny_folder.path, folder=folder
        ).stdout
        assert found.split() == [str(copy / "src" / "pocketlm" / "__init__.py"), "5"], folder
    # A module added later is found without another install.
    (copy / "runtime" / "added.py").write_text("ANSWER = 42\n")
    code = "from pocketlm.runtime.added import ANSWER; print(ANSWER)"
    assert run_command(base_programs / "python", "-c", code, folder=tmp_path).stdout == "42\n"
