"""Downloading from a hub that lies, breaks off, refuses and redirects.

Level: the requests and the files; what becomes of them is in tests/test_hub_models.py.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hub_server import INFO, Fault, HubServer, blob_id

from pocketlm.export import download as downloading
from pocketlm.export.download import DOWNLOADED, download
from pocketlm.export.errors import CheckpointError, HubError, MissingExtraError, StorageError
from pocketlm.export.hub import ATTEMPTS, Hub, split_name
from pocketlm.export.observer import Observer

MB = 1 << 20
# Larger than what one chunk and the buffers of two sockets hold.
WEIGHTS = bytes(range(256)) * (3 * MB // 256)
CONFIG = b'{"model_type": "gpt2"}'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FILES = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}
NAME = "acme/tiny"
WEIGHT_FILE = "model.safetensors"


class Clock:
    """Waits that are only written down."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def get(hub_server: HubServer, out: Path, clock: Clock, **options: Any) -> Path:
    hub = Hub(sleep=clock.sleep)
    download(hub, hub.snapshot(NAME, "main"), out, **options)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != DOWNLOADED}


def parts(out: Path) -> list[Path]:
    return list(out.parent.glob(".*/*.part"))


# Names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("meta-llama/Llama-3.2-1B", ("meta-llama/Llama-3.2-1B", None)),
        ("a/b@main", ("a/b", "main")),
        ("a/b@refs/pr/1", ("a/b", "refs/pr/1")),
        ("gpt2", None),
        ("a/b/c", None),
        ("a/b/", None),
        ("./b", None),
        ("../b", None),
        ("a/..", None),
        ("a/b..c", None),
        ("a--b/c", None),
        ("a/b c", None),
        ("a/b@", None),
        ("a\\b/c", None),
        ("/a/b", None),
        ("a/b?", None),
    ],
)
def test_names_of_the_hub_are_told_from_paths_and_prompts(
    text: str, expected: tuple[str, str | None] | None
) -> None:
    assert split_name(text) == expected


# What is fetched ---------------------------------------------------------------------------------


OTHERS = {
    "README.md": b"#",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": b"other layout",
    "original/consolidated.00.pth": b"pickle",
    "onnx/model.onnx": b"onnx",
    "onnx/model.safetensors": b"not ours",
    "tiny.Q4.gguf": b"GGUF",
    "tokenizer.model": b"second form",
    "vocab.json": b"{}",
    "my image (1).png": b"png",
}


def test_only_the_checkpoint_is_fetched(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    wanted = FILES | {
        "generation_config.json": b"{}",
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ x }}",
    }
    commit = hub_server.add(NAME, wanted | OTHERS)
    out = get(hub_server, tmp_path / "out", clock)
    assert contents(out) == wanted
    assert {request.path.rpartition("/")[2] for request in hub_server.log} == {
        "main",
        *wanted,
    }
    listed = json.loads((out / DOWNLOADED).read_text())
    assert (listed["repository"], listed["commit"]) == (NAME, commit)
    assert listed["files"]["config.json"] == {"bytes": len(CONFIG), "digest": blob_id(CONFIG)}
    assert list(tmp_path.iterdir()) == [out]


def sharded(names: list[str], weight_map: dict[str, Any] | None = None) -> dict[str, bytes]:
    index = {"weight_map": weight_map or {f"t{i}": name for i, name in enumerate(names)}}
    shards = {name: name.encode() for name in names}
    return {
        "config.json": CONFIG,
        "model.safetensors.index.json": json.dumps(index).encode(),
    } | shards


def test_shards_are_those_that_the_index_names(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    files = sharded(["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    hub_server.add(NAME, files | {"consolidated.safetensors": b"x", "stray.safetensors": b"x"})
    assert contents(get(hub_server, tmp_path / "out", clock)) == files


def test_one_file_of_weights_wins_over_an_index(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    hub_server.add(NAME, sharded(["a.safetensors"]) | FILES)
    assert contents(get(hub_server, tmp_path / "out", clock)) == FILES


def test_tokenizers_come_in_the_first_form_there_is(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    base = {"config.json": CONFIG, WEIGHT_FILE: b"w"}
    pair = {"vocab.json": b"{}", "merges.txt": b"#"}
    hub_server.add(NAME, base | pair)
    assert contents(get(hub_server, tmp_path / "pair", clock)) == base | pair
    hub_server.add(NAME, base | pair | {"tokenizer.model": b"m"})
    assert contents(get(hub_server, tmp_path / "m", clock)) == base | {"tokenizer.model": b"m"}


def test_what_lies_beside_a_tokenizer_comes_with_it(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    beside = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    files = FILES | dict.fromkeys([*beside, "chat_template.jinja"], b"{}")
    hub_server.add(NAME, files | {"README.md": b"x", "optimizer.pt": b"x", "vocab.json": b"{}"})
    assert contents(get(hub_server, tmp_path / "out", clock)) == files


def test_a_check_that_refuses_keeps_the_weights_from_being_fetched(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    hub_server.add(NAME, FILES)
    seen = []

    def check(folder: Path) -> None:
        seen.append(sorted(path.name for path in folder.iterdir()))
        raise CheckpointError("of no use")

    with pytest.raises(CheckpointError, match="of no use"):
        get(hub_server, tmp_path / "out", clock, check=check)
    assert seen == [["config.json", "tokenizer.json"]]
    assert not any("model.safetensors" in str(line) for line in hub_server.log)


def test_pickles_are_fetched_only_when_asked_for(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    pickles = {"config.json": CONFIG, "pytorch_model.bin": b"p", "added_tokens.json": b"{}"}
    hub_server.add(NAME, pickles)
    with pytest.raises(CheckpointError, match="pytorch_model.bin.*expected weights in model.saf"):
        get(hub_server, tmp_path / "out", clock)
    assert contents(get(hub_server, tmp_path / "torch", clock, for_torch=True)) == pickles
    index = {"weight_map": {"t": "pytorch_model-00001-of-00001.bin"}}
    shards = {"pytorch_model.bin.index.json": json.dumps(index).encode()}
    shards |= {"config.json": CONFIG, "pytorch_model-00001-of-00001.bin": b"p"}
    hub_server.add(NAME, shards | {"other.bin": b"x"})
    assert contents(get(hub_server, tmp_path / "shards", clock, for_torch=True)) == shards


def test_safetensors_come_before_pickles(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    hub_server.add(NAME, FILES | {"pytorch_model.bin": b"p"})
    assert contents(get(hub_server, tmp_path / "out", clock, for_torch=True)) == FILES


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({WEIGHT_FILE: b"w"}, "found 'model.safetensors', expected a checkpoint with config.json"),
        (
            {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w"},
            "found an adapter .*hf download acme/.* --adapter",
        ),
        ({"tiny.Q4.gguf": b"w"}, "or download one of its GGUF files and name that"),
        ({"config.json": CONFIG}, "found 'config.json', expected weights in model.safetensors"),
        (
            {"config.json": CONFIG, "a.safetensors": b"", "b.safetensors": b""},
            "found 2 safetensors files .*'a.safetensors', 'b.safetensors'.* expected one file or",
        ),
        (
            sharded([], {"t": "../x.safetensors"}),
            "the shard name '../x.safetensors', expected",
        ),
        (sharded([], {"t": "a\\b.safetensors"}), "expected a plain name"),
        (sharded([], {"t": "/x.safetensors"}), "expected a plain name"),
        (sharded([], {"t": "x.pkl"}), "expected a plain name that ends in .safetensors"),
        (sharded([], {"t": 3}), "the shard name '3', expected"),
        (sharded([], {"t": ["x.safetensors"]}), "the shard name .*, expected a plain name"),
        (
            {"config.json": CONFIG, "model.safetensors.index.json": b" " * 25_000_001},
            "index.json has 25,000,001 bytes, expected at most 25,000,000 bytes of JSON",
        ),
        (sharded([], {"t": "gone.safetensors"}), "'gone.safetensors', which is not in the repos"),
        (
            {"config.json": CONFIG, "model.safetensors.index.json": POINTER},
            "'model.safetensors.index.json' is a Git LFS pointer",
        ),
        (
            {"config.json": CONFIG, "model.safetensors.index.json": b'{"weight_map": []}'},
            "found weight_map .*, expected the shard of every tensor",
        ),
    ],
)
def test_a_repository_without_one_readable_checkpoint_is_refused(
    hub_server: HubServer, tmp_path: Path, clock: Clock, files: dict[str, bytes], message: str
) -> None:
    hub_server.add(NAME, files)
    with pytest.raises(CheckpointError, match=message):
        get(hub_server, tmp_path / "out", clock)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/etc/evil", "a//b", "a/../../evil", "a\\evil", ".", "..", ""]
)
def test_a_listing_with_names_that_leave_the_folder_is_refused(
    hub_server: HubServer, tmp_path: Path, clock: Clock, name: str
) -> None:
    hub_server.add(NAME, FILES)
    hub_server.repos[NAME].extra_listing = [{"rfilename": name, "size": 1, "blobId": "0" * 40}]
    with pytest.raises(HubError, match="expected a name inside the repository"):
        get(hub_server, tmp_path / "out", clock)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"size": 1, "blobId": "../x"}, "the digest .*x.* of config.json.*, expected hexadecimal"),
        ({"size": 1}, "the digest None of config.json"),
        (
            {"size": -1, "blobId": "0" * 40},
            "the size -1 of config.json.*, expected a number",
        ),
        ({"size": True, "blobId": "0" * 40}, "the size True"),
        ({"size": 1, "lfs": {"sha256": "0" * 40, "size": 1, "pointerSize": 1}}, "the digest '0000"),
    ],
)
def test_a_listing_without_sizes_and_digests_is_refused(
    hub_server: HubServer, tmp_path: Path, clock: Clock, entry: dict[str, Any], message: str
) -> None:
    hub_server.add(NAME, FILES)
    hub_server.repos[NAME].extra_listing = [{"rfilename": "config.json"} | entry]
    with pytest.raises(HubError, match=message):
        get(hub_server, tmp_path / "out", clock)


# Faults ------------------------------------------------------------------------------------------

PASSING = {
    "cut at once": Fault(WEIGHT_FILE, "cut", at=0),
    "cut": Fault(WEIGHT_FILE, "cut", at=2 * MB),
    "cut three times": Fault(WEIGHT_FILE, "cut", at=1000, times=3),
    "busy": Fault(WEIGHT_FILE, "status", status=503),
    "busy hub": Fault(WEIGHT_FILE, "status", status=500, by_hub=True),
    "busy listing": Fault(INFO, "status", status=502, by_hub=True),
    "expired signature": Fault(WEIGHT_FILE, "status", status=403),
    "wrong length": Fault(WEIGHT_FILE, "length"),
    "too long": Fault(WEIGHT_FILE, "longer"),
    "wrong content": Fault(WEIGHT_FILE, "content", at=MB),
    "wrong small file": Fault("config.json", "content", at=3, by_hub=True),
    "nothing there": Fault(WEIGHT_FILE, "status", status=416),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_costs_time_only(
    hub_server: HubServer, tmp_path: Path, clock: Clock, name: str
) -> None:
    hub_server.add(NAME, FILES)
    fault = Fault(**vars(PASSING[name]))
    hub_server.faults.append(fault)
    out = get(hub_server, tmp_path / "out", clock)
    assert fault.times == 0
    assert contents(out) == FILES
    assert list(tmp_path.iterdir()) == [out]


def test_waits_double_and_end(hub_server: HubServer, tmp_path: Path, clock: Clock) -> None:
    hub_server.add(NAME, FILES)
    hub_server.faults.append(Fault(WEIGHT_FILE, "status", status=503, times=99))
    message = "found HTTP status 503 of localhost.*the same command goes on where this one ended"
    with pytest.raises(HubError, match=message):
        get(hub_server, tmp_path / "out", clock)
    assert clock.waits == [1, 2, 4]
    assert len(hub_server.asked(WEIGHT_FILE)) == 2 * ATTEMPTS  # the hub and the storage, each time
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", [WEIGHT_FILE, INFO])
def test_the_hub_says_how_long_to_wait(
    hub_server: HubServer, tmp_path: Path, clock: Clock, where: str
) -> None:
    hub_server.add(NAME, FILES)
    at = formatdate(time.time() + 100, usegmt=True)
    for value in ("7", at, "nonsense"):
        spoiled = {"Retry-After": value}
        fault = Fault(where, "status", status=429, headers=spoiled, by_hub=True)
        hub_server.faults.append(fault)
    get(hub_server, tmp_path / "out", clock)
    seven, date, own = clock.waits
    assert seven == 7
    assert 0 < date <= 100
    assert own == 4  # the third failure


def test_a_long_wait_is_explained(hub_server: HubServer, tmp_path: Path, clock: Clock) -> None:
    hub_server.add(NAME, FILES)
    spoiled = {"Retry-After": "30"}
    hub_server.faults.append(Fault(WEIGHT_FILE, "status", status=429, headers=spoiled))
    said: list[str] = []
    hub = Hub(say=said.append, sleep=clock.sleep)
    download(hub, hub.snapshot(NAME, "main"), tmp_path / "out")
    (line,) = said
    assert "status 429" in line and line.endswith("waiting 30 s as the hub asks")


def test_a_trickle_is_no_connection(hub_server: HubServer, tmp_path: Path, clock: Clock) -> None:
    """By a clock that says a minute between any two looks at it, until it was given up once."""
    hub_server.add(NAME, FILES)
    hub_server.faults.append(Fault(WEIGHT_FILE, "slow", at=1000))
    minutes = itertools.count(step=60)
    hub = Hub(sleep=clock.sleep, clock=lambda: 0 if clock.waits else next(minutes))
    download(hub, hub.snapshot(NAME, "main"), tmp_path / "out")
    assert contents(tmp_path / "out") == FILES
    assert clock.waits == [1]
    hub_server.faults.append(Fault(WEIGHT_FILE, "slow", at=1000, times=99))
    hub = Hub(sleep=clock.sleep, clock=lambda: next(minutes))
    with pytest.raises(HubError, match="found [0-9,]+ bytes in 60 s, expected more than 60,000"):
        download(hub, hub.snapshot(NAME, "main"), tmp_path / "again")


def test_a_wait_that_is_too_long_is_an_error(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    hub_server.add(NAME, FILES)
    spoiled = {"Retry-After": "86400"}
    hub_server.faults.append(Fault(WEIGHT_FILE, "status", status=429, headers=spoiled))
    with pytest.raises(HubError, match="status 429"):
        get(hub_server, tmp_path / "out", clock)
    assert clock.waits == []


def test_progress_is_what_counts_against_giving_up(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    """More cuts than attempts, each after another megabyte."""
    content = os.urandom(7 * MB)
    hub_server.add(NAME, FILES | {WEIGHT_FILE: content})
    for end in range(1, 7):
        hub_server.faults.append(Fault(WEIGHT_FILE, "cut", at=end * MB + 1))
    assert contents(get(hub_server, tmp_path / "out", clock))[WEIGHT_FILE] == content
    assert hub_server.bytes_sent(WEIGHT_FILE) <= 7 * MB + 7 * 65536


@pytest.mark.parametrize("kind", ["content", "length", "longer"])
def test_what_stays_wrong_is_an_error_and_leaves_nothing(
    hub_server: HubServer, tmp_path: Path, clock: Clock, kind: str
) -> None:
    hub_server.add(NAME, FILES)
    hub_server.faults.append(Fault(WEIGHT_FILE, kind, at=5, times=99))
    message = f"{NAME}: {WEIGHT_FILE}: found .* again, expected 3,145,728 bytes with the digest"
    with pytest.raises(HubError, match=message):
        get(hub_server, tmp_path / "out", clock)
    assert not (tmp_path / "out").exists()
    assert parts(tmp_path / "out") == []
    assert len(hub_server.asked(WEIGHT_FILE)) == 4  # two tries


def test_a_compressed_body_is_refused(hub_server: HubServer, tmp_path: Path, clock: Clock) -> None:
    hub_server.add(NAME, FILES)
    hub_server.faults.append(Fault("config.json", "gzip", by_hub=True, times=99))
    with pytest.raises(HubError, match="found a body compressed with 'gzip', expected the file as"):
        get(hub_server, tmp_path / "out", clock)
    assert {r.headers["accept-encoding"] for r in hub_server.asked("config.json")} == {"identity"}


def test_no_room_is_found_before_the_first_weight(
    hub_server: HubServer, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.add(NAME, FILES)
    monkeypatch.setattr(downloading, "free_space", lambda path: 2_000_000)
    with pytest.raises(StorageError, match="found 2.00 MB free in .*, expected 3.15 MB for what"):
        get(hub_server, tmp_path / "out", clock)
    assert hub_server.asked(WEIGHT_FILE) == []


def test_a_folder_that_cannot_be_written_is_named(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    hub_server.add(NAME, FILES)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        get(hub_server, tmp_path / "file" / "out", clock)


def test_nobody_listening_is_an_error_with_advice(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, online: None
) -> None:
    with socket.socket() as bound:  # a port that refuses
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(HubError, match="found no usable connection .*check the network"):
            Hub(sleep=clock.sleep).snapshot(NAME, "main")
    assert len(clock.waits) == ATTEMPTS - 1


# Going on ----------------------------------------------------------------------------------------


def interrupted(hub_server: HubServer, out: Path, clock: Clock, at: int = 2 * MB) -> None:
    """A download that ends after ``at`` bytes of the weights."""
    hub_server.faults.append(Fault(WEIGHT_FILE, "cut", at=at))
    with pytest.raises(HubError, match="the same command goes on"):
        hub = Hub(attempts=1, sleep=clock.sleep)
        download(hub, hub.snapshot(NAME, "main"), out)
    assert not out.exists()


def test_an_interrupted_download_goes_on_where_it_ended(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    hub_server.add(NAME, FILES)
    out = tmp_path / "out"
    interrupted(hub_server, out, clock)
    before = len(hub_server.log)
    assert contents(get(hub_server, out, clock)) == FILES
    resumed = hub_server.log[before:]
    assert [r.path.rpartition("/")[2] for r in resumed] == ["main", WEIGHT_FILE, WEIGHT_FILE]
    assert resumed[-1].headers["range"] == f"bytes={2 * MB}-"
    assert resumed[-1].headers["if-range"].startswith('"')
    assert resumed[-1].sent == [MB]


def test_it_goes_on_at_another_commit_too(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    hub_server.add(NAME, FILES)
    out = tmp_path / "out"
    interrupted(hub_server, out, clock)
    second = hub_server.add(NAME, FILES | {"README.md": b"new"})
    assert contents(get(hub_server, out, clock)) == FILES
    assert hub_server.asked(WEIGHT_FILE)[-1].sent == [MB]
    assert json.loads((out / DOWNLOADED).read_text())["commit"] == second


def test_progress_counts_what_was_there(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    hub_server.add(NAME, FILES)
    out = tmp_path / "out"
    interrupted(hub_server, out, clock)
    heard: list[int] = []
    total = sum(map(len, FILES.values()))
    get(
        hub_server,
        out,
        clock,
        observer=Observer(
            download=lambda name, total: nullcontext(lambda done, total: heard.append(done))
        ),
    )
    assert (heard[0], heard[-1]) == (total - MB, total)
    assert heard == sorted(heard)


@pytest.mark.parametrize("damage", ["first byte", "last byte", "too long"])
def test_a_damaged_beginning_is_found_and_fetched_again(
    hub_server: HubServer, tmp_path: Path, clock: Clock, damage: str
) -> None:
    hub_server.add(NAME, FILES)
    out = tmp_path / "out"
    interrupted(hub_server, out, clock)
    (part,) = parts(out)
    content = bytearray(part.read_bytes())
    content[0 if damage == "first byte" else -1] ^= 1
    part.write_bytes(content + (bytes(2 * MB) if damage == "too long" else b""))
    assert contents(get(hub_server, out, clock)) == FILES
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("answer", ["whole", "range", "other content"])
def test_a_hub_that_does_not_go_on_begins_again(
    hub_server: HubServer, tmp_path: Path, clock: Clock, answer: str
) -> None:
    hub_server.add(NAME, FILES)
    out = tmp_path / "out"
    interrupted(hub_server, out, clock)
    if answer == "other content":
        (etag,) = out.parent.glob(".*/*.etag")
        etag.write_text('"of something else"')
    else:
        hub_server.faults.append(Fault(WEIGHT_FILE, answer))
    assert contents(get(hub_server, out, clock)) == FILES
    assert hub_server.asked(WEIGHT_FILE)[-1].sent == [3 * MB]


def test_two_in_one_folder_without_a_lock_harm_nothing(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    """As on file systems whose locks do not hold: it costs bandwidth, never bytes."""
    hub_server.add(NAME, FILES)
    interrupted(hub_server, tmp_path / "out", clock, at=MB)
    hub_server.faults.append(Fault(WEIGHT_FILE, "slow", at=MB // 8, times=4))
    failures: list[BaseException] = []

    def run() -> None:
        try:
            get(hub_server, tmp_path / "out", clock)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    # The list of one may have been moved along when another published; it is in nobody's way.
    assert contents(tmp_path / "out").items() >= FILES.items()
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_what_was_begun_after_another_published_goes(
    hub_server: HubServer, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.add(NAME, FILES)
    make = downloading._make

    def late(hub: Hub, snapshot: Any, folder: Path, *others: Any) -> None:
        make(hub, snapshot, folder, *others)  # another's, all of it
        downloading._staging(folder).mkdir()
        raise FileNotFoundError

    monkeypatch.setattr(downloading, "_make", late)
    assert contents(get(hub_server, tmp_path / "out", clock)) == FILES
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


KILLED = """
import os, sys
from pathlib import Path
from pocketlm.export.download import download
from pocketlm.export.hub import Hub

left = int(sys.argv[2])

def counted(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return function(*arguments, **options)
    return call

for name in ("replace", "rename", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
Path.unlink = counted(Path.unlink)
hub = Hub()
download(hub, hub.snapshot("acme/tiny", "main"), Path(sys.argv[1]))
"""


def test_killed_at_any_step_leaves_all_or_nothing(hub_server: HubServer, tmp_path: Path) -> None:
    """Killed at the n-th call that changes names or syncs, each in a folder left by the others."""
    hub_server.add(NAME, FILES)
    out = tmp_path / "out"
    steps = 0
    for step in range(1, 30):
        program = [sys.executable, "-c", KILLED, str(out), str(step)]
        code = subprocess.run(program).returncode
        if out.exists():
            assert contents(out) == FILES
            break
        assert code == 9
        steps += 1
    assert steps >= 4
    assert list(tmp_path.iterdir()) == [out]


# Redirects and the token --------------------------------------------------------------------------


def test_the_token_goes_to_the_hub_alone(
    hub_server: HubServer, tmp_path: Path, clock: Clock
) -> None:
    hub_server.add(NAME, FILES)
    get(hub_server, tmp_path / "out", clock)
    tokens = {
        host: {r.headers.get("authorization") for r in hub_server.log if r.host == host}
        for host in ("hub", "storage")
    }
    assert tokens == {"hub": {"Bearer hf_right"}, "storage": {None}}


def test_the_token_that_was_stored_is_used(
    hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.add(NAME, FILES)
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("hf_right\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    Hub().snapshot(NAME, "main")
    assert hub_server.log[0].headers["authorization"] == "Bearer hf_right"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/passwd", "an address that is not of the web"),
        ("ftp://localhost/x", "an address that is not of the web"),
    ],
)
def test_a_redirect_out_of_the_web_is_refused(
    hub_server: HubServer, tmp_path: Path, clock: Clock, location: str, message: str
) -> None:
    hub_server.add(NAME, FILES)
    spoiled = {"Location": location}
    hub_server.faults.append(Fault(WEIGHT_FILE, "redirect", headers=spoiled, by_hub=True))
    with pytest.raises(HubError, match=f"found a redirect to '{location}', {message}"):
        get(hub_server, tmp_path / "out", clock)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://huggingface.co/x", "without encryption"),
        ("https://127.0.0.1/x", "of this network"),
        ("https://localhost/x", "of this network"),
        ("https://169.254.169.254/latest/meta-data", "of this network"),
        ("https://10.0.0.1/x", "of this network"),
        ("https://[::1]/x", "of this network"),
        ("https://metadata.google.internal/x", "of this network"),
    ],
)
def test_the_public_hub_does_not_redirect_into_the_users_network(
    monkeypatch: pytest.MonkeyPatch, target: str, message: str
) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    hub = Hub()
    with pytest.raises(HubError, match=message):
        hub._redirected("https://huggingface.co/a/b", target)
    for fine in ("https://cdn.example.com/x", "/a/c"):
        assert hub._redirected("https://huggingface.co/a/b", fine).startswith("https://")


def test_redirects_in_a_circle_end(hub_server: HubServer, tmp_path: Path, clock: Clock) -> None:
    commit = hub_server.add(NAME, FILES)
    back = {"Location": f"/{NAME}/resolve/{commit}/{WEIGHT_FILE}"}
    fault = Fault(WEIGHT_FILE, "redirect", headers=back, by_hub=True, times=99)
    hub_server.faults.append(fault)
    with pytest.raises(HubError, match="found more than 5 redirects"):
        get(hub_server, tmp_path / "out", clock)
    assert len(hub_server.asked(WEIGHT_FILE)) == 6


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_a_gated_repository_says_what_to_do(
    hub_server: HubServer,
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
) -> None:
    hub_server.add(NAME, FILES)
    hub_server.repos[NAME].gated = True
    set_token(monkeypatch, token)
    message = (
        f"gated repository.*accept its conditions at {hub_server.endpoint}/{NAME}, then log in"
    )
    with pytest.raises(HubError, match=message):
        get(hub_server, tmp_path / "out", clock)
    assert clock.waits == []
    set_token(monkeypatch, "hf_right")
    assert contents(get(hub_server, tmp_path / "out", clock)) == FILES


def set_token(monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "file:///srv/hub", "https://", "http:/x"])
def test_an_endpoint_that_is_no_address_is_named(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(HubError, match="HF_ENDPOINT: found '.*', expected an address such as"):
        Hub(sleep=clock.sleep).snapshot(NAME, "main")
    assert clock.waits == []


class Second(threading.Timer):
    """A second that is over at once."""

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        assert seconds == 1
        super().__init__(seconds, function)

    def start(self) -> None:
        """Calls the function in this thread."""
        self.function()


class Never(Second):
    """A second that is longer than anything."""

    def start(self) -> None:
        """Does nothing."""


def test_asking_the_hub_is_said_once_when_it_takes_a_second(
    hub_server: HubServer, clock: Clock
) -> None:
    hub_server.add(NAME, FILES)
    hub_server.faults.append(Fault(INFO, "status", by_hub=True, times=2))  # tried three times
    said: list[str] = []
    Hub(say=said.append, sleep=clock.sleep, timer=Second).snapshot(NAME, "main")
    assert said == [f"asking {hub_server.endpoint} for {NAME}"]
    Hub(say=said.append, timer=Never).snapshot(NAME, "main")
    assert len(said) == 1


def test_a_hub_that_lets_us_wait_is_named_while_it_does(
    hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real timer: the answer comes when it has been said whom we are asking."""
    hub_server.add(NAME, FILES)
    heard = threading.Event()
    hub_server.before_listing = heard.wait
    monkeypatch.setattr("pocketlm.export.hub.SILENT_SECONDS", 0)
    Hub(say=lambda message: heard.set()).snapshot(NAME, "main")
    assert heard.is_set()


@pytest.mark.parametrize("token", [None, "hf_right"])
def test_a_missing_repository_is_named(
    hub_server: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    set_token(monkeypatch, token)
    message = "acme/nothing: found no repository of this name that http.* set HF_TOKEN"
    with pytest.raises(HubError, match=message):
        Hub().snapshot("acme/nothing", "main")


def test_a_missing_revision_is_named(hub_server: HubServer) -> None:
    hub_server.add(NAME, FILES)
    with pytest.raises(HubError, match="found no revision 'v9', expected a branch, tag or commit"):
        Hub().snapshot(NAME, "v9")


def test_a_wrong_token_is_named_without_showing_it(
    hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.add(NAME, FILES)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match="the hub refuses the token.*correct HF_TOKEN") as caught:
        Hub().snapshot(NAME, "main")
    assert "hf_wrong" not in str(caught.value)


def test_a_token_that_is_none_is_named(
    hub_server: HubServer, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.add(NAME, FILES)
    monkeypatch.setenv("HF_TOKEN", "hf_\u00fc")
    with pytest.raises(HubError, match="HF_TOKEN: found characters that no token has"):
        Hub().snapshot(NAME, "main")


def test_a_file_that_is_gone_is_named(hub_server: HubServer, tmp_path: Path, clock: Clock) -> None:
    commit = hub_server.add(NAME, FILES)
    snapshot = Hub().snapshot(NAME, "main")
    del hub_server.repos[NAME].commits[commit][WEIGHT_FILE]
    with pytest.raises(HubError, match="found a file gone that was listed"):
        download(Hub(), snapshot, tmp_path / "out")


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[]", b"{}", b'{"id": "x", "sha": "short"}', b'{"id": "x"}']
)
def test_an_answer_that_is_none_is_refused(
    hub_server: HubServer, clock: Clock, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    hub_server.add(NAME, FILES)
    monkeypatch.setattr(json, "dumps", lambda value: body.decode())
    with pytest.raises(HubError, match="found no listing|in the hub.s listing"):
        Hub(sleep=clock.sleep).snapshot(NAME, "main")


# The environment ---------------------------------------------------------------------------------

SNAPSHOT = """
from pocketlm.export.hub import Hub
print(Hub().snapshot("acme/tiny", "main").commit)
"""


def test_a_proxy_is_used(hub_server: HubServer) -> None:
    commit = hub_server.add(NAME, FILES)
    environment = {key: value for key, value in os.environ.items() if key.lower() != "no_proxy"}
    environment |= {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": hub_server.endpoint}
    done = subprocess.run(
        [sys.executable, "-c", SNAPSHOT], env=environment, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == (commit, "")


def test_nobody_is_told_who_asks(hub_server: HubServer) -> None:
    """One request for one answer; huggingface_hub would look up agents beside it."""
    hub_server.add(NAME, FILES)
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", SNAPSHOT], env=environment, check=True)
    assert [request.path for request in hub_server.log] == [f"/api/models/{NAME}/revision/main"]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r'pip install "pocketlm\[hub\]"'):
        Hub().snapshot(NAME, "main")


def test_an_old_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.__version__", "0.36.2")
    with pytest.raises(MissingExtraError, match="found huggingface_hub 0.36.2, expected 1.26 or"):
        Hub().snapshot(NAME, "main")
