"""``pocketlm run --server`` beside ``pocketlm run``: of one model they print the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import Run, assert_refused
from served import Served, served
from wrong_options import WRONG

import pocketlm
from pocketlm.commands.options import MODEL_OPTIONS
from pocketlm.commands.run import command as RUN
from pocketlm.export.folder import ModelFolder

pytestmark = pytest.mark.serve

SEEDED = ["--seed", "7", "--max-tokens", "12"]
SCHEMA = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
# Each with what is the same on a server.
OPTION_SETS = [
    ["the sea", *SEEDED],
    ["", *SEEDED],
    ["é 🙂 ", *SEEDED, "--temperature", "0"],
    ["the", *SEEDED, "--temperature", "2", "--top-k", "40", "--top-p", "0.9", "--min-p", "0.001"],
    ["the", *SEEDED, "--typical-p", "0.9", "--repetition-penalty", "1.2", "--penalty-window", "5"],
    ["the", *SEEDED, "--frequency-penalty", "1", "--presence-penalty", "0.5", "--min-tokens", "9"],
    ["the", *SEEDED, "--no-repeat-ngram", "2", "--ban", "e", "--ban-token", "3"],
    ["the", *SEEDED, "--logit-bias", "7=5.5", "--logit-bias", "9=-100", "--ignore-eos"],
    ["the", "--seed", "1", "--max-tokens", "60", "--stop", "e", "--stop", r"\n"],
    ["the", *SEEDED, "--logprobs", "0"],
    ["the", *SEEDED, "--logprobs", "3"],
    ["the", *SEEDED, "--n", "3"],
    ["the", *SEEDED, "--n", "2", "--logprobs", "2"],
    ["the", "--max-tokens", "5", "--beams", "4"],
    ["the", "--max-tokens", "5", "--beams", "4", "--n", "2", "--length-penalty", "0"],
    ["the the the the", *SEEDED, "--lookup"],
    ["the", *SEEDED, "--reproducible"],
    ["the", "--regex", "[0-9]{4}-[0-9]{2}", *SEEDED],
    ["the", "--choice", "yes,no,maybe", *SEEDED, "--logprobs", "1"],
    ["the", "--json-schema", "FILE", "--seed", "3", "--max-tokens", "60"],
    ["the sea", "--recipe", "assistant", "--context", "slide", "--keep", "9", *SEEDED],
    [
        "the",
        "--seed",
        "2",
        "--max-tokens",
        "100",
        "--context",
        "slide",
        "--keep",
        "3",
        "--ignore-eos",
    ],
    ["the " * 100, "--context", "stop", *SEEDED],
    ["the", "--seed", "2", "--max-tokens", "400", "--ignore-eos"],
]


@pytest.fixture(scope="module")
def server(tiny_folder: ModelFolder) -> Iterator[Served]:
    opened = {
        name: lambda: pocketlm.load(tiny_folder.path, threads=1) for name in ("tiny", "again")
    }
    with served(opened) as running:
        yield running


def comparable(out: str) -> Any:
    """What is printed as JSON, without what is of one process and moment."""
    told = json.loads(out)
    if "completions" in told:
        return told
    del told["peak_rss_bytes"], told["reused_tokens"], told["model"]["path"], told["timings"]
    return told


@pytest.mark.parametrize("words", OPTION_SETS, ids=lambda words: " ".join(words[1:])[:60])
def test_what_a_server_writes_is_printed_as_if_here(
    run: Run, tiny_folder: ModelFolder, server: Served, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "schema.json").write_text(SCHEMA)
    words = [str(tmp_path / "schema.json") if word == "FILE" else word for word in words]
    # A server computes many texts together, of which this gives the tokens.
    alone = not {"--n", "--beams", "--lookup"} & {*words}
    here = ["run", str(tiny_folder.path), *words, "--threads", "1"] + ["--reproducible"] * alone
    there = ["run", "--server", server.url, "tiny", *words]
    own, remote = run(*here), run(*there)
    assert (own.code, remote.code) == (0, 0), own.err + remote.err
    assert remote.out == own.out
    assert remote.err == own.err
    assert comparable(run(*there, "--json").out) == comparable(run(*here, "--json").out)


@pytest.mark.parametrize(
    "words",
    [
        ["Why?", *SEEDED],
        ["Why?", *SEEDED, "--system", "Short.", "--logprobs", "2"],
        ["Why?", *SEEDED, "--n", "2", "--logprobs", "0"],
        ["Why?", *SEEDED, "--choice", "yes,no"],
        ["Why?", "--max-tokens", "5", "--beams", "3"],
    ],
    ids=lambda words: " ".join(words[1:]),
)
def test_an_answer_of_a_server_is_printed_as_if_here(
    run: Run, chats: Served, chat_folders: dict[str, ModelFolder], words: list[str]
) -> None:
    alone = not {"--n", "--beams"} & {*words}
    folder = str(chat_folders["plain"].path)
    here = ["run", folder, "--chat", *words, "--threads", "1"] + ["--reproducible"] * alone
    there = ["run", "--server", chats.url, "plain", "--chat", *words]
    own = run(*here)
    assert own.code == 0, own.err
    assert run(*there) == own
    assert comparable(run(*there, "--json").out) == comparable(run(*here, "--json").out)


def test_variables_reach_the_chat_template(run: Run, chats: Served) -> None:
    line = ["run", "--server", chats.url, "plain", "--chat", "Why?", "--max-tokens", "2"]
    ended = run(*line, "--template-arg", "tools=5")
    assert_refused(ended, "has 'tools', expected the name of a variable that")


def test_a_draft_of_the_server_guesses(run: Run, server: Served) -> None:
    line = ["run", "--server", server.url, "tiny", "the the the the", "--seed", "3"]
    told = json.loads(run(*line, "--draft", "again", "--json").out)
    assert told["timings"]["guessed_tokens"] > 0
    assert told["text"] == json.loads(run(*line, "--json").out)["text"]
    assert_refused(
        run(*line, "--draft", "nobody"), "found no model 'nobody', expected one of: tiny, again"
    )


def test_statistics_of_the_server_are_told(run: Run, server: Served) -> None:
    ended = run("run", "--server", f"{server.url}/v1/", "the", *SEEDED, "--stats")
    assert ended.code == 0
    for part in ("load ", "first token ", "prefill ", "decode ", "1 threads on cpu", "by length"):
        assert part in ended.err, ended.err
    path = json.loads(run("run", "--server", server.url, "the", "--json").out)["model"]["path"]
    assert path == f"{server.url}/v1/models/tiny"


@pytest.mark.parametrize(
    "words, message",
    [
        (["nobody", "the"], "^pocketlm: found no model 'nobody', expected one of: tiny, again$"),
        (["the", "--temperature", "-1"], "temperature"),
        (["the", "--chat"], "/v1/models/tiny: found no chat template, expected one to chat by"),
        (["the " * 100], "the prompt has .* expected at most 160 .the context length"),
        (["a" * 5_000_000], "the body has 5,000,.* bytes, expected at most 4,000,000; shorten it"),
    ],
)
def test_what_the_server_refuses_is_told(
    run: Run, server: Served, words: list[str], message: str
) -> None:
    assert_refused(run("run", "--server", server.url, *words), message)


WRONG_TOGETHER = [
    ["--regex", "a", "--choice", "b"],
    ["--lookup", "--reproducible"],
    ["--lookup", "--n", "2"],
    ["--n", "3", "--beams", "2"],
    ["--keep", "159", "--context", "slide"],
    ["--length-penalty", "2"],
    ["--stats", "--n", "2"],
    ["--system", "x"],
    ["--template-arg", "a=1"],
    ["--chat"],
]


def test_every_option_that_has_a_range_is_tried() -> None:
    ranged = (click.types.IntParamType, click.types.FloatParamType)
    found = {
        max(option.opts, key=len)
        for option in RUN.params
        if isinstance(option.type, ranged) and option.name not in MODEL_OPTIONS
    }
    assert len(found) > 10 and found <= WRONG.keys()


@pytest.mark.parametrize(
    "words",
    [[option, value] for option, values in WRONG.items() for value in values] + WRONG_TOGETHER,
    ids=lambda words: " ".join(words)[:60],
)
def test_a_server_refuses_what_is_refused_here(
    run: Run, tiny_folder: ModelFolder, server: Served, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "schema.json").write_text('{"type": "nothing"}')
    option, *rest = [str(tmp_path / "schema.json") if word == "SCHEMA" else word for word in words]
    if option == "--length-penalty" and rest != ["2"]:
        rest += ["--beams", "2"]
    own = run("run", tiny_folder.path, "the", option, *rest, "--threads", "1")
    remote = run("run", "--server", server.url, "tiny", "the", option, *rest)
    assert_refused(remote, rf"{option}\b")
    # Which of the two has no chat template is told by where it is.
    assert remote.err.replace(f"{server.url}/v1/models/tiny", "") == own.err.replace(
        f"{tiny_folder.path}", ""
    ).replace(" (chat_template.jinja, or in tokenizer_config.json)", "").replace(
        " (in Python: transcript=True)", ""
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--max-tokens", "2000000000"],
        ["--seed", str(2**53)],
        ["--n", "129"],
        ["--ban-token", "99999999999"],
        ["--logit-bias", "99999999999=1"],
    ],
    ids=lambda words: words[0],
)
def test_what_is_beyond_a_server_is_told_by_the_option(
    run: Run, server: Served, words: list[str]
) -> None:
    ended = run("run", "--server", server.url, "the", *words)
    assert_refused(ended, f"^pocketlm: found {words[0]} .*, expected")


def test_endless_time_is_no_limit(run: Run, server: Served) -> None:
    line = ["run", "--server", server.url, "the", *SEEDED]
    assert run(*line, "--max-seconds", "inf") == run(*line)


def test_a_busy_server_is_told(run: Run, tiny_folder: ModelFolder) -> None:
    with served(
        {"tiny": lambda: pocketlm.load(tiny_folder.path)}, parallel=1, most_waiting=0
    ) as full:
        assert run("run", "--server", full.url, "the", "--max-tokens", "1").code == 0
        ended = run("run", "--server", full.url, "the", "--n", "2")
    assert ended.code in (2, 3)


def test_a_key_that_is_wrong_is_told(run: Run, tiny_folder: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "right").write_text("right-key\n")
    (tmp_path / "wrong").write_text("wrong-key\n")
    for file in tmp_path.iterdir():
        file.chmod(0o600)
    with served({"tiny": lambda: pocketlm.load(tiny_folder.path)}, api_key="right-key") as guarded:
        line = ["run", "--server", guarded.url, "the", "--max-tokens", "2"]
        assert run(*line, "--api-key-file", tmp_path / "right").code == 0
        for words in ([], ["--api-key-file", str(tmp_path / "wrong")]):
            assert_refused(
                run(*line, *words), "found no valid key.*; the option --api-key-file says"
            )


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_ends_it_here_and_there(server: Served) -> None:
    line = ["run", "--server", server.url, "tiny", "the", "--context", "slide", "--ignore-eos"]
    line += ["--max-tokens", "100000000"]
    child = subprocess.Popen(
        [sys.executable, "-m", "pocketlm", *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.read(20)
    assert num_held(server) == 1
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (130, b"\n")
    wait_for(lambda: num_held(server) == 0)


def test_a_reader_that_leaves_is_no_error(server: Served) -> None:
    line = ["run", "--server", server.url, "tiny", "the", "--context", "slide", "--ignore-eos"]
    line += ["--max-tokens", "100000000"]
    child = subprocess.Popen(
        [sys.executable, "-m", "pocketlm", *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.read(20)
    child.stdout.close()
    assert child.stderr is not None and child.stderr.read() == b""
    child.stderr.close()
    assert child.wait(60) == 0
    wait_for(lambda: num_held(server) == 0)


def num_held(server: Served) -> int:
    """Texts of the first model that are under way."""
    engine = server.service.pool.served["tiny"].engine
    assert engine is not None
    return engine.num_held


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; fails where it never does."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came about")
