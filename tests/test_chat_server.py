"""``pocketlm chat --server``: a server's answers are printed as those of a model on this machine.

What any server may say is told by scripted ones; the real one is asked in tests/server. Level: end
to end.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command_line import Ended, Run, assert_refused
from scripted_server import Reply, Scripted, scripted
from terminals import Keyboard, Terminal

from pocketlm.runtime.text import Timings

CHAT = "/v1/chat/completions"
FOREIGN = Reply({"data": [{"id": "big", "owned_by": "somebody"}, {"id": "small"}]})
DONE = b"data: [DONE]\n\n"
FACTS: dict[str, Any] = {
    "context_length": 64,
    "threads": 2,
    "load_seconds": 0.5,
    "prefill_note": None,
}
FACTS |= {"fallback": None, "peak_rss_bytes": 10**8, "architecture": "gpt2", "precision": "fp32"}
FACTS |= {"provider": "cpu", "kv": "fp32", "prefill": "none"}
LONG = "a text of some length, and then"


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def said(*words: str, reason: str = "stop") -> list[bytes]:
    """An answer as it comes, without its end."""
    deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
    events = [event({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
    return [*events, event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})]


def answer(*words: str, reason: str = "stop") -> Reply:
    return Reply([*said(*words, reason=reason), DONE])


def ours(**told: Any) -> dict[str, Reply]:
    """A server of ours, which tells this of its model."""
    end = {"finish_reason": "eos", "timings": vars(Timings(prompt_tokens=3, new_tokens=2))}
    last = event({"choices": [], "details": {"choices": [end], "model": FACTS}})
    return {
        "/v1/models": Reply({"data": [{"id": "tiny", "owned_by": "pocketlm", **told}]}),
        CHAT: Reply([*said("Once", " upon"), last, DONE]),
        "/tokenize": Reply({"tokens": [1, 2, 3], "count": 3}),
    }


@contextmanager
def foreign(reply: Reply) -> Iterator[Scripted]:
    """Another server, whose answer is always the same."""
    with scripted({"/v1/models": FOREIGN, CHAT: reply}) as server:
        yield server


def chat(
    run: Run, replies: Mapping[str, Reply], *words: str, lines: Any = "Hi\n"
) -> tuple[Ended, Scripted]:
    """What is printed where a server has these replies."""
    with scripted({"/v1/models": FOREIGN} | dict(replies)) as server:
        return run("chat", "--server", server.url, *words, lines=lines), server


def conversations(server: Scripted) -> list[list[tuple[str, str]]]:
    """The messages of each request for an answer."""
    return [
        [(message["role"], message["content"]) for message in asked.body["messages"]]
        for asked in server.asked
        if asked.path == CHAT
    ]


def test_any_server_gets_the_conversation_and_its_answers_are_printed(run: Run) -> None:
    ended, server = chat(
        run, {CHAT: answer("Once", " upon\n\x1b")}, "--seed", "3", lines="Hi\n\nGo on\n"
    )
    assert ended == Ended(0, 2 * "Once upon\n\x1b\n", "")
    assert conversations(server) == [
        [("user", "Hi")],
        [("user", "Hi"), ("assistant", "Once upon\n\x1b"), ("user", "Go on")],
    ]
    assert [asked.path for asked in server.asked] == ["/v1/models", CHAT, CHAT]
    sent = {name: value for name, value in server.asked[1].body.items() if name != "messages"}
    told = {"model": "big", "max_tokens": 1024, "seed": 3, "stream": True}
    assert sent == told | {"stream_options": {"include_usage": True}}


def test_commands_within_the_chat_are_those_of_chat(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    lines = f"one\n/system Short.\ntwo\n/reset\n//three\n/save {file}\n/exit\nfour\n"
    ended, server = chat(run, {CHAT: answer("A")}, "--system", "Long.", lines=lines)
    assert (ended.code, ended.out) == (0, "A\nA\nA\n")
    assert ended.err == f"wrote 3 messages to {file}\n"
    assert conversations(server) == [
        [("system", "Long."), ("user", "one")],
        [("system", "Short."), ("user", "one"), ("assistant", "A"), ("user", "two")],
        [("system", "Short."), ("user", "/three")],
    ]
    assert [message["content"] for message in json.loads(file.read_text())] == [
        *("Short.", "/three", "A"),
    ]


def test_variables_reach_the_server(run: Run) -> None:
    _, server = chat(run, {CHAT: answer("A")}, "small", "--template-arg", "thinking=false")
    assert server.asked[-1].body["chat_template_kwargs"] == {"thinking": False}
    assert server.asked[-1].body["model"] == "small"


def test_a_limit_is_told(run: Run) -> None:
    ended, _ = chat(run, {CHAT: answer("A", reason="length")}, "--max-tokens", "1")
    assert ended.code == 0 and ended.err.startswith("stopped after ")
    assert ended.err.endswith(" tokens, see --max-tokens\n")


def test_a_server_of_ours_is_asked_whether_it_could_before_a_line_is_read(run: Run) -> None:
    replies = ours(context_length=64, chat=True)
    ended, server = chat(run, replies, "--temperature", "0", lines="Hi\n")
    assert ended == Ended(0, "Once upon\n", "")
    assert [asked.path for asked in server.asked] == ["/v1/models", CHAT, "/tokenize", CHAT]
    assert conversations(server) == [[("user", "?")], [("user", "Hi")]]
    assert server.asked[1].body["temperature"] == 0 and server.asked[1].body["details"] is True
    assert server.asked[2].body == {"model": "tiny", "messages": server.asked[3].body["messages"]}


def test_a_base_model_of_ours_is_given_a_script(run: Run) -> None:
    ended, server = chat(run, ours(context_length=64, chat=False))
    assert ended.out == "Once upon\n"
    assert ended.err.startswith("this is a base model, without a chat template: it continues a")
    assert all(asked.body["transcript"] is True for asked in server.asked[1:])
    ended, _ = chat(run, ours(chat=False), "--template-arg", "year=1")
    assert_refused(ended, "found --template-arg, expected a model with a chat template")


@pytest.mark.parametrize("told", [{"context_length": "x"}, {"context_length": None}, {"chat": 5}])
def test_what_a_list_says_of_a_model_need_not_be_there(run: Run, told: dict[str, Any]) -> None:
    ended, server = chat(run, ours(**told))
    assert ended == Ended(0, "Once upon\n", "")
    assert "/tokenize" not in [asked.path for asked in server.asked]


@pytest.mark.parametrize("reply", [Reply({}), Reply({"count": "x"}), Reply(b"5"), Reply(b"<html>")])
def test_a_count_that_is_none_is_told(run: Run, reply: Reply) -> None:
    ended, _ = chat(run, ours(context_length=64) | {"/tokenize": reply})
    assert_refused(ended, "found an answer that is not one of OpenAI's API", 3)


# What goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--threads=2", "--precision=int4", "--kv=int8", "--offline"])
def test_what_the_server_decides_is_refused(run: Run, option: str) -> None:
    ended, server = chat(run, {}, option)
    name = option.partition("=")[0]
    assert_refused(ended, f"found {name} with --server, which decides that itself; leave it out")
    assert server.asked == []


@pytest.mark.parametrize("words", [[], ["--system", "x"]])
def test_who_is_to_answer_has_to_be_said(run: Run, words: list[str]) -> None:
    assert_refused(run("chat", *words, lines=""), "found neither a model nor --server, expected")


def test_a_key_without_a_server_is_refused(run: Run, tmp_path: Path) -> None:
    ended = run("chat", "demo", "--api-key-file", tmp_path / "key", lines="")
    assert_refused(ended, "found --api-key-file without --server")


def test_the_key_is_shown_with_every_request(run: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    (tmp_path / "key").chmod(0o600)
    _, server = chat(run, ours(context_length=64), "--api-key-file", str(tmp_path / "key"))
    shown = {asked.headers.get("authorization") for asked in server.asked}
    assert shown == {"Bearer secret"} and len(server.asked) == 4


@pytest.mark.parametrize(
    "words, message",
    [
        (["--max-tokens", "0"], "^pocketlm: --max-tokens is 0, expected an integer from 1 up"),
        (["--top-p", "1.5"], r"^pocketlm: --top-p is 1.5, expected a finite number in \(0, 1\]"),
        (["--stop", ""], "^pocketlm: --stop has 0 characters, expected"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_options_are_checked_before_a_line_is_read_or_another_server_asked(
    run: Run, words: list[str], message: str
) -> None:
    ended, server = chat(run, {}, *words, lines="")
    assert_refused(ended, message)
    assert [asked.path for asked in server.asked] == ["/v1/models"]


ERROR = {"message": "found no way, expected one", "type": "invalid_request_error"}


@pytest.mark.parametrize(
    "reply, code, out, message",
    [
        (Reply({"error": ERROR}, 404), 2, "", "found no way, expected one$"),
        (Reply({"error": ERROR}, 401), 2, "", "the option --api-key-file says where your key is$"),
        (Reply({"error": ERROR}, 503), 3, "", "found no way, expected one; try again later$"),
        (
            Reply({"error": ERROR | {"message": "too small", "param": "top_p"}}, 400),
            *(2, "", "--top-p: too small$"),
        ),
        (Reply(said("half"), cut=True), 3, "half\n", r"the connection broke \(.*; try again$"),
        (Reply(said("half")), 3, "half\n", r"the connection broke \(the answer ended before"),
        (Reply([*said("half"), event({"error": {"message": "no memory"}})]), 3, "half\n", "no mem"),
        (Reply([b"data: {\n\n"]), 3, "", "not one of OpenAI's API, expected JSON"),
    ],
)
def test_what_goes_wrong_ends_a_pipe_and_is_told_at_a_keyboard(
    run: Run, reply: Reply, code: int, out: str, message: str
) -> None:
    ended, server = chat(run, {CHAT: reply}, lines="Hi\nGo on\n")
    assert ended.out == out
    assert_refused(Ended(ended.code, "", ended.err), message, code)
    assert conversations(server) == [[("user", "Hi")]]
    # Nothing of it is remembered: the message can be sent again.
    ended, server = chat(run, {CHAT: reply}, lines=Keyboard("Hi\nGo on\n/exit\n"))
    assert (ended.code, ended.out) == (0, 2 * out)
    first, *told, last = ended.err.splitlines()
    assert first.startswith("/help lists") and last == ""
    assert len(told) == 2 and told[0] == told[1] and re.search(message, told[0])
    assert conversations(server) == [[("user", "Hi")], [("user", "Go on")]]


def test_no_server_is_told(run: Run) -> None:
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        ended = run("chat", "--server", url, lines="Hi\n")
    assert_refused(ended, f"{url}: found no server that answers .*start one with", 3)
    assert_refused(run("chat", "--server", "x:1", lines=""), "^pocketlm: --server: found 'x:1'")


# Ctrl-C -------------------------------------------------------------------------------------------


@contextmanager
def typing(server: Scripted) -> Iterator[Terminal]:
    """A chat with it at a terminal."""
    pytest.importorskip("termios", reason="needs a pseudo-terminal")
    opened = Terminal("chat", "--server", server.url)
    try:
        opened.wait_for("> ")
        yield opened
    finally:
        opened.close()


def test_ctrl_c_stops_an_answer_that_is_waited_for_and_not_the_chat(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with foreign(Reply(said(LONG)[:2], stalls=True)) as server, typing(server) as terminal:
        for count in (1, 2):
            terminal.ask("Hi")
            terminal.type("\x03")
            terminal.wait_for("> ")
            assert server.left.acquire(timeout=20), "the connection is still there"
            assert len(conversations(server)) == count
        terminal.type(f"/save {file}\n")
        terminal.wait_for("wrote 4 messages")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert [message["content"] for message in json.loads(file.read_text())] == ["Hi", LONG] * 2


@pytest.mark.parametrize("reply", [Reply(silent=True), Reply([], stalls=True)], ids=str)
def test_ctrl_c_gives_up_an_answer_that_has_not_begun(reply: Reply, tmp_path: Path) -> None:
    with foreign(reply) as server, typing(server) as terminal:
        terminal.type("Hi\n")
        terminal.wait_for("Hi\r\n")
        while len(server.asked) < 2:
            assert terminal.child.poll() is None
        terminal.interrupt()
        terminal.wait_for("> ")
        assert server.left.acquire(timeout=20), "the connection is still there"
        terminal.type(f"/save {tmp_path / 'a.json'}\n")
        terminal.wait_for("wrote 0 messages")
        terminal.wait_for("> ")
        terminal.type("/exit\n")
        assert terminal.end() == 0
