"""``pocketlm run --server``: a server's text is printed as that of a model on this machine.

What any server may say, and what becomes of it, is told by scripted ones; the real one is asked in
tests/server. Level: end to end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterable, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from command_line import Ended, Run, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_server import Reply, Scripted, scripted

from pocketlm.export.errors import RequestError
from pocketlm.remote import events
from pocketlm.remote.address import Address
from pocketlm.remote.events import data_of_events
from pocketlm.remote.model import RemoteModel, RemoteStream
from pocketlm.remote.server import Answer, Server, ServerError
from pocketlm.runtime.text import Timings

# Server-sent events -------------------------------------------------------------------------------

# What fields, ends of lines, and characters of several bytes are made of.
STREAMS = st.lists(
    st.sampled_from(
        [
            "data",
            ":",
            " ",
            "\n",
            "\r",
            "\r\n",
            "data: ",
            "id: 3",
            "é",
            "🙂",
            "\ufeff",
            "\u2028",
            "x",
        ]
    )
).map(lambda parts: "".join(parts).encode())


def plainly(stream: bytes) -> list[str]:
    """The same, of a stream that is there as a whole."""
    text = re.sub("\r\n|\r", "\n", stream.decode("utf-8").removeprefix("\ufeff"))
    found = []
    for block in re.findall(r"((?:[^\n]+\n)*)\n", text):
        fields = [line.partition(":") for line in block.split("\n")]
        data = [value.removeprefix(" ") for name, _, value in fields if name == "data"]
        if data:
            found.append("\n".join(data))
    return found


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """In parts, at these places."""
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@given(STREAMS, st.lists(st.integers(0, 200)))
def test_events_do_not_depend_on_how_a_network_cuts_them(stream: bytes, places: list[int]) -> None:
    assert list(data_of_events(cut(stream, places))) == plainly(stream)


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1))
)
def test_what_is_sent_as_an_event_is_read_again(texts: list[str]) -> None:
    stream = ""
    for text in texts:
        stream += ": still here\n\nevent: told\n"
        stream += "".join(f"data: {line}\n" for line in text.split("\n")) + "\n"
    assert list(data_of_events([stream.encode()])) == texts


def test_an_event_without_an_end_is_none() -> None:
    assert list(data_of_events([b"data: whole\n\ndata: half\n"])) == ["whole"]


@pytest.mark.parametrize("chunk", [b"data: xxxx\n", b"xxxx"])
def test_an_event_may_not_grow_for_ever(chunk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_CHARACTERS", 1000)
    with pytest.raises(ValueError, match="an event has more than 1,000 characters"):
        list(data_of_events([chunk] * 1000))


# Addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, found",
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080"),
        ("http://LOCALHOST", "http://localhost"),
        ("http://[::1]:8080/v1", "http://[::1]:8080"),
        ("https://example.org", "https://example.org"),
        ("https://example.org:8443/models/v1", "https://example.org:8443/models"),
    ],
)
def test_an_address_is_read_with_or_without_its_end(url: str, found: str) -> None:
    assert str(Address.parse(url)) == found


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "127.0.0.1:8080",
            "localhost",
            "ftp://x",
            "file:///etc/passwd",
            "http://",
            "http:///v1",
        ),
        *(
            "http://x:99999",
            "http://x:0",
            "http://x:y",
            "http://me:secret@x",
            "http://x?a",
            "http://x#a",
        ),
        *("http://x y", "http://x\r\nHost: y", "http://é", "http://[::1"),
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="^server: found .*, expected the address of a server"):
        Address.parse(url)


# What servers say ---------------------------------------------------------------------------------

MODELS = Reply(
    {"data": [{"id": "tiny", "owned_by": "pocketlm"}, {"id": "other", "owned_by": "pocketlm"}]}
)
FOREIGN = Reply({"data": [{"id": "big", "owned_by": "somebody"}]})


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def text(*words: str, **more: Any) -> list[bytes]:
    """Events of a completion."""
    said = [event({"choices": [{"index": 0, "text": word, **more}]}) for word in words]
    return [*said, b"data: [DONE]\n\n"]


def details(reason: str = "eos", **told: Any) -> bytes:
    """The last event of a server of ours."""
    model = {"architecture": "gpt2", "precision": "fp32", "context_length": 64, "threads": 2}
    model |= {"load_seconds": 0.5, "provider": "cpu", "kv": "fp32", "prefill": "none"}
    model |= {"prefill_note": None, "fallback": None, "peak_rss_bytes": 10**8}
    timings = dataclasses.asdict(Timings(prompt_tokens=3, new_tokens=2, decode_seconds=0.5))
    end = {"finish_reason": reason, "timings": timings}
    return event({"choices": [], "details": {"choices": [end], "model": model | told}})


def ask(run: Run, replies: dict[str, Reply], *words: str) -> tuple[Ended, Scripted]:
    """What is printed where a server has these replies."""
    with scripted({"/v1/models": MODELS} | replies) as server:
        return run("run", "--server", server.url, *words), server


def completion(reply: Reply) -> dict[str, Reply]:
    return {"/v1/completions": reply}


def test_text_of_any_server_is_printed(run: Run) -> None:
    said = [b": hello\r\n\r\n", *text("Once", " upon\n", " \U0001f642")]
    ended, server = ask(
        run, {"/v1/models": FOREIGN, **completion(Reply(said))}, "Well", "--seed", "3"
    )
    assert ended == Ended(0, "Once upon\n \U0001f642\n", "")
    sent = {"model": "big", "prompt": "Well", "max_tokens": 256, "seed": 3, "stream": True}
    assert server.asked[-1].body == sent | {"stream_options": {"include_usage": True}}


def test_an_answer_of_any_server_is_printed(run: Run) -> None:
    said = [event({"choices": [{"index": 0, "delta": delta}]}) for delta in ({"content": "H"}, {})]
    said.append(
        event({"choices": [{"index": 0, "delta": {"content": "i"}, "finish_reason": "length"}]})
    )
    said += [event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 256}})]
    replies = {"/v1/models": FOREIGN, "/v1/chat/completions": Reply([*said, b"data: [DONE]\n\n"])}
    ended, server = ask(run, replies, "Hello", "--chat", "--system", "Short.", "--temperature", "0")
    assert ended == Ended(0, "Hi\n", "stopped after 256 tokens, see --max-tokens\n")
    told = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Hello"}]
    assert server.asked[-1].body["messages"] == told
    assert server.asked[-1].body["temperature"] == 0


def test_several_texts_of_any_server_are_printed(run: Run) -> None:
    choices = [{"index": n, "text": str(n), "finish_reason": "stop"} for n in (1, 0)]
    ended, server = ask(
        run, {"/v1/models": FOREIGN, **completion(Reply({"choices": choices}))}, "x", "--n", "2"
    )
    assert ended == Ended(0, "--- 1 of 2\n0\n--- 2 of 2\n1\n", "")
    assert server.asked[-1].body["n"] == 2 and "stream" not in server.asked[-1].body


def test_what_a_server_of_ours_tells_is_printed(run: Run) -> None:
    top = [{"id": 5, "text": "On", "logprob": -0.5}, {"id": 6, "text": "\x1b[31m", "logprob": -2.0}]
    tokens = [{"id": 6, "text": "\x1b[31m", "logprob": -2.0, "top": top}]
    said = [*text("Once", tokens=tokens)[:1], details("length"), b"data: [DONE]\n\n"]
    ended, server = ask(run, completion(Reply(said)), "x", "--stats", "--logprobs", "2")
    table = "-2.0000  '\ufffd[31m'  'On' -0.5000  '\ufffd[31m' -2.0000\n"
    assert (ended.code, ended.out) == (0, f"Once\n {table}")
    assert ended.err.startswith(
        "stopped after 2 tokens, see --max-tokens\nload 500 ms, first token "
    )
    assert "decode 2 tokens/s (2 tokens), peak memory 100 MB, 2 threads on cpu" in ended.err
    assert server.asked[-1].body["details"] is True
    told = json.loads(ask(run, completion(Reply(said)), "x", "--json", "--logprobs", "2")[0].out)
    assert told["token_ids"] == [6] and told["logprobs"] == [-2.0]
    assert told["top_logprobs"] == [{"5": -0.5, "6": -2.0}]


def test_a_server_does_not_drive_a_terminal(run: Run) -> None:
    last = details("\x1b]0;a\x07", provider="\x1b[2J", kv="\x9b1m")
    ended, _ = ask(run, completion(Reply([last, b"data: [DONE]\n\n"])), "x", "--stats")
    assert ended.code == 0 and "finished by \ufffd]0;a\ufffd" in ended.err
    assert not re.search("[\x1b\x07\x9b]", ended.out + ended.err)


@pytest.mark.parametrize("option", ["--json", "--stats", "--logprobs=2", "--beams=2"])
def test_what_other_servers_cannot_tell_is_refused(run: Run, option: str) -> None:
    ended, server = ask(run, {"/v1/models": FOREIGN}, "x", option)
    name = option.partition("=")[0]
    assert_refused(
        ended, f"found {name} of {server.url}, expected it of a server that pocketlm serves"
    )
    assert [request.path for request in server.asked] == ["/v1/models"]


@pytest.mark.parametrize(
    "option", ["--threads=2", "--precision=int4", "--kv=int8", "--prompt-cache=x", "--offline"]
)
def test_what_the_server_decides_is_refused(run: Run, option: str) -> None:
    ended, server = ask(run, {}, "x", option)
    assert_refused(
        ended, f"found {option.partition('=')[0]} with --server, which decides that itself"
    )


@pytest.mark.parametrize(
    "words, model, prompt",
    [
        ([], "tiny", ""),
        (["Once"], "tiny", "Once"),
        (["other"], "other", ""),
        (["other", "Once"], "other", "Once"),
        (["unheard", "Once"], "unheard", "Once"),
        (["gpt2"], "tiny", "gpt2"),
    ],
)
def test_one_word_is_a_model_if_the_server_has_it(
    run: Run, words: Sequence[str], model: str, prompt: str
) -> None:
    _, server = ask(run, completion(Reply(text(""))), *words)
    assert server.asked[-1].body["model"] == model
    assert server.asked[-1].body["prompt"] == prompt


ERROR = {"message": "found no way, expected one", "type": "invalid_request_error"}
OVER = ERROR | {"type": "rate_limit_error"}


@pytest.mark.parametrize(
    "reply, code, message",
    [
        (Reply({"error": ERROR}, 400), 2, "^pocketlm: found no way, expected one$"),
        (Reply({"error": ERROR}, 404), 2, "^pocketlm: found no way, expected one$"),
        (
            Reply({"error": ERROR | {"param": "top_p", "message": "0 is too small"}}, 400),
            2,
            "^pocketlm: --top-p: 0 is too small$",
        ),
        (
            Reply({"error": ERROR | {"param": "top_p", "message": "top_p must be in (0, 1]"}}, 400),
            2,
            r"^pocketlm: --top-p must be in \(0, 1\]$",
        ),
        (
            Reply({"error": ERROR | {"param": "messages", "message": "5"}}, 400),
            2,
            "^pocketlm: 5$",
        ),
        (Reply({"error": ERROR}, 401), 2, "one; the option --api-key-file says where your key is$"),
        (Reply({"error": OVER}, 429), 3, ": found no way, expected one; try again later$"),
        (
            Reply({"error": OVER}, 503, {"Retry-After": "2"}),
            3,
            "one; try again later \\(it says: in 2 seconds\\)$",
        ),
        (
            Reply({"error": ERROR | {"type": "server_error"}}, 500),
            3,
            ": found no way, expected one$",
        ),
        (Reply(b"<html>", 502), 3, ": found the status 502 Bad Gateway, expected an answer$"),
        (Reply({"detail": "no"}, 403), 2, ": found the status 403 Forbidden, expected an answer$"),
        (Reply({"error": "in a word"}, 400), 2, ": in a word$"),
        (
            Reply(b"", 307, {"Location": "http://elsewhere/"}),
            2,
            "--server: http://127.* sends one to http://elsewhere/, expected the server itself",
        ),
        (Reply(text("half")[:1]), 3, "the connection broke \\(the answer ended before its end\\)"),
        (Reply(text("half")[:1], cut=True), 3, "the connection broke \\(the answer ended before"),
        (Reply([event({"error": OVER})]), 3, ": found no way, expected one$"),
        (Reply([event({"error": ERROR})]), 2, "^pocketlm: found no way, expected one$"),
        (Reply([b"data: {\n\n"]), 3, "not one of OpenAI's API, expected JSON"),
        (Reply([details(load_seconds="a")]), 3, "not one of OpenAI's API, expected its fields"),
        (Reply([details(threads=1e999)]), 3, "not one of OpenAI's API, expected its fields"),
        (Reply([b"data: [" * 9999 + b"\n\n"]), 3, "not one of OpenAI's API, expected JSON"),
        (Reply([b"data: 5\n\n"]), 3, "not one of OpenAI's API, expected an object"),
        (Reply([event({})]), 3, "not one of OpenAI's API, expected its fields"),
        (Reply([event({"choices": [5]})]), 3, "not one of OpenAI's API, expected its fields"),
        (Reply(text("a", tokens=[{"id": 0}])), 3, "not one of OpenAI's API, expected its fields"),
        (Reply(text("a")), 3, "not one of OpenAI's API, expected the field details at its end"),
        (Reply(b"<html>"), 3, "the connection broke"),
    ],
)
def test_what_goes_wrong_is_told(run: Run, reply: Reply, code: int, message: str) -> None:
    ended, _ = ask(run, completion(reply), "x", "--json")
    assert_refused(ended, message, code)


@pytest.mark.parametrize(
    "models",
    [Reply({"data": 5}), Reply({}), Reply(b"<html>"), Reply(b"[]"), Reply({"data": ["x"]})],
)
def test_what_is_no_such_server_is_told(run: Run, models: Reply) -> None:
    ended, _ = ask(run, {"/v1/models": models}, "x")
    assert_refused(ended, "is it the address of such a server", 3)


def test_a_server_without_a_model_is_told(run: Run) -> None:
    assert_refused(
        ask(run, {"/v1/models": Reply({"data": []})}, "x")[0], "has no model, expected one"
    )


def test_no_server_is_told(run: Run) -> None:
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        ended = run("run", "--server", url, "x")
    assert_refused(
        ended, f"{url}: found no server that answers .*start one with: pocketlm serve$", 3
    )


def test_an_address_that_has_no_models_is_told_by_what_was_asked(run: Run) -> None:
    missing = {"error": {"message": "found nothing at this path", "type": "invalid_request_error"}}
    for reply in (Reply(missing, 404), Reply(b"Not here", 404), Reply(b"No GET", 405)):
        ended, server = ask(run, {"/v1/models": reply}, "x")
        expected = f"--server: found no list of models at {server.url}/v1/models .*correct the "
        assert_refused(ended, expected + "address$")


def test_a_server_that_speaks_no_tls_is_told(run: Run) -> None:
    with scripted({"/v1/models": MODELS}) as server:
        ended = run("run", "--server", server.url.replace("http", "https"), "x")
    assert_refused(ended, f"found no TLS, expected it behind https; try {server.url}$", 3)


def test_a_wrong_address_is_an_option_that_is_wrong(run: Run) -> None:
    assert_refused(
        run("run", "--server", "localhost:1", "x"), "pocketlm: --server: found 'localhost:1'"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "details", "model", "text", "delta", "content", "tokens", "id", "top"]
                + ["logprob", "finish_reason", "timings", "usage", "prompt_tokens", "error"]
                + ["message", "context_length", "completion_tokens", "index"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


class Said(io.BytesIO):
    """The response of a server that says this."""

    status, reason = 200, "OK"

    def getheader(self, name: str, default: str) -> str:
        return default


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["choices", "details", "usage", "error"]), JSON), max_size=4
    )
)
def test_whatever_a_server_says_is_a_text_or_an_error_of_ours(said: list[Any]) -> None:
    server = Server(Address.parse("http://127.0.0.1"))
    server._models = [{"id": "tiny", "owned_by": "pocketlm"}]
    stream = b"".join(map(event, said)) + b"data: [DONE]\n\n"
    with socket.socket() as unused:
        answer = Answer(
            server,
            HTTPConnection("127.0.0.1"),
            unused,
            Said(stream),  # type: ignore[arg-type]
        )
        found = RemoteStream(RemoteModel(server, "tiny"), answer, 2)
        with contextlib.suppress(ServerError, RequestError):
            assert isinstance(found.result_of(found).text, str)


# Keys ---------------------------------------------------------------------------------------------


def test_the_key_is_shown(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("secret-of-file\n")
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("POCKETLM_API_KEY", "secret-of-environment")
    monkeypatch.setenv("OPENAI_API_KEY", "meant-for-another-server")
    for words, shown in (
        (["--api-key-file", str(tmp_path / "key")], "Bearer secret-of-file"),
        ([], "Bearer secret-of-environment"),
    ):
        _, server = ask(run, completion(Reply(text(""))), "x", *words)
        assert [request.headers.get("authorization") for request in server.asked] == [shown] * 2


def test_without_a_key_none_is_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POCKETLM_API_KEY", raising=False)
    _, server = ask(run, completion(Reply(text(""))), "x")
    assert "authorization" not in server.asked[0].headers


def test_a_variable_without_a_key_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLM_API_KEY", "")
    ended = run("run", "--server", "http://127.0.0.1:9", "x")
    assert_refused(ended, "POCKETLM_API_KEY is empty, expected a key")


@pytest.mark.parametrize("content", ["", "\n", "two words", "two\nlines", "é", "a\0b"])
def test_what_is_no_key_is_refused_unshown(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    (tmp_path / "key").chmod(0o600)
    ended = run("run", "--server", "http://127.0.0.1:9", "--api-key-file", tmp_path / "key", "x")
    assert_refused(ended, "key (is empty|has other characters than visible ASCII), expected a key")
    assert not content.strip() or content not in ended.err


def test_a_key_without_a_server_is_refused(run: Run, tmp_path: Path) -> None:
    ended = run("run", "--api-key-file", tmp_path / "key", "x")
    assert_refused(ended, "found --api-key-file without --server")


def test_a_proxy_of_the_environment_is_not_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    ended, _ = ask(run, {"/v1/models": FOREIGN, **completion(Reply(text("Once")))}, "x")
    assert ended.out == "Once\n"


# TLS ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for 127.0.0.1 that nobody has signed but itself, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(file), "-out", str(file) + ".crt"]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def test_a_certificate_is_checked(
    run: Run, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = {"/v1/models": FOREIGN, **completion(Reply(text("Once")))}
    with scripted(replies, certificate) as server:
        ended = run("run", "--server", server.url, "x")
        assert_refused(ended, "found no server that answers .*certificate verify failed", 3)
        assert server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
        assert run("run", "--server", server.url, "x") == Ended(0, "Once\n", "")
        plainly = server.url.replace("https", "http")
        assert_refused(run("run", "--server", plainly, "x"), "found no server that answers", 3)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_an_answer_is_cut_while_it_is_waited_for(
    tls: bool, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    replies = {"/v1/models": FOREIGN, **completion(Reply(text("Once")[:1], stalls=True))}
    with scripted(replies, certificate if tls else None) as server:
        stream = RemoteModel(Server(Address.parse(server.url)), "big").stream("Well")
        pieces = iter(stream)
        assert next(pieces).text == "Once" and stream.finish_reason is None
        cutting = threading.Timer(0.1, stream.cancel)
        cutting.start()
        assert list(pieces) == [] and stream.finish_reason == "cancelled"
        cutting.join()
        assert server.left.acquire(timeout=20), "the connection is still there"
