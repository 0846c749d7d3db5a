"""``pocketlm serve``: what it is given becomes a server, or a line that says what to type."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from command_line import Run, assert_refused

from pocketlm.commands.addresses import AddressError, binding
from pocketlm.commands.options import MODEL_OPTIONS
from pocketlm.commands.serve import command
from pocketlm.commands.served_models import DEMOS, named_models, sources_of
from pocketlm.commands.served_recipes import served_recipes
from pocketlm.doctor import packages
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.server.connections import listening
from pocketlm.runtime.server.service import Service
from pocketlm.runtime.server.settings import Settings

pytestmark = pytest.mark.serve

QUIET = ("--threads", "1", "--port", "0")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Service]:
    """The services of servers that were to run, and did not."""
    found: list[Service] = []

    class Idle:
        url = "http://127.0.0.1:1"

        def __init__(self, service: Service, listener: socket.socket) -> None:
            found.append(service)

        def run(self) -> None:
            pass

    monkeypatch.setattr(listening, "Server", Idle)
    return found


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key.txt"
    file.write_text("  sesame\n")
    file.chmod(0o600)
    return file


# Options -----------------------------------------------------------------------------------------


def test_options_become_settings(
    run: Run, tiny_folder: ModelFolder, begun: list[Service], key_file: Path
) -> None:
    ended = run(
        *("serve", tiny_folder.path, *QUIET, "--api-key-file", key_file),
        *("--allow-host", "pc.local", "--cors", "http://localhost:3000", "--parallel", "3"),
        *("--queue", "5", "--kv-bytes", "2GB", "--max-memory", "3GB", "--idle", "0"),
        *("--max-seconds", "9", "--max-body", "1MB", "--grace", "2", "--fastest"),
    )
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert begun[0].settings == Settings(
        port=0,
        api_key="sesame",
        hosts=("pc.local",),
        origins=("http://localhost:3000",),
        parallel=3,
        most_waiting=5,
        kv_bytes=2_000_000_000,
        memory_bytes=3_000_000_000,
        idle_seconds=None,
        max_seconds=9,
        most_body_bytes=1_000_000,
        grace_seconds=2,
        reproducible=False,
        open_first=True,
    )


def test_defaults_are_those_of_the_settings(
    run: Run, tiny_folder: ModelFolder, begun: list[Service]
) -> None:
    assert run("serve", tiny_folder.path, "--port", "0").code == 0
    found, own = begun[0].settings, Settings()
    assert found.idle_seconds == 900
    assert found.memory_bytes is not None  # of what is free
    for name in Settings.__dataclass_fields__.keys() - {
        "port",
        "idle_seconds",
        "memory_bytes",
        "open_first",
    }:
        assert getattr(found, name) == getattr(own, name), name


def test_every_setting_of_an_operator_has_an_option(begun: list[Service]) -> None:
    names = {parameter.name for parameter in command.params}
    own = {"api_key": "api_key_file", "reproducible": "fastest"}
    inner = {"header_seconds", "body_seconds", "stall_seconds", "open_first", "most_connections"}
    for name in Settings.__dataclass_fields__.keys() - inner:
        assert own.get(name, name) in names


@pytest.mark.parametrize("option", ["--kv-bytes", "--max-memory", "--max-body"])
def test_a_wrong_size_is_refused_with_its_option(run: Run, option: str) -> None:
    assert_refused(run("serve", option, "2XB"), f"{option}.*found the size '2XB', expected")


@pytest.mark.parametrize("option", ["--idle", "--max-seconds", "--grace"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_seconds_are_a_number(run: Run, option: str, value: str) -> None:
    assert_refused(run("serve", option, value), f"'{option}': ")


def test_a_body_that_holds_nothing_is_refused(run: Run) -> None:
    assert_refused(run("serve", "--max-body", "10"), "found --max-body 10, expected 1000 or more")


def test_everyone_may_use_the_models_only_with_a_key(
    run: Run, begun: list[Service], tiny_folder: ModelFolder, key_file: Path
) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        assert_refused(run("serve", "--host", host), f"host is '{host}'.*--api-key-file")
    asked = ("serve", tiny_folder.path, *QUIET, "--host", "0.0.0.0")
    assert run(*asked, "--api-key-file", key_file).code == 0
    assert begun[0].settings.api_key == "sesame"


def test_a_key_is_read_from_the_environment(
    run: Run, begun: list[Service], tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETLM_API_KEY", "open\n")
    assert run("serve", tiny_folder.path, *QUIET).code == 0
    assert begun[0].settings.api_key == "open"
    monkeypatch.setenv("POCKETLM_API_KEY", " ")
    assert_refused(run("serve"), "POCKETLM_API_KEY is empty, expected a key")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "'key.txt' cannot be opened.*expected a readable file"),
        (b" \n", "key.txt is empty, expected a key"),
        (b"one\ntwo", "key.txt has other characters than visible ASCII, expected a key"),
        (b"\xff\xfe", "key.txt has other characters than visible ASCII, expected a key"),
    ],
)
def test_a_file_without_a_key_is_refused(
    run: Run, tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "key.txt"
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o600)
    assert_refused(run("serve", "--api-key-file", file), message)


@pytest.mark.skipif(os.name != "posix", reason="there are no such modes")
def test_a_key_that_others_may_read_is_told(
    run: Run, begun: list[Service], tiny_folder: ModelFolder, key_file: Path
) -> None:
    key_file.chmod(0o644)
    ended = run("serve", tiny_folder.path, *QUIET, "--api-key-file", key_file)
    assert ended.code == 0
    assert (
        f"may be read by others (mode 644), expected 600; type: chmod 600 {key_file}" in ended.err
    )
    assert "sesame" not in ended.err


# Models ------------------------------------------------------------------------------------------


def names(*words: str | Path) -> list[str]:
    return [each.name for each in named_models([str(word) for word in words])]


def test_a_model_is_called_by_its_folder_its_place_on_the_hub_or_what_one_says(
    tiny_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_folder.path)
    last = tiny_folder.path.name
    assert names(tiny_folder.path) == names(f"{tiny_folder.path}/") == names(".") == [last]
    assert names("demo", "org/name", "org/name@v1") == ["demo", "org/name", "org/name@v1"]
    assert names(f"small={tiny_folder.path}", "other/one=demo") == ["small", "other/one"]
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert names(odd) == ["a=b"]  # what exists is a path
    gguf = tmp_path / "model.Q4_0.gguf"
    gguf.touch()
    assert names(gguf) == ["model.Q4_0"]


def test_two_models_of_one_name_are_refused_with_what_to_write(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    other = tmp_path / tiny_folder.path.name
    shutil.copytree(tiny_folder.path, other)
    ended = run("serve", tiny_folder.path, other)
    name = tiny_folder.path.name
    assert_refused(ended, f"two models of the name {name} .*{name}-2={other}")


@pytest.mark.parametrize("name", ["", " x", "a\tb", "x" * 201])
def test_a_name_that_is_none_is_refused(run: Run, name: str) -> None:
    assert_refused(run("serve", f"{name}=demo"), "as the name of a model.*my-model=demo")


def test_what_is_no_model_ends_it_before_it_listens(
    run: Run, begun: list[Service], tmp_path: Path
) -> None:
    assert_refused(run("serve", *QUIET, tmp_path / "none"), "found nothing at this path")
    assert_refused(run("serve", *QUIET, f"name={tmp_path / 'none'}"), "found nothing at this path")
    assert begun == []


def test_a_damaged_model_ends_it_before_it_listens(
    run: Run, begun: list[Service], tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_folder.path, damaged)
    data = bytearray((damaged / "model.onnx_data").read_bytes())
    data[100] ^= 1
    (damaged / "model.onnx_data").write_bytes(data)
    assert_refused(run("serve", *QUIET, tiny_folder.path, damaged), "model.onnx_data: found SHA")
    assert begun == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kv", "int8"), "kv is"),
        (("--prefill", "int8"), "prefill is"),
        (("--threads", "0"), "threads is 0"),
        (("--max-memory", "1kB"), "--max-memory is 1.00 kB, expected at least .* of the weights"),
    ],
)
def test_options_that_a_model_cannot_have_end_it_before_it_listens(
    run: Run,
    begun: list[Service],
    tiny_folder: ModelFolder,
    options: tuple[str, ...],
    message: str,
) -> None:
    assert_refused(run("serve", "--port", "0", tiny_folder.path, *options), message)
    assert begun == []


def model_options(**given: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(MODEL_OPTIONS),
        **{"provider": "auto", "kv": "auto", "prefill": "auto", "allow_foreign": False},
        **{"offline": False, "keep_download": False},
        **given,
    }


def test_without_a_model_there_are_three_of_the_demo_to_compare() -> None:
    sources = sources_of([], model_options())
    precisions = {source.name: source.facts and source.facts.precision for source in sources}
    assert precisions == DEMOS == {"demo": "int8", "demo-fp32": "fp32", "demo-int4": "int4"}
    (one,) = sources_of([], model_options(precision="fp32"))
    assert (one.name, one.facts and one.facts.precision) == ("demo", "fp32")


def test_a_source_opens_its_folder_with_the_options_of_a_model(tiny_folder: ModelFolder) -> None:
    asked = named_models([str(tiny_folder.path)])
    (source,) = sources_of(asked, model_options(threads=1, prefill="none"))
    with source.open() as model:
        assert (model.session.threads, model.folder.path) == (1, tiny_folder.path.absolute())


def test_recipes_are_prompts_with_a_place_for_a_text() -> None:
    assert [recipe["name"] for recipe in served_recipes()] == [
        "assistant",
        "english-korean",
        "sentiment",
    ]
    for recipe in served_recipes():
        assert recipe["prompt"].count("{text}") == 1
        assert "{" not in recipe["prompt"].replace("{text}", "")
        assert recipe["title"] and recipe["example"] and recipe["stop"]


# Places ------------------------------------------------------------------------------------------


def test_a_port_in_use_is_told_with_who_has_it(run: Run, tiny_folder: ModelFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run("serve", tiny_folder.path, "--port", str(port))
    assert_refused(ended, f"--port is {port}, found it in use.*--port \\d+\n", code=5)
    assert f"(process {os.getpid()})" in ended.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "port is 80.*expected one of 1024"),
        (socket.gaierror(-2, "Name or service not known"), "host is 'x', found no address"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign"), "host is 'x', which cannot be listened at"),
        (UnicodeError("label too long"), "host is 'x', expected a name"),
    ],
)
def test_what_keeps_a_socket_from_a_place_is_told(error: Exception, message: str) -> None:
    with pytest.raises(RequestError, match=message), binding("x", 80):
        raise error


def test_a_place_that_is_taken_has_an_exit_code_of_its_own() -> None:
    with pytest.raises(AddressError) as raised, binding("127.0.0.1", 1):
        raise OSError(errno.EADDRINUSE, "Address already in use")
    assert raised.value.exit_code == 5


# What is installed -------------------------------------------------------------------------------


def test_a_package_that_is_too_old_is_told_with_both_versions(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"starlette": "0.40.0"}
    monkeypatch.setattr(packages, "installed", lambda name: versions.get(name, "99.0"))
    ended = run("serve")
    assert_refused(ended, r"found starlette 0.40.0, expected 1.0.1 or newer.*starlette>=1.0.1")


def test_what_is_missing_is_told_with_the_extra_that_brings_it() -> None:
    script = (
        "import sys; sys.modules['uvicorn'] = None; from pocketlm import cli; cli.main(['serve'])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 2
    assert 'pip install "pocketlm[serve]"' in ended.stderr


def test_floors_are_those_that_are_safe() -> None:
    floors = {found.name: found.floor for found in packages.requirements()}
    assert (floors["starlette"], floors["h11"]) == ("1.0.1", "0.16")


# The whole ---------------------------------------------------------------------------------------


@contextmanager
def serving(*arguments: str | Path, stderr: int = subprocess.PIPE) -> Iterator[Any]:
    """The command in a process of its own, ended if it has not."""
    command = [sys.executable, "-m", "pocketlm", "serve", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_it_serves_until_it_is_interrupted(tiny_folder: ModelFolder) -> None:
    with serving(f"tiny={tiny_folder.path}", *QUIET) as process:
        listening = json.loads(process.stderr.readline())
        assert listening["event"] == "listening"
        connection = HTTPConnection(urlsplit(listening["url"]).netloc, timeout=30)
        body = json.dumps({"prompt": "a secret", "max_tokens": 2})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        assert json.load(connection.getresponse())["model"] == "tiny"
        connection.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert events == ["model_opened", "request"]
    assert "secret" not in err


@pytest.mark.skipif(os.name != "posix", reason="there are no such terminals")
def test_a_terminal_is_told_the_address(tiny_folder: ModelFolder) -> None:
    ours, its = os.openpty()
    with serving(f"tiny={tiny_folder.path}", *QUIET, stderr=its):
        os.close(its)
        with os.fdopen(ours, errors="replace") as terminal:
            assert terminal.readline().startswith("pocketlm: serving tiny at http://127.0.0.1:")


def test_holders_of_ports_are_guessed_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    def denied(kind: str) -> list[SimpleNamespace]:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", denied)
    with pytest.raises(AddressError, match="found it in use, expected"), binding("127.0.0.1", 1):
        raise OSError(errno.EADDRINUSE, "Address already in use")
