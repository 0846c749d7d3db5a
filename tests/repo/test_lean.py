"""What a base install can do: everything of the runtime, with every extra's package blocked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
from model_folders import with_files
from source_tree import module_name, sources

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.models.local import demo_model

BLOCKED = (
    *("onnx", "onnx_ir", "safetensors", "ml_dtypes", "torch", "optimum", "transformers"),
    *("click", "rich", "jinja2", "huggingface_hub", "matplotlib", "lm_eval", "psutil"),
    *("llguidance", "langchain_core"),
)
BLOCK = f"""
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run_python(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` in another process, with an empty cache; warnings are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments],
        cwd=folder,
        env=os.environ | {"POCKETLM_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


def output_of(code: str, *arguments: str, folder: Path) -> str:
    result = run_python(code, *arguments, folder=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_hook_blocks(tmp_path: Path) -> None:
    for name in BLOCKED:
        result = run_python(f"{BLOCK}\nimport {name}", folder=tmp_path)
        assert f"No module named '{name}'" in result.stderr


def test_every_runtime_module_imports_without_extras(tmp_path: Path) -> None:
    names = [module_name(path) for path in sources("runtime") if "server" not in path.parts]
    assert "pocketlm.runtime.session" in names
    imports = "\n".join(f"import {name}" for name in [*names, "pocketlm.models.loading"])
    output_of(f"{BLOCK}\n{imports}", folder=tmp_path)


def test_a_model_folder_generates_without_extras(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    code = """
        import sys, pocketlm
        result = pocketlm.load(sys.argv[1], threads=1).generate("a", max_tokens=5, ignore_eos=True)
        print(len(result.token_ids))
    """
    found = output_of(BLOCK + textwrap.dedent(code), str(tiny_folder.path), folder=tmp_path)
    assert found == "5\n"


@pytest.mark.parametrize("verb", [["run", "x"], ["info", "x"], ["export", "x", "out"], ["chat"]])
def test_the_command_line_without_click_names_its_extra(verb: list[str], tmp_path: Path) -> None:
    code = f"{BLOCK}\nfrom pocketlm.cli import main\nmain({verb!r})"
    result = run_python(code, folder=tmp_path)
    assert result.returncode == 2
    assert 'pip install "pocketlm[cli]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("package", "verb"),
    [
        ("onnx_ir", ["run", "x"]),  # rich is for what is drawn on a terminal
        *((p, verb) for p in ("rich", "onnx_ir") for verb in (["info", "x"], ["export", "x", "y"])),
    ],
)
def test_click_from_elsewhere_is_not_enough(package: str, verb: list[str], tmp_path: Path) -> None:
    """Today tokenizers brings click, through huggingface_hub: a base install gets that far."""
    block = BLOCK.replace(repr(BLOCKED), repr((package,)))
    code = f"{block}\nfrom pocketlm.cli import main\nmain({verb!r})"
    result = run_python(code, folder=tmp_path)
    assert result.returncode == 2
    assert "bug" not in result.stderr
    # A folder that is not there is found to be missing before what would draw it.
    if verb[0] != "info":
        assert 'pip install "pocketlm[' in result.stderr


@pytest.mark.parametrize("verb", [["bench", "x"], ["eval", "x", "--text", "y"]])
def test_measuring_without_psutil_names_its_extra(verb: list[str], tmp_path: Path) -> None:
    block = BLOCK.replace(repr(BLOCKED), repr(("psutil",)))
    result = run_python(f"{block}\nfrom pocketlm.cli import main\nmain({verb!r})", folder=tmp_path)
    assert result.returncode == 2
    assert "measuring needs the package 'psutil'" in result.stderr
    assert 'pip install "pocketlm[cli]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_exporting_without_onnx_names_its_extra(tmp_path: Path) -> None:
    code = f"{BLOCK}\nimport pocketlm\npocketlm.load()"
    result = run_python(code, folder=tmp_path)
    assert "MissingExtraError" in result.stderr
    assert 'pip install "pocketlm[export]"' in result.stderr


def test_the_harness_model_without_the_harness_names_its_extra(tmp_path: Path) -> None:
    result = run_python(f"{BLOCK}\nimport pocketlm.lm_eval", folder=tmp_path)
    assert "MissingExtraError" in result.stderr
    assert 'pip install "pocketlm[lm-eval]"' in result.stderr


def test_a_model_for_langchain_without_it_names_its_extra(tmp_path: Path) -> None:
    result = run_python(f"{BLOCK}\nimport pocketlm.langchain", folder=tmp_path)
    assert "MissingExtraError" in result.stderr
    assert 'pip install "pocketlm[langchain]"' in result.stderr


def test_the_harness_program_without_the_harness_is_one_line(tmp_path: Path) -> None:
    code = "import runpy\nrunpy.run_module('pocketlm.lm_eval', run_name='__main__')"
    result = run_python(f"{BLOCK}\n{code}", folder=tmp_path)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("pocketlm: evaluating by lm-evaluation-harness needs the pack")
    assert 'pip install "pocketlm[lm-eval]"' in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a Linux device")
def test_the_harness_program_ends_well_where_stderr_is_full(tmp_path: Path) -> None:
    code = f"{BLOCK}\nimport runpy\nrunpy.run_module('pocketlm.lm_eval', run_name='__main__')"
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", code], stderr=full).returncode == 2


def test_chatting_without_jinja2_names_its_extra(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    folder = with_files(tiny_folder, tmp_path / "copy", {"chat_template.jinja": "x"})
    code = """
        import sys, pocketlm
        pocketlm.load(sys.argv[1]).chat([{"role": "user", "content": "Hi"}])
    """
    result = run_python(BLOCK + textwrap.dedent(code), str(folder.path), folder=tmp_path)
    assert "MissingExtraError" in result.stderr
    assert 'pip install "pocketlm[chat]"' in result.stderr


def test_a_constraint_without_llguidance_names_its_extra(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    code = """
        import sys, pocketlm
        pocketlm.load(sys.argv[1], threads=1).generate("a", choices=["yes", "no"])
    """
    result = run_python(BLOCK + textwrap.dedent(code), str(tiny_folder.path), folder=tmp_path)
    assert "MissingExtraError: constrained output needs the package 'llguidance'" in result.stderr
    assert 'pip install "pocketlm[grammar]"' in result.stderr


# What is left of ONNX Runtime when one of its two packages was removed: nothing, a folder without
# modules, or modules without what they import from each other.
HALVES = {
    "nothing": "sys.modules['onnxruntime'] = None",
    "an empty package": "sys.modules['onnxruntime'] = types.ModuleType('onnxruntime')",
    "a file cut off": "sys.meta_path.insert(0, NoLibrary(SyntaxError('was never closed')))",
    "no library": "sys.meta_path.insert(0, NoLibrary())",
}
NO_LIBRARY = """
import importlib.abc, sys, types
class NoLibrary(importlib.abc.MetaPathFinder):
    def __init__(self, error=ImportError("cannot import name 'get_device' from 'onnxruntime'")):
        self.error = error
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            raise self.error
"""


@pytest.mark.parametrize("half", HALVES)
def test_half_of_onnxruntime_names_what_to_install(
    half: str, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    """At every entry: from Python, and at each verb that runs a model."""
    code = f"""{NO_LIBRARY}
{HALVES[half]}
import pocketlm
from pocketlm.cli import main
folder = sys.argv[1]
try:
    pocketlm.load(folder)
except pocketlm.MissingExtraError as error:
    print(error)
for verb in (["run", folder, "x"], ["chat", folder], ["bench", folder], ["eval", folder]):
    try:
        main(verb)
    except SystemExit as ended:
        print(ended.code)
"""
    ended = run_python(code, str(tiny_folder.path), folder=tmp_path)
    message, *codes = ended.stdout.splitlines()
    found = "no package onnxruntime" if half == "nothing" else "only a part of onnxruntime"
    assert message.startswith(f"running a model: found {found}")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime" in message
    assert ended.stderr == 4 * f"pocketlm: {message}\n"
    assert codes == 4 * ["2"]


def test_verbs_that_only_write_need_no_onnxruntime(
    tiny_checkpoint: Path, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    """Unless they calibrate, which is to run the model."""
    code = f"""import sys
{HALVES["nothing"]}
from pocketlm.cli import main
checkpoint, folder = sys.argv[1:]
for number, words in enumerate((
    ["export", checkpoint, "--precision", "int8"],
    ["export", checkpoint, "--precision", "int4", "--calibrate", "none"],
    ["export", checkpoint, "--precision", "int4", "--dry-run", "--json"],
    ["quantize", folder, "--to", "int8-weight"],
    ["quantize", folder, "--to", "int4"],
)):
    quiet = [] if "--dry-run" in words else ["--quiet"]
    try:
        main([*words[:2], f"out-{{number}}", *words[2:], *quiet])
    except SystemExit as ended:
        print(ended.code, file=sys.stderr)
"""
    places = (str(tiny_checkpoint), str(tiny_folder.path))
    *written, told, code = run_python(code, *places, folder=tmp_path).stderr.splitlines()
    assert (written, code) == (4 * ["0"], "2")
    assert told.startswith("pocketlm: running a model: found no package onnxruntime, expected")


def test_info_tells_what_is_missing_to_run_and_all_else(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    code = """
        import sys
        sys.modules["onnxruntime"] = None
        from pocketlm.cli import main
        main(["info", sys.argv[1], "--verify"])
    """
    said = output_of(code, str(tiny_folder.path), folder=tmp_path)
    assert "provider      none: found no package onnxruntime, expected the whole of it; ins" in said
    assert "all files are as they were written" in said


def test_an_interrupt_of_the_first_load_is_one_and_leaves_all_whole(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    """C extensions make an ImportError of it, and NumPy cannot be imported again after that."""
    code = """
        import importlib.abc, signal, sys
        import pocketlm
        signal.signal(signal.SIGINT, signal.default_int_handler)
        class Impatient(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == "numpy._core._multiarray_umath":
                    sys.meta_path.remove(self)
                    try:
                        signal.raise_signal(signal.SIGINT)
                    except KeyboardInterrupt:
                        raise ImportError("initialization failed") from None
        sys.meta_path.insert(0, Impatient())
        try:
            pocketlm.load(sys.argv[1])
        except KeyboardInterrupt:
            print("interrupted")
        print(pocketlm.load(sys.argv[1], threads=1).generate("a", max_tokens=1).finish_reason)
    """
    assert output_of(code, str(tiny_folder.path), folder=tmp_path) == "interrupted\nlength\n"


def test_onnxruntime_without_memory_is_not_called_half_a_package(tmp_path: Path) -> None:
    code = f"""{NO_LIBRARY.replace("cannot import name", "std::bad_alloc")}
sys.meta_path.insert(0, NoLibrary())
import pocketlm
try:
    pocketlm.load
except pocketlm.ResourceError as error:
    print(error)
"""
    assert output_of(code, folder=tmp_path).startswith("importing onnxruntime: found ")


# What no start from a model folder needs: each would be a good part of the time to the first token.
IDLE_PACKAGES = {"asyncio", "concurrent", "decimal", "email", "fractions", "http"}
IDLE_PACKAGES |= {"importlib.metadata", "logging", "lzma", "multiprocessing", "shutil", "ssl"}
IDLE_PACKAGES |= {"subprocess", "tempfile", "tomllib", "urllib.request", "zipfile", *BLOCKED}
IDLE_MODULES = {
    "benchmarks": None,
    "export": (
        "architectures checkpoint download earlier_manifests gguf graph graph_check.graph hub "
        "leftovers lock lora output_file placing plan publishing readers traced writing"
    ),
    "models": "making store",
    "quantize": "run plan options",
    "runtime": (
        "beams chat chat_template labels messages openai_form prompt_cache scheduler scoring "
        "template_worker text_session"
    ),
}
IDLE = IDLE_PACKAGES | {
    f"pocketlm.{folder}.{module}" if module else f"pocketlm.{folder}"
    for folder, modules in IDLE_MODULES.items()
    for module in (modules or "").split(" ")
}
ALONE = {"pocketlm.quantize", "numpy.random"}  # that options, and drawing, need
PRINT_MODULES = """
import numpy, onnxruntime, tokenizers, sys
theirs = set(sys.modules)
{start}
print("\\n", *sorted(set(sys.modules) - theirs), sep="\\n")
"""
RUN = """
from pocketlm.cli import main
try:
    main(["run", "demo", "a", "--max-tokens", "1"])
except SystemExit as ended:
    assert not ended.code
"""


@pytest.mark.parametrize(
    ("start", "unneeded"),
    [
        ("pocketlm.load('demo').generate('a', max_tokens=1, temperature=0)", IDLE | ALONE),
        (RUN, IDLE - {"click"}),
    ],
    ids=["load", "run"],
)
def test_a_start_imports_nothing_that_its_text_does_not_need(
    start: str,
    unneeded: set[str],
    tiny_folder: ModelFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("POCKETLM_CACHE", str(cache))
    shutil.copytree(tiny_folder.path, demo_model(None).place(cache))
    pocketlm.load("demo")  # after which its files and its graph are known
    code = PRINT_MODULES.format(start=f"import pocketlm\n{start}")
    found = set(output_of(code, folder=tmp_path).rpartition("\n\n")[2].split())
    assert "pocketlm.runtime.session" in found
    assert [name for name in sorted(found) if unneeded & {name, *_parents(name)}] == []


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def test_what_no_start_needs_is_there_to_be_imported() -> None:
    names = [name for name in IDLE if name.startswith("pocketlm.")]
    assert [name for name in names if find_spec(name) is None] == []


@pytest.mark.parametrize("verb", ["run", "chat"])
def test_help_of_what_runs_a_model_imports_no_runtime(verb: str, tmp_path: Path) -> None:
    code = f"""
        import sys
        from pocketlm.cli import main
        try:
            main([{verb!r}, "--help"])
        except SystemExit:
            print(sorted({{"numpy", "onnxruntime", "tokenizers", "asyncio"}} & set(sys.modules)))
    """
    assert output_of(code, folder=tmp_path).endswith("\n[]\n")


def test_importing_is_cheap_and_switches_telemetry_off(tmp_path: Path) -> None:
    code = """
        import os, sys
        os.environ.pop("ORT_DISABLE_TELEMETRY", None)
        import pocketlm
        print(os.environ["ORT_DISABLE_TELEMETRY"])
        heavy = {"numpy", "onnxruntime", "tokenizers", "click"}
        print(sorted(heavy & set(sys.modules)))
        dir(pocketlm), pocketlm.__version__
        print("numpy" in sys.modules)
        pocketlm.load
        print("onnxruntime" in sys.modules)
    """
    assert output_of(code, folder=tmp_path).split("\n")[:4] == ["1", "[]", "False", "True"]


def test_the_users_choice_about_telemetry_stays(tmp_path: Path) -> None:
    code = """
        import os
        os.environ["ORT_DISABLE_TELEMETRY"] = "0"
        import pocketlm
        print(os.environ["ORT_DISABLE_TELEMETRY"])
    """
    assert output_of(code, folder=tmp_path) == "0\n"


def test_importing_too_late_for_telemetry_warns(tmp_path: Path) -> None:
    code = """
        import os
        os.environ.pop("ORT_DISABLE_TELEMETRY", None)
        import onnxruntime, pocketlm
    """
    result = run_python(code, folder=tmp_path)
    assert "import pocketlm first, or set ORT_DISABLE_TELEMETRY=1" in result.stderr.replace(
        "\n", " "
    )
