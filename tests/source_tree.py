"""Where the sources are: used by the tests that read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FRONT = "pocketlm"
FRONT_FOLDER = ROOT / "src" / FRONT
FOLDERS = ("export", "runtime", "quantize", "benchmarks")  # in the order of allowed imports
LEFT_BY_TOOLS = {"__pycache__", "build", "dist"}


def left_by_tools(path: Path) -> bool:
    """Whether a path inside the tree is what a tool or a build left there."""
    parts = path.relative_to(ROOT).parts
    return any(
        part in LEFT_BY_TOOLS
        or part.endswith((".egg-info", "_cache"))
        or part.startswith((".venv", ".git", ".hypothesis"))
        for part in parts
        if part != ".gitignore"
    )


def tracked_files() -> list[Path]:
    """The files git knows; without git, all that no tool left behind."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = [ROOT / name for name in listed.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not left_by_tools(path)]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def sources(*folders: str) -> list[Path]:
    """Python files of these folders of the package; of all, unless named."""
    return sorted(
        path
        for folder in folders or (FRONT, *FOLDERS)
        for path in (FRONT_FOLDER if folder == FRONT else ROOT / folder).rglob("*.py")
        if not left_by_tools(path)
    )


def module_name(path: Path) -> str:
    """``export/readers/llmc.py`` is ``pocketlm.export.readers.llmc``."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] == FRONT_FOLDER.parent.name else [FRONT, *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def clean_copy(out: Path) -> Path:
    """Copies the tree to ``out`` without ``build``, from which a wheel would take old modules."""

    def unwanted(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if left_by_tools(Path(folder, name))]

    shutil.copytree(ROOT, out, symlinks=True, ignore=unwanted)
    return out
