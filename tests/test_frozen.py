"""The console example as an application that PyInstaller has frozen: moved, alone, and in trouble.

It runs without an environment, in a folder with blanks and letters that are not ASCII, and, where
the kernel lets us, without a network.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import gpt2_config, write_checkpoint
from model_folders import with_files
from source_tree import FRONT_FOLDER, ROOT

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.writing import export_model
from pocketlm.models.loading import find_folder

pytestmark = [
    pytest.mark.frozen,
    pytest.mark.skipif(sys.platform != "linux", reason="sizes, namespaces and strace of Linux"),
]
archives = pytest.importorskip("PyInstaller.archive.readers")

LARGEST = 140_000_000  # bytes of the console example with the demo
LARGEST_DESKTOP = 330_000_000  # with Qt, and with what exports and downloads
NOBODY = 4242  # a user that /etc/passwd does not know
PROMPT = "It was a dark and stormy night"
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
UNNEEDED = [
    *("torch", "onnx", "onnx_ir", "ml_dtypes", "huggingface_hub", "hf_xet", "gguf", "llguidance"),
    *("rich", "click", "matplotlib", "transformers", "safetensors"),
    *("pocketlm.benchmarks", "pocketlm.commands", "pocketlm.cli", "pocketlm.export.traced"),
]


@dataclass(frozen=True)
class App:
    """A frozen application."""

    program: Path

    def start(
        self, *arguments: str | Path, before: Sequence[str] = (), **options: Any
    ) -> subprocess.Popen[str]:
        """Starts it, by the command ``before`` if any; without environment unless one is given."""
        return subprocess.Popen(
            [*before, str(self.program), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            **{"env": {}, "cwd": "/"} | options,
        )

    def run(self, *arguments: str | Path, **options: Any) -> tuple[int, str, str]:
        """Its exit code, what it printed, and what it complained of."""
        with self.start(*arguments, **options) as process:
            out, err = process.communicate(timeout=120)
        return process.returncode, out, err


@contextmanager
def frozen(program: Path) -> Iterator[App]:
    """``program``, frozen by its name alone, and moved; others may read it there."""
    if Path(pocketlm.__file__).is_relative_to(FRONT_FOLDER):
        pytest.skip("PyInstaller does not find what is installed with pip install -e")
    folder = Path(tempfile.mkdtemp(prefix="pocketlm-"))
    try:
        folder.chmod(0o755)
        places = [f"--{kind}path={folder / kind}" for kind in ("dist", "work", "spec")]
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "PyInstaller", "--noconfirm", *places, program],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        print(f"\nfrozen in {time.monotonic() - begin:.0f} s")
        home = folder / "Ablage für Ünïcode 名前"
        shutil.move(folder / "dist" / program.stem, home)
        yield App(home / program.stem)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    """The console example."""
    with frozen(ROOT / "examples" / "console" / "app.py") as found:
        yield found


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with a chat template."""
    to = tmp_path_factory.mktemp("chat") / "model"
    return with_files(find_folder("demo"), to, {"chat_template.jinja": TEMPLATE}).path


@pytest.fixture(scope="module")
def without_network() -> list[str]:
    """A command that runs another where there is no network, not even loopback."""
    command = ["unshare", "--map-root-user", "--net"]
    return command if _works([*command, "true"]) else []


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def written(prompt: str) -> str:
    """What the example prints, computed in this process."""
    return pocketlm.load("demo").generate(prompt, max_tokens=30, temperature=0).text + "\n"


def of_python(file: Path) -> bool:
    """Python's own libraries, which some builds of Python leave full of debugging symbols."""
    return file.name.startswith("libpython") or file.parent.name == "lib-dynload"


def num_bytes(app: App, scratch: Path) -> int:
    """Of all its files, without Python's debugging symbols; printed."""
    files = [file for file in app.program.parent.rglob("*") if file.is_file()]
    whole = sum(file.stat().st_size for file in files if not file.is_symlink())
    symbols = 0
    for file in filter(of_python, files):
        subprocess.run(["strip", "-o", scratch / "stripped", file], check=True)
        symbols += file.stat().st_size - (scratch / "stripped").stat().st_size
    print(f"\n{whole / 1e6:.1f} MB, of which {symbols / 1e6:.1f} MB are Python's debugging symbols")
    return whole - symbols


# What it does ------------------------------------------------------------------------------------


def test_it_writes_what_is_written_unfrozen(app: App, without_network: list[str]) -> None:
    found = app.run(PROMPT, "--max-tokens", "30", before=without_network)
    assert found == (0, written(PROMPT), "")
    begin = time.monotonic()
    app.run(PROMPT, "--max-tokens", "1")
    print(f"\n{time.monotonic() - begin:.2f} s from its start to its end, after one token")


def test_it_renders_chat_templates(app: App, chat_model: Path, without_network: list[str]) -> None:
    arguments = (PROMPT, "--chat", "--model", chat_model, "--max-tokens", "30")
    found = app.run(*arguments, before=without_network)
    model = pocketlm.load(chat_model)
    prompt = model.chat_prompt([{"role": "user", "content": PROMPT}])
    text = model.generate(prompt, max_tokens=30, temperature=0).text
    assert found == (0, text + "\n", "")


@pytest.mark.parametrize(
    "source, message",
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "2 s"),
        ("{{ ('x' * 999999999) | length }}", "needed more than 256 MB"),
        ("{{ raise_exception('not you') }}", "says 'not you'"),
    ],
)
def test_its_templates_have_the_same_limits(
    source: str, message: str, app: App, tmp_path: Path
) -> None:
    folder = with_files(find_folder("demo"), tmp_path / "m", {"chat_template.jinja": source}).path
    code, out, err = app.run("Hi", "--chat", "--model", folder)
    assert (code, out) == (1, "")
    assert message in err and err.count("\n") == 1


def test_what_it_holds_is_needed(app: App) -> None:
    archive = archives.CArchiveReader(str(app.program)).open_embedded_archive("PYZ.pyz")
    names = set(archive.toc)
    assert {"pocketlm.runtime.session", "pocketlm.export.architectures.gpt2"} <= names
    files = {path.name for path in (app.program.parent / "_internal").iterdir()}
    for name in UNNEEDED:
        assert name not in names | files


def test_it_is_small(app: App, tmp_path: Path) -> None:
    assert num_bytes(app, tmp_path) <= LARGEST


def test_it_connects_to_nothing(app: App, chat_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    trace = ["strace", "-f", "-e", "trace=connect,sendto,bind", "-o", str(log)]
    if not _works([*trace, "true"]):
        pytest.skip("no strace that may trace")
    environment = {"HOME": str(tmp_path)}  # or the C library asks the name service whose it is
    arguments = ("Hi", "--chat", "--model", chat_model)
    assert app.run(*arguments, before=trace, env=environment)[0] == 0
    calls = log.read_text()
    assert "exited with 0" in calls
    assert not any(f"{call}(" in calls for call in ("connect", "sendto", "bind"))


# In trouble --------------------------------------------------------------------------------------


@pytest.mark.parametrize("environment", [{}, {"HOME": "/nothing"}, {"POCKETLM_CACHE": "/dev/null"}])
def test_it_needs_no_home_and_no_cache(app: App, environment: dict[str, str]) -> None:
    options = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    code, out, err = app.run(PROMPT, "--max-tokens", "3", env=environment, **options)
    assert (code, err) == (0, "")
    assert written(PROMPT).startswith(out.rstrip("\n"))


def test_it_needs_no_room_on_the_disk(app: App, chat_model: Path, tmp_path: Path) -> None:
    full = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    fill = f"mount -t tmpfs -o size=4k,nr_inodes=2 tmpfs '{tmp_path}' && cd '{tmp_path}' && "
    fill += "yes > full 2>&-; "
    if not _works([*full, f"{fill} true"]):
        pytest.skip("this kernel lets nobody mount a disk")
    before = [*full, f'{fill} exec "$@"', "sh"]
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": os.defpath}
    found = app.run("Hi", "--chat", "--model", chat_model, before=before, env=environment)
    assert (found[0], found[2]) == (0, "")


def test_an_output_that_cannot_be_written_ends_it_with_a_sentence(app: App) -> None:
    full = ["sh", "-c", 'exec "$@" > /dev/full', "sh"]
    code, _, err = app.run(PROMPT, before=full)
    assert (code, err) == (1, "app: [Errno 28] No space left on device\n")


def test_its_model_may_be_removed_while_it_runs(app: App, tmp_path: Path) -> None:
    model = shutil.copytree(find_folder("demo").path, tmp_path / "model")
    with app.start(PROMPT, "--model", model, "--max-tokens", "400") as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.read(1)
        shutil.rmtree(model)
        rest = process.stdout.read()
        err = process.stderr.read()
    assert (process.returncode, err) == (0, "")
    assert (first + rest).startswith(written(PROMPT).rstrip("\n"))


def test_a_model_too_large_for_the_memory_is_refused_in_a_sentence(
    app: App, tmp_path: Path
) -> None:
    def run(*arguments: str | Path, limit: int) -> tuple[int, str, str]:
        limited = partial(resource.setrlimit, resource.RLIMIT_AS, (limit, limit))
        return app.run(*arguments, "--max-tokens", "1", preexec_fn=limited)

    config = gpt2_config(n_embd=1024, n_layer=6)  # 303 MB
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "large", config))
    large = export_model(checkpoint, tmp_path / "fp32").path
    sizes = range(200_000_000, 2_000_000_000, 100_000_000)
    enough = next(limit for limit in sizes if run(PROMPT, limit=limit)[0] == 0)
    code, out, err = run("a", "--model", large, limit=enough + 50_000_000)
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert re.search(r"opening it: found .* memory.*, expected at least 303 MB", err)


def test_two_run_at_once_with_one_cache(app: App, tmp_path: Path) -> None:
    model = shutil.copytree(find_folder("demo").path, tmp_path / "model")
    environment = {"POCKETLM_CACHE": str(tmp_path / "cache")}
    arguments = (PROMPT, "--model", model, "--max-tokens", "30")
    running = [app.start(*arguments, env=environment) for _ in range(2)]
    outs = [process.communicate(timeout=120) for process in running]
    assert outs == [(written(PROMPT), "")] * 2
    assert (tmp_path / "cache" / "verified").is_file()


def test_ctrl_c_ends_it_in_silence(app: App) -> None:
    with app.start(PROMPT, "--max-tokens", "1000") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert (process.returncode, err) == (130, "")


@pytest.mark.parametrize(
    "model, package, extra",
    [("checkpoint", "onnx_ir", "export"), ("some/model", "huggingface_hub", "hub")],
)
def test_what_is_not_inside_is_for_its_maker_to_add(
    model: str, package: str, extra: str, app: App, tiny_checkpoint: Path
) -> None:
    name = tiny_checkpoint if model == "checkpoint" else model
    code, out, err = app.run(PROMPT, "--model", name)
    assert (code, out) == (1, "")
    assert f'whoever makes it has to write "import {package}" in its program' in err
    assert f'pip install "pocketlm[{extra}]"' in err and err.count("\n") == 1


# The desktop app --------------------------------------------------------------------------------


def test_the_window_of_the_desktop_app_loads_writes_and_stops(
    without_network: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("PySide6")
    environment = {"QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path)}
    with frozen(ROOT / "examples" / "desktop" / "measure.py") as window:
        assert num_bytes(window, tmp_path) <= LARGEST_DESKTOP
        # The demo may have read a prompt before it could be stopped in it, which is then said.
        _, out, err = window.run(
            *("--paragraphs", "10", "--times", "1"), before=without_network, env=environment
        )
    print(out + err)
    assert "a text, at " in out and "stopped in a text: silent" in out
