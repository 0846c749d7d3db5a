"""Who imports whom: export < runtime < quantize < benchmarks < the front, never back."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest
from source_tree import FOLDERS, FRONT, ROOT, module_name, sources

# What `pip install pocketlm` brings, without any extra.
RUNTIME_PACKAGES = {"numpy", "onnxruntime", "tokenizers"}
SERVE_PACKAGES = {
    "h11",
    "msgspec",
    "prometheus_client",
    "starlette",
    "uvicorn",
}  # in runtime/server
EXPORT_PACKAGES = {"numpy", "onnx", "onnx_ir", "safetensors", "ml_dtypes", "threadpoolctl"}
ALLOWED_PACKAGES = {
    "export": EXPORT_PACKAGES | {"gguf", "huggingface_hub", "tokenizers"},
    "quantize": EXPORT_PACKAGES | RUNTIME_PACKAGES,
    "runtime": RUNTIME_PACKAGES | {"jinja2", "llguidance", *SERVE_PACKAGES},
    "benchmarks": RUNTIME_PACKAGES | {"jinja2", "matplotlib", "psutil"},
    FRONT: RUNTIME_PACKAGES | {"click", "psutil", "rich"},
}
# What runs in a process of its own, or inside another program, may import more.
ADAPTERS = "benchmarks/peers/adapters"
CHILDREN = {
    "export/traced/child.py": {"torch", "transformers", "optimum", "onnxruntime"},
    "export/foreign/first_load.py": {"onnxruntime"},
    "src/pocketlm/lm_eval.py": {"lm_eval", "tqdm"},
    "src/pocketlm/pyinstaller/hook-pocketlm.py": {"PyInstaller"},
    "benchmarks/peers/importance.py": {"llama_cpp"},
    f"{ADAPTERS}/ctranslate2.py": {"ctranslate2"},
    f"{ADAPTERS}/llama_cpp.py": {"gguf", "llama_cpp"},
    f"{ADAPTERS}/onnxruntime_genai.py": {"onnxruntime_genai"},
    f"{ADAPTERS}/openvino_genai.py": {"openvino", "openvino_genai", "optimum"},
    f"{ADAPTERS}/optimum_onnx.py": {"onnxruntime", "optimum", "torch"},
    f"{ADAPTERS}/pytorch.py": {"torch", "transformers"},
    "src/pocketlm/llm_plugin.py": {"llm", "pydantic"},
    "src/pocketlm/langchain.py": {"langchain_core", "pydantic"},
}
# Modules of export that need nothing beyond the standard library and NumPy.
LEAN = {"cache_folder", "errors", "folder", "genai", "graph_check", "importing", "interrupts"}
LEAN |= {"earlier_manifests", "frozen", "later", "leftovers", "manifest", "manifest_file"}
LEAN |= {"memory", "output_file", "placing", "publishing", "quantities", "records"}
LEAN |= {"regular_file", "release", "sampling_ranges", "strict_json", "threads", "tokenizers"}
LEAN |= {"utf8", "verified", "whole_number"}
# Rewrites a graph while a model is opened on CUDA, which brings what an export needs.
ON_CUDA = {"float16_attention"}


def imports(path: Path) -> Iterator[tuple[int, str, int]]:
    """(line, full module name, dots) of every import in a file, wherever it stands."""
    package = module_name(path)
    if path.name != "__init__.py":
        package = package.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, 0
        elif isinstance(node, ast.ImportFrom):
            name = resolve_name("." * node.level + (node.module or ""), package)
            # `from ..export import folder` imports a module too, for all that can be read here.
            for alias in node.names if node.module is None or name.count(".") == 1 else ():
                yield node.lineno, f"{name}.{alias.name}", node.level
            if name.count(".") != 1 and (node.module or "." in name):
                yield node.lineno, name, node.level


def own_imports(folder: str) -> Iterator[tuple[str, list[str], int]]:
    """(place, parts after ``pocketlm``, dots) of every import of ours in a folder."""
    for path in sources(folder):
        for line, name, dots in imports(path):
            parts = name.split(".")
            if parts[0] == FRONT:
                yield f"{path}:{line}: imports {name}", parts[1:], dots


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_inside_the_folders_are_relative_and_never_of_a_later_one(folder: str) -> None:
    earlier = FOLDERS[: FOLDERS.index(folder) + 1]
    for place, parts, dots in own_imports(folder):
        assert dots > 0, f"{place}: absolute"
        assert parts and parts[0] in earlier, f"{place}: later than {folder}"


def test_imports_of_the_front_are_absolute() -> None:
    assert [place for place, _, dots in own_imports(FRONT) if dots] == []


def test_what_asks_a_server_knows_no_command() -> None:
    """Commands stand on it, and so may others."""
    found = list(own_imports(f"src/{FRONT}/remote"))
    assert len(found) > 5
    assert [place for place, parts, _ in found if parts[0] in ("commands", "cli")] == []


def test_runtime_takes_only_lean_modules_from_export() -> None:
    for place, parts, _ in own_imports("runtime"):
        lean = LEAN | (ON_CUDA if "placement.py" in place else set())
        assert parts[0] == "runtime" or (parts[0] == "export" and parts[1] in lean), place


def test_lean_modules_import_only_lean_ones() -> None:
    allowed = sys.stdlib_module_names | {"numpy"}
    for path in sources("export"):
        if path.relative_to(ROOT / "export").with_suffix("").parts[0] in LEAN:
            # The library of the same name is part of a base install.
            in_tokenizers = {"tokenizers"} if path.parent.name == "tokenizers" else set()
            for line, name, _ in imports(path):
                parts = name.split(".")
                lean = parts[0] in allowed | in_tokenizers or (
                    parts[:2] == [FRONT, "export"] and parts[2] in LEAN
                )
                assert lean, f"{path}:{line}: imports {name}"


@pytest.mark.parametrize("folder", [FRONT, *FOLDERS])
def test_third_party_packages_are_those_of_the_folder(folder: str) -> None:
    known = ALLOWED_PACKAGES[folder] | set(sys.stdlib_module_names) | {FRONT}
    for path in sources(folder):
        allowed = known | CHILDREN.get(path.relative_to(ROOT).as_posix(), set())
        for line, name, _ in imports(path):
            assert name.partition(".")[0] in allowed, f"{path}:{line}: imports {name}"


def test_no_frozen_application_gets_the_server() -> None:
    """Freezing would warn of each package that is not installed, or take all of them along."""
    hook = ast.parse((ROOT / "src/pocketlm/pyinstaller/hook-pocketlm.py").read_text("utf-8"))
    (left_out,) = (
        [
            str(ast.literal_eval(node))
            for node in ast.walk(statement)
            if isinstance(node, ast.Constant)
        ]
        for statement in hook.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "PROGRAMS"
    )
    needing = [
        module_name(path)
        for folder in (FRONT, *FOLDERS)
        for path in sources(folder)
        if any(name.partition(".")[0] in SERVE_PACKAGES for _, name, _ in imports(path))
    ]
    assert len(needing) > 5
    for name in needing:
        assert any(name.startswith(f"{program}.") for program in left_out), name


def test_package_inits_import_nothing_from_third_parties() -> None:
    for path in sources():
        if path.name == "__init__.py":
            for line, name, _ in imports(path):
                top = name.partition(".")[0]
                assert top in sys.stdlib_module_names | {FRONT}, f"{path}:{line}: imports {name}"


def test_the_check_sees_what_it_forbids() -> None:
    file = sources("runtime")[1]
    names = {name for _, name, _ in imports(file)}
    assert any(not name.startswith(FRONT) for name in names)
    everything = [parts for folder in FOLDERS for _, parts, _ in own_imports(folder)]
    assert len(everything) > 30
