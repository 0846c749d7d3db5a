"""What PyInstaller puts into an application that imports pocketlm, and what it leaves out.

Inside are the runtime, all of pocketlm that makes a model, which is small, and the demo as an int8
model folder. Of other packages those are left out that only an extra needs, unless the application
imports them itself: ``import onnx_ir`` in its program brings what exports a checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PyInstaller import isolated
from PyInstaller.config import CONF
from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata, logger

# The command line, the server, what starts a Python of its own, and what runs inside other
# programs.
PROGRAMS = [
    *("pocketlm.__main__", "pocketlm.cli", "pocketlm.commands", "pocketlm.benchmarks"),
    *("pocketlm.lm_eval", "pocketlm.ray", "pocketlm.llm_plugin", "pocketlm.langchain"),
    *("pocketlm.pyinstaller", "pocketlm.runtime.server"),
    *("pocketlm.export.traced", "pocketlm.export.via_optimum"),
]
# What pocketlm asks of a package that imports its own modules by name; the rest brings much.
OF_THE_HUB = [f"huggingface_hub.{name}" for name in ("constants", "errors", "hf_api", "utils")]
OF_EXTRAS = ["gguf", "huggingface_hub", "llguidance", "onnx", "onnx_ir"]

excludedimports = [*PROGRAMS, *OF_EXTRAS]
# Many are imported by name: architectures, readers, formats, what ``pocketlm.load`` stands for.
hiddenimports = collect_submodules(
    "pocketlm",
    filter=lambda name: not any(f"{name}.".startswith(f"{program}.") for program in PROGRAMS),
)


def made_demo(cache: str) -> tuple[str, str]:
    """The demo's model folder, made in the folder ``cache``, and why it cannot be made."""
    import os

    os.environ["POCKETLM_CACHE"] = cache
    import pocketlm
    from pocketlm.models.loading import find_folder

    try:
        return str(find_folder("demo").path), ""
    except pocketlm.PocketLMError as error:
        return "", str(error)


# In a process of its own, and beside what else PyInstaller makes on its way.
demo, obstacle = isolated.call(made_demo, str(Path(CONF["workpath"], "pocketlm")))
datas = [(demo, str(Path("pocketlm", "demo-int8")))] if demo else []
if obstacle:
    logger.warning("pocketlm: the application gets no demo model: %s", obstacle)


def hook(application: Any) -> None:
    """Adds what those extras need that the application imports."""
    inside = [name for name in OF_EXTRAS if _holds(application, name)]
    for name in inside:
        application.add_datas(copy_metadata(name))  # some ask for their version when imported
    if "onnx_ir" in inside:
        application.add_datas(collect_data_files("pocketlm", subdir="demo"))
    if "huggingface_hub" in inside:
        application.add_imports(*OF_THE_HUB)


def _holds(application: Any, name: str) -> bool:
    node = application.graph.find_node(name)
    return node is not None and type(node).__name__ == "Package"
