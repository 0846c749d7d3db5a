"""An environment per peer: made once from exact versions, made again when those change.

``requirements/PEER.txt`` lists every package of the environment, as ``pip freeze`` does; pip
installs exactly these. torch comes first and alone, with what it depends on, so that it may come
from another index: PyPI's for Linux brings CUDA along (4 GB); PIP_EXTRA_INDEX_URL can name an index
with builds for processors only, which pip prefers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...export.errors import PocketLMError
from ...export.quantities import duration_text

BUILD_SECONDS = 3600  # llama.cpp is compiled: 6 minutes on two cores
STAMP = "made-from"


class PeerError(PocketLMError):
    """Why a peer has no figures, in one line: what its row says."""


def environment(folder: Path, requirements: Path) -> Path:
    """The interpreter of the environment ``folder``, which is made unless it is up to date.

    Raises PeerError with pip's last words; its whole output is beside the folder, in ``.log``.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    made_from = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text() == made_from:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    run_logged([sys.executable, "-m", "venv", str(folder)], log, BUILD_SECONDS)
    for packages in install_steps(requirements):
        command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *packages]
        run_logged(command, log, BUILD_SECONDS)
    stamp.write_text(made_from)
    return python


def pinned(requirements: Path) -> dict[str, str]:
    """Package -> version. Raises ValueError for a line that leaves the version open."""
    pins = {}
    for line in requirements.read_text().splitlines():
        name, separator, version = line.partition("==")
        if not separator or not version or set(version) & set("*,;<> "):
            raise ValueError(f"{requirements.name}: {line!r} is no exact version")
        pins[name] = version
    return pins


def install_steps(requirements: Path) -> list[list[str]]:
    """What pip is told, call by call: torch if it is there, then exactly the list.

    Without dependencies the second time: the list is complete, and leaves out what a package asks
    for and does not use here, such as torchvision, which on PyPI is built for another torch.
    """
    version = pinned(requirements).get("torch")
    torch = [[f"torch=={version}"]] if version else []
    return [*torch, ["--no-deps", "--requirement", str(requirements)]]


def run_logged(
    command: Sequence[str], log: Path, seconds: float, env: Mapping[str, str] | None = None
) -> str:
    """Runs a command to its end; its stdout. What it writes to stderr is added to ``log``.

    Raises PeerError when it fails or takes longer.
    """
    with open(log, "ab") as stream:
        begin = stream.tell()
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                timeout=seconds,
                env=env,
            )
        except subprocess.TimeoutExpired:
            raise PeerError(f"not done after {duration_text(seconds, 2)}; see {log.name}") from None
        except OSError as error:
            raise PeerError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise PeerError(how_it_ended(done.returncode, log, begin))
    return done.stdout.decode(errors="replace")


def how_it_ended(code: int, log: Path, begin: int = 0) -> str:
    """One line on a process that failed: its signal or exit code, and its last line."""
    with open(log, "rb") as stream:
        stream.seek(begin)
        lines = stream.read().decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    if code == -signal.SIGKILL:
        return "killed, as the system does when memory runs out"
    if code < 0:
        return f"killed by signal {-code} ({signal.strsignal(-code)}): {last:.200}"
    return f"exit code {code}: {last:.200}"


def child_environment(threads: int | None = None) -> dict[str, str]:
    """The variables of a peer's process: no network, no telemetry, no GPU, as many threads."""
    outside = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    found = {name: value for name, value in os.environ.items() if name not in outside}
    found |= {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "CUDA_VISIBLE_DEVICES": ""}
    found |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONNOUSERSITE": "1"}
    if threads is not None:
        found |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return found
