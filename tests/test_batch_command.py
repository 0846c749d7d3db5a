"""``pocketlm batch``: an answer for every line, in order, whole however often it was ended."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import Run, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import with_files

import pocketlm
from pocketlm.commands import batch, batch_answers, jsonl, measuring
from pocketlm.commands.batch_answers import Answers, Terms, line_seed
from pocketlm.commands.batch_record import Identity, Record, open_output
from pocketlm.commands.jsonl import JsonLines, Line
from pocketlm.commands.options import MODEL_OPTIONS
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.openai_form import OPTIONS
from pocketlm.runtime.sequence import Sequence as Running

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
LINES: list[Any] = [
    {"prompt": "the house", "id": "first", "max_tokens": 9},
    "and a",
    {"prompt": [5, 6, 7], "temperature": 0, "logprobs": 2, "id": [1, None]},
    {"prompt": "went ", "seed": 7, "max_tokens": None, "stop": ["e"], "logit_bias": {"3": 1.5}},
    {
        "custom_id": "fifth",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "m", "prompt": "there", "max_tokens": 2, "temperature": 1},
    },
    {"prompt": ""},
]
TOKENS = ("--max-tokens", "4")
ONE = ("--threads", "1")  # as the tiny model has


def text_of(lines: Sequence[Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text_of(LINES))
    return path


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch, tiny_model: pocketlm.Model) -> Iterator[None]:
    """The tiny model is opened once for all tests here; other folders are opened."""

    def open_model(path: str, options: dict[str, Any]) -> pocketlm.Model:
        for name in MODEL_OPTIONS:
            del options[name]
        if Path(path) == tiny_model.folder.path:
            return tiny_model
        return pocketlm.load(path, threads=1)

    monkeypatch.setattr(batch, "open_model", open_model)
    yield


@pytest.fixture(scope="module")
def chat_folder(tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    to = tmp_path_factory.mktemp("batch") / "chat"
    return with_files(tiny_folder, to, {"chat_template.jinja": TEMPLATE})


def answers_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_an_answer_is_what_its_prompt_gets_alone(
    run: Run, tiny_model: pocketlm.Model, file: Path
) -> None:
    ended = run("batch", tiny_model.folder.path, file, *TOKENS, "--seed", 3)
    assert ended.code == 0
    assert ended.err.startswith("pocketlm: answered 6 lines, ")
    found = [json.loads(line) for line in ended.out.splitlines()]
    for number, (line, answer) in enumerate(zip(LINES, found, strict=True), 1):
        if number == 5:
            continue
        asked = {"prompt": line} if isinstance(line, str) else dict(line)
        if number == 4:
            asked["logit_bias"] = {3: 1.5}
            del asked["max_tokens"]  # null: as if it were not there
        name = asked.pop("id", None)
        asked = {"max_tokens": 4, "seed": line_seed(3, number), **asked}
        alone = tiny_model.generate(**asked, reproducible=True)
        assert (answer["line"], answer.get("id"), answer["seed"]) == (number, name, asked["seed"])
        assert (answer["text"], answer["finish_reason"]) == (alone.text, alone.finish_reason)
        counts = (alone.timings.prompt_tokens, alone.timings.new_tokens)
        assert (answer["prompt_tokens"], answer["new_tokens"]) == counts
        if number == 3:
            assert answer["token_ids"] == alone.token_ids
            assert answer["logprobs"] == alone.logprobs
            assert answer["top_logprobs"] == json.loads(json.dumps(alone.top_logprobs))
        else:
            assert "logprobs" not in answer


def test_seeds_of_lines_differ_and_follow_the_seed(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('"the house"\n' * 4)
    outs = [
        run("batch", tiny_folder.path, path, "--quiet", "--max-tokens", "8", *seed).out
        for seed in ([], ["--seed", "0"], ["--seed", "1"])
    ]
    assert outs[0] == outs[1] != outs[2]
    assert len({json.loads(line)["text"] for line in outs[0].splitlines()}) > 1
    assert len({line_seed(seed, number) for seed in range(9) for number in range(99)}) == 9 * 99


def test_openai_s_form_is_answered_in_that_form(
    run: Run, chat_folder: ModelFolder, tmp_path: Path
) -> None:
    model = pocketlm.Model(chat_folder, threads=1)
    messages = [{"role": "user", "content": "the house"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "the "}, {"text": "house"}]}]
    chat = {"model": "gpt-x", "messages": parts, "max_completion_tokens": 5, "seed": 1, "n": 1}
    chat |= {"logprobs": True, "top_logprobs": 2, "user": "me", "stop": None, "stream": False}
    completion = {"prompt": "the house", "max_tokens": 3, "temperature": 0, "logprobs": 1}
    path = tmp_path / "a.jsonl"
    path.write_text(
        text_of(
            [
                {"custom_id": name, "method": "POST", "url": f"/v1/{url}", "body": body}
                for name, url, body in (
                    ("a", "chat/completions", chat),
                    ("b", "completions", completion),
                )
            ]
        )
    )
    ended = run("batch", chat_folder.path, path)
    assert ended.code == 0, ended.err
    first, second = map(json.loads, ended.out.splitlines())
    options: dict[str, Any] = {"max_tokens": 5, "seed": 1, "logprobs": 2, "reproducible": True}
    alone = model.generate(model.chat_prompt(messages), **options)
    assert first.keys() == second.keys() == {"id", "custom_id", "response", "error"}
    assert (first["custom_id"], second["custom_id"], first["error"]) == ("a", "b", None)
    assert first["response"]["status_code"] == 200
    body = first["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", "gpt-x")
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": alone.text, "refusal": None}
    assert choice["finish_reason"] == "length"
    assert body["usage"] == {
        "prompt_tokens": alone.timings.prompt_tokens,
        "completion_tokens": 5,
        "total_tokens": alone.timings.prompt_tokens + 5,
    }
    content = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == alone.logprobs
    spelled = b"".join(bytes(entry["bytes"]) for entry in content)
    assert spelled.decode("utf-8", "replace") == alone.text
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    body = second["response"]["body"]
    alone = model.generate("the house", max_tokens=3, temperature=0, logprobs=1, reproducible=True)
    (choice,) = body["choices"]
    assert (body["object"], choice["text"]) == ("text_completion", alone.text)
    assert choice["logprobs"]["token_logprobs"] == alone.logprobs
    offsets, tokens = choice["logprobs"]["text_offset"], choice["logprobs"]["tokens"]
    assert offsets == [len("".join(tokens[:i])) for i in range(3)]


def test_a_response_format_is_the_form_of_the_answer(
    run: Run, chat_folder: ModelFolder, tmp_path: Path
) -> None:
    pytest.importorskip("llguidance", reason="the extra 'grammar' is not installed")
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False}
    schema |= {"properties": {"a": {"enum": [1, None]}}, "required": ["a"]}
    named = {"name": "answer", "schema": schema, "strict": True, "description": None}
    formats: list[Any] = [{"type": "json_schema", "json_schema": named}, {"type": "json_object"}]
    formats += [{"type": "text"}, None]
    body = {"messages": [{"role": "user", "content": "the house"}], "max_tokens": 12, "seed": 3}
    path = tmp_path / "a.jsonl"
    path.write_text(
        text_of(
            [
                {
                    "custom_id": str(number),
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {**body, "response_format": form},
                }
                for number, form in enumerate(formats)
            ]
        )
    )
    ended = run("batch", chat_folder.path, path)
    assert ended.code == 0, ended.err
    choices = [
        json.loads(line)["response"]["body"]["choices"][0] for line in ended.out.splitlines()
    ]
    strict, free, text, none = (choice["message"]["content"] for choice in choices)
    assert json.loads(strict) in ({"a": 1}, {"a": None}) and choices[0]["finish_reason"] == "stop"
    assert free.startswith("{") and text == none and not text.startswith("{")


def test_messages_and_chat_are_answered_by_the_template(
    run: Run, chat_folder: ModelFolder, tmp_path: Path
) -> None:
    model = pocketlm.Model(chat_folder, threads=1)
    system = {"role": "system", "content": "there"}
    user = {"role": "user", "content": "the house"}
    path = tmp_path / "a.jsonl"
    path.write_text(text_of(["the house", {"messages": [user], "seed": line_seed(0, 2)}]))
    ended = run("batch", chat_folder.path, path, "--chat", "--system", "there", *TOKENS)
    assert ended.code == 0, ended.err
    found = [json.loads(line)["text"] for line in ended.out.splitlines()]
    for number, (messages, text) in enumerate(zip(([system, user], [user]), found, strict=True), 1):
        options: dict[str, Any] = {"seed": line_seed(0, number), "max_tokens": 4}
        alone = model.generate(model.chat_prompt(messages), **options, reproducible=True)
        assert text == alone.text


# --- order ---


def batch_of(model: pocketlm.Model, limits: Sequence[int], pulled: list[int]) -> Iterator[bytes]:
    """Answers to a line for each limit, which is how many tokens its answer has."""

    def lines() -> Iterator[Line]:
        for number, limit in enumerate(limits, 1):
            pulled.append(number)
            asked = {"prompt": [number], "max_tokens": limit, "ignore_eos": True}
            yield Line(number, json.dumps(asked).encode())

    return Answers(model, Terms({}), lambda line: "x", rows=4).to(lines())


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_answers_keep_the_order_and_few_are_held(
    tiny_model: pocketlm.Model, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(batch_answers, "MOST_HELD", most)
    limits, pulled = [1, 40, 1, 2, 1, 3, 1, 1, 2, 1, 5, 1], []  # type: list[int], list[int]
    for count, data in enumerate(batch_of(tiny_model, limits, pulled), 1):
        answer = json.loads(data)
        assert (answer["line"], answer["new_tokens"]) == (count, limits[count - 1])
        # Held, those that run, one that waits, and this one.
        assert len(pulled) <= count + most + 4 + 1
    assert count == len(limits)
    if most == 1000:
        return
    monkeypatch.setattr(batch_answers, "MOST_HELD", 1000)
    pulled.clear()
    answers = batch_of(tiny_model, limits, pulled)
    next(answers), next(answers)  # the second is the longest
    assert len(pulled) == len(limits)


def test_bytes_that_are_held_are_bounded(
    tiny_model: pocketlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_answers, "MOST_HELD_BYTES", 150)  # an answer has more than 75
    pulled: list[int] = []
    for count, _ in enumerate(batch_of(tiny_model, [30, *[1] * 12], pulled), 1):
        assert len(pulled) <= count + 2 + 4 + 1
    assert count == 13


# --- resuming ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


def call(*arguments: object) -> None:
    """The command, without what catches its errors."""
    code = batch.command.main(list(map(str, arguments)), "batch", standalone_mode=False)
    assert code == 0


WITH_BAD = [*map(json.dumps, LINES), "", "{", '{"custom_id": "c", "method": "GET"}', '"the end"']


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 10_000), max_size=2))
def test_cut_at_any_byte_it_comes_to_the_same_bytes(
    tiny_model: pocketlm.Model, place: Path, cut: int, cuts: list[int]
) -> None:
    path, whole, out = (place / name for name in ("a.jsonl", "whole.jsonl", "out.jsonl"))
    path.write_bytes("\ufeff".encode() + "\r\n".join(WITH_BAD).encode())
    arguments = ("batch", tiny_model.folder.path, path, *TOKENS, "--skip-bad", "--quiet", "-o")
    if not whole.exists():
        call(*arguments[1:], whole)
        assert len(answers_in(whole)) == len(WITH_BAD) - 1
    expected = whole.read_bytes()
    out.write_bytes(expected[: cut % (len(expected) + 1)])
    for further in cuts:  # killed again, where it had gone on
        call(*arguments[1:], out)
        out.write_bytes(out.read_bytes()[: further % (len(expected) + 1)])
    call(*arguments[1:], out)
    assert out.read_bytes() == expected


def test_a_half_line_is_gone_before_anything_is_written(place: Path) -> None:
    path, out = place / "three.jsonl", place / "half.jsonl"
    path.write_bytes(b'"a"\n"b"\n"c"\n')
    whole = b'{"digest": "x", "line": 1}\n{"id": "batch_req_x", "custom_id": "b"}\n'
    identity: Any = SimpleNamespace(digest=lambda line: "x")
    for half in (b"", b"{", b'{"digest": "x", "li', b'{"id": "batch_req_x", "response": {}}'):
        out.write_bytes(whole + half)
        with open(path, "rb") as source:
            lines = JsonLines(source, "x")
            with open_output(out, lines, path) as record:
                assert record.resume(lines, identity) == 2
                assert out.read_bytes() == whole
                record.write(b"more\n")
        assert out.read_bytes() == whole + b"more\n"


def test_rows_change_no_byte(run: Run, tiny_folder: ModelFolder, file: Path) -> None:
    outs = {
        run("batch", tiny_folder.path, file, *TOKENS, "--rows", rows, "--quiet").out
        for rows in (1, 2, 16)
    }
    assert len(outs) == 1


def test_a_batch_killed_while_it_writes_loses_and_doubles_nothing(
    run: Run, tiny_folder: ModelFolder, file: Path, tmp_path: Path
) -> None:
    """A real kill -9, after half of the third answer."""
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    code = """
        import os, signal, sys
        from pocketlm import cli
        from pocketlm.commands.batch_record import Record, open_output

        write, count = Record.write, 0

        def dying(self, answer):
            global count
            count += 1
            if count == 3:
                write(self, answer[: len(answer) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, answer)

        Record.write = dying
        cli.main(sys.argv[1:])
    """
    arguments: list[str | Path] = ["batch", tiny_folder.path, file, *TOKENS, "--quiet", "-o"]
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *arguments, out, *ONE])
    assert ended.returncode == -signal.SIGKILL
    lines = out.read_bytes().split(b"\n")
    assert len(lines) == 3 and lines[2]
    assert run(*arguments, out).code == run(*arguments, whole).code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert len(answers_in(out)) == len(LINES)


def test_an_interrupt_ends_it_and_it_goes_on(
    run: Run, tiny_folder: ModelFolder, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    arguments = ("batch", tiny_folder.path, file, *TOKENS, "-o")
    write = Record.write

    def interrupted(self: Record, answer: bytes) -> None:
        write(self, answer)
        if b'"line": 2' in answer:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "write", interrupted)
        ended = run(*arguments, out)
        assert (ended.code, ended.err.strip()) == (130, "")
    assert len(answers_in(out)) == 2
    ended = run(*arguments, out)
    assert ended.code == 0
    assert ended.err.startswith("pocketlm: answered 4 lines (2 there before), ")
    assert run(*arguments, whole).code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_what_has_no_answer_yet_may_change_and_lines_be_added(
    run: Run, tiny_folder: ModelFolder, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    file.write_text(text_of(LINES[:2]))
    assert run("batch", tiny_folder.path, file, "-o", out, *TOKENS).code == 0
    before = out.read_bytes()
    file.write_text(text_of([*LINES[:2], "there", "went"]))
    ended = run("batch", tiny_folder.path, file, "-o", out, *TOKENS)
    assert ended.err.startswith("pocketlm: answered 2 lines (2 there before), ")
    assert out.read_bytes().startswith(before)
    assert [answer["line"] for answer in answers_in(out)] == [1, 2, 3, 4]


OTHERS = [
    (["--seed", "1"], "line 1: found an answer with other options than that of .*, line 1, exp"),
    (["--max-tokens", "5"], "line 1: found an answer with other options"),
    (["--stop", "x"], "line 1: found an answer with other options"),
]


@pytest.mark.parametrize(("options", "message"), OTHERS)
def test_other_options_are_refused(
    run: Run, tiny_folder: ModelFolder, file: Path, options: list[str], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    assert run("batch", tiny_folder.path, file, "-o", out, *TOKENS).code == 0
    out.write_bytes(before := out.read_bytes()[:-9])
    ended = run("batch", tiny_folder.path, file, "-o", out, *TOKENS, *options)
    assert_refused(ended, f"out.jsonl, {message}.*; name another output, or remove this one")
    assert out.read_bytes() == before


def test_another_model_line_or_input_is_refused(
    run: Run, tiny_folder: ModelFolder, chat_folder: ModelFolder, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ("-o", out, *TOKENS)
    assert run("batch", tiny_folder.path, file, *arguments).code == 0
    before = out.read_bytes()
    ended = run("batch", chat_folder.path, file, *arguments)
    assert_refused(ended, "out.jsonl, line 1: found an answer by another model than that of")
    file.write_text(text_of([LINES[0], "\n", *LINES[2:]]))
    ended = run("batch", tiny_folder.path, file, *arguments)
    assert_refused(ended, "out.jsonl, line 2: found another answer than that of .*jsonl, line 2, ")
    file.write_text("\n" + text_of(LINES))  # other numbers, and so other seeds
    ended = run("batch", tiny_folder.path, file, *arguments)
    assert_refused(ended, "out.jsonl, line 1: found another answer than that of .*jsonl, line 2, ")
    file.write_text(text_of(LINES[:3]))
    ended = run("batch", tiny_folder.path, file, *arguments)
    assert_refused(ended, "out.jsonl, line 4: found more answers than there are lines in ")
    assert out.read_bytes() == before


@pytest.mark.parametrize("content", ["notes\n", "notes", '{"digest": "x', "\n", '{"id": 1}\n'])
def test_a_file_of_something_else_stays(
    run: Run, tiny_folder: ModelFolder, file: Path, tmp_path: Path, content: str
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    ended = run("batch", tiny_folder.path, file, "-o", out)
    assert_refused(ended, "out.jsonl, line 1: found something else than that of .*; name another")
    assert out.read_text() == content


# --- bad input ---

BAD = [
    ('{"prompt": "a"', r"the line is not valid JSON \(.* at character 14\), expected a JSON obj"),
    ("[1]", "the line holds a JSON array, expected a JSON object"),
    ("7", "the line holds a JSON number"),
    ('"a" "b"', "is no string in JSON, expected one, or an object; correct the line"),
    ('"a', "is no string in JSON"),
    (r'"\ud800"', "is no string in JSON"),
    ('{"prompt": "a", "prompt": "b"}', "has the key 'prompt' twice"),
    ('{"prompt": "a", "id": NaN}', "has the number NaN"),
    ('{"promt": "a"}', "found neither prompt nor messages, expected one"),
    ('{"prompt": "a", "messages": []}', "found both prompt and messages, expected one"),
    ('{"prompt": "a", "maxtokens": 1}', "found the field 'maxtokens', expected prompt, .*min_p"),
    ('{"prompt": "a", "cache": 1}', "found the field 'cache'"),
    ('{"prompt": "a", "lookup": true}', "found the field 'lookup', expected prompt"),
    ('{"prompt": "a", "prompt_cache": "a"}', "found the field 'prompt_cache', expected prompt"),
    ('{"prompt": 1}', "prompt is 1 of type int, expected a string or a sequence of token ids"),
    ('{"prompt": [1, "a"]}', "prompt has the token id 'a', expected 0 to 299"),
    ('{"prompt": [300]}', "prompt has the token id 300, expected 0 to 299"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "found no chat template"),
    ('{"prompt": "a", "temperature": -1}', "temperature is -1, expected"),
    ('{"prompt": "a", "max_tokens": 0}', "max_tokens is 0, expected an integer from 1"),
    ('{"prompt": "a", "max_seconds": []}', r"max_seconds is \[\], expected a number of seconds"),
    ('{"prompt": "a", "stop": 3}', "stop"),
    ('{"prompt": "a", "logit_bias": {"a": 1}}', "found 'a' in logit_bias, expected token ids"),
    (json.dumps("e t" * 200), "the prompt has .* tokens, expected at most 160"),
    ('{"custom_id": "a"}', "found custom_id, expected the fields of OpenAI's form"),
]
OPENAI = '{"custom_id": "a", "method": "POST", "url": "/v1/%s", "body": %s}'
BAD += [
    (OPENAI % (url, body), message)
    for url, body, message in (
        (
            "embeddings",
            "{}",
            'found the url "/v1/embeddings", expected /v1/chat/completions or',
        ),
        ("completions", "[]", r"found the body \[\], expected an object"),
        ("completions", "{}", "found no prompt in the body"),
        ("completions", '{"prompt": "a", "n": 2}', "found n 2 in the body, expected 1; leave it"),
        ("completions", '{"prompt": "a", "echo": true}', "found echo true in the body"),
        ("completions", '{"prompt": "a", "what": 1}', "found 'what' in the body, expected a field"),
        ("completions", '{"prompt": ["a"]}', "prompt has the token id 'a'"),
        ("chat/completions", '{"messages": [], "tools": [1]}', r"found tools \[1\] in the body"),
        ("chat/completions", '{"messages": [], "logprobs": 1}', "found logprobs 1 in the body"),
        ("chat/completions", '{"messages": [], "top_logprobs": 1}', "top_logprobs without logpro"),
        (
            "chat/completions",
            '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            'found {"type": "image_url"} in a message, expected text',
        ),
    )
]

WITH_FORM = OPENAI % ("completions", '{"prompt": "a", "response_format": %s}')
SCHEMA = '{"type": "json_schema", "json_schema": %s}'
BAD += [
    (WITH_FORM % form, message)
    for form, message in (
        ('"json"', 'found "json" for response_format in the body, expected an object'),
        ("{}", "found no response_format.type in the body, expected text, json_object or"),
        ('{"type": ["text"]}', r'found \["text"\] for response_format.type in the body'),
        ('{"type": "text", "schema": {}}', "found 'schema' in response_format of the body"),
        ('{"type": "json_object"}, "json_schema": {}', "found response_format and json_schema in"),
        ('{"type": "json_schema"}', "found no response_format.json_schema in the body"),
        (SCHEMA % "[]", r"found \[\] for response_format.json_schema in the body, expected an obj"),
        (SCHEMA % '{"schema": {}}', "found no response_format.json_schema.name in the body"),
        (SCHEMA % '{"name": "a"}', "found no response_format.json_schema.schema in the body"),
        (SCHEMA % '{"name": "a", "schema": "{}"}', "json_schema.schema in the body, expected a JS"),
        (SCHEMA % '{"name": "a", "schema": {}, "strict": 1}', "found 1 for .*strict in the body"),
        (SCHEMA % '{"name": "a", "sch": {}}', "found 'sch' in response_format.json_schema of"),
    )
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_line_is_named_before_anything_runs(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, line: str, message: str
) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    path.write_text(f'"the house"\n\n{line}\n')
    ended = run("batch", tiny_folder.path, path, "-o", out, *TOKENS)
    assert_refused(ended, f"a.jsonl, line 3: .*{message}.*, or go on without such lines: --skip-")
    assert not out.exists()
    ended = run("batch", tiny_folder.path, path, "-o", out, *TOKENS, "--skip-bad")
    assert ended.code == 0
    assert counts_in(ended.err) == (2, 1)
    good, bad = answers_in(out)
    assert (good["line"], "error" in good) == (1, False)
    error = bad["error"]["message"] if "custom_id" in bad else bad["error"]
    assert error in run("batch", tiny_folder.path, path, *TOKENS).err
    assert (bad["error"] if "custom_id" in bad else bad)["line"] == 3


def test_a_file_of_bad_lines_gets_an_error_for_each(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('7\n{"prompt": [-1], "id": "x"}\n"')
    ended = run("batch", tiny_folder.path, path, "--skip-bad")
    assert (ended.code, counts_in(ended.err)) == (0, (3, 3))
    found = [json.loads(line) for line in ended.out.splitlines()]
    assert [(answer["line"], answer.get("id")) for answer in found] == [
        (1, None),
        (2, "x"),
        (3, None),
    ]
    assert all("expected" in answer["error"] for answer in found)


def counts_in(told: str) -> tuple[int, int]:
    """Lines and errors of the line that says what it came to."""
    words = told.replace(",", "").split()
    return int(words[2]), int(words[-2])


def test_bytes_that_are_not_utf_8_are_named(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    for data, message in (
        (b'"a"\n{"prompt": "\xff"}\n', r"line 2: the line is not UTF-8 \(byte 12 is 0xff\)"),
        (b'"a"\n"\xff"\n', "line 2: the line .* is no string in JSON"),
        ('"a"\n'.encode("utf-16"), "line 1: the line is not UTF-8 .byte 0 is 0xff"),
    ):
        path.write_bytes(data)
        assert_refused(run("batch", tiny_folder.path, path), message)


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf\n"])
def test_a_file_without_a_prompt_is_refused(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, data: bytes
) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(data)
    assert_refused(run("batch", tiny_folder.path, path, "-o", out), "a.jsonl: found no prompt")
    assert not out.exists()


def test_a_line_that_is_too_long_is_refused_and_the_next_one_found(
    run: Run, tiny_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "LARGEST_LINE", 20)
    path = tmp_path / "a.jsonl"
    path.write_text(f'"{"a" * 40}"\n"{"b" * 18}"\n')
    ended = run("batch", tiny_folder.path, path, *TOKENS)
    assert_refused(ended, "line 1: found more than 20 bytes, expected a shorter line")
    ended = run("batch", tiny_folder.path, path, *TOKENS, "--skip-bad")
    first, second = map(json.loads, ended.out.splitlines())
    assert "error" in first and second["line"] == 2 and second["text"]


@given(data=st.binary(max_size=60))
def test_lines_are_those_between_newlines(data: bytes) -> None:
    found = [(line.number, line.data) for line in JsonLines(io.BytesIO(data), "x")]
    split = [part.strip(b" \t\r\n") for part in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    assert found == [(number, part) for number, part in enumerate(split, 1) if part]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
asked = st.dictionaries(
    st.sampled_from(sorted({*OPTIONS, "prompt", "messages", "id", "custom_id", "url", "body"})),
    values,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(found=asked | values, chat=st.booleans())
def test_whatever_a_line_holds_is_a_request_or_an_error_of_ours(
    tiny_model: pocketlm.Model, found: Any, chat: bool
) -> None:
    line = Line(1, json.dumps(found).encode())
    try:
        Terms({}, chat=chat).asked_by(line).request(tiny_model, {})
    except pocketlm.RequestError as error:
        assert ", expected" in str(error) or "; " in str(error)


def test_a_request_that_fails_while_it_runs_changes_no_other(
    run: Run, tiny_folder: ModelFolder, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    arguments = ("batch", tiny_folder.path, file, *TOKENS, "-o")
    assert run(*arguments, whole).code == 0
    take = Running.take

    def spoilt(self: Running, logits: Any) -> Any:
        bad = list(self.request.prompt_ids) == [5, 6, 7] and self.num_new == 1
        return take(self, logits * np.nan if bad else logits)

    monkeypatch.setattr(Running, "take", spoilt)
    ended = run(*arguments, out)
    assert (ended.code, counts_in(ended.err)) == (1, (6, 1))
    found, expected = out.read_bytes().splitlines(), whole.read_bytes().splitlines()
    assert [a == b for a, b in zip(found, expected, strict=True)] == [True] * 2 + [False] + [
        True
    ] * 3
    failed = json.loads(found[2])
    assert (failed["line"], failed["id"]) == (3, [1, None]) and "logits" in failed["error"]
    out.unlink()
    assert run(*arguments, out, "--skip-bad").code == 0


# --- files ---


def test_the_output_is_not_the_input(run: Run, tiny_folder: ModelFolder, file: Path) -> None:
    link = file.parent / "link"
    link.symlink_to(file)
    for out in (file, link):
        assert_refused(run("batch", tiny_folder.path, file, "-o", out), "found the input, expected")
    assert file.read_text() == text_of(LINES)


def test_places_that_cannot_be_written_are_refused_before_a_model_is_opened(
    run: Run, file: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("", "found 'Is a directory', expected to read or write it"),
        ("nowhere/out", "found 'No such file or directory'"),
        ("fifo", "found no regular file, expected one or none; for stdout write -o -"),
    ):
        ended = run("batch", tmp_path / "no-model", file, "-o", tmp_path / name)
        assert_refused(ended, message)
    assert_refused(run("batch", "no-model", tmp_path / "no-file"), "no-file: found 'No such file")


def test_nothing_is_left_where_no_model_is(run: Run, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run("batch", tmp_path / "no-model", file, "-o", out).code == 2
    assert not out.exists()


def test_two_do_not_write_one_output(
    run: Run, tiny_folder: ModelFolder, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    with open(file, "rb") as source:
        with open_output(out, JsonLines(source, "x"), file):
            ended = run("batch", tiny_folder.path, file, "-o", out)
    assert_refused(ended, "out.jsonl: found another process that writes it, expected none; wait")
    assert run("batch", tiny_folder.path, file, "-o", out, *TOKENS).code == 0


def test_a_full_disk_is_told_and_it_goes_on_from_there(
    run: Run, tiny_folder: ModelFolder, file: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    arguments = ("batch", tiny_folder.path, file, *TOKENS, "--quiet", "-o")
    assert run(*arguments, whole).code == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, before[1]))  # a write of a part, then EFBIG
    try:
        ended = run(*arguments, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_refused(ended, "out.jsonl: cannot be written .*; free some space and run it again", 4)
    assert out.read_bytes() == whole.read_bytes()[:250]
    assert run(*arguments, out).code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_stdin_and_pipes_are_read(
    run: Run, tiny_folder: ModelFolder, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run("batch", tiny_folder.path, file, *TOKENS).out
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(file.read_bytes())))
        assert run("batch", tiny_folder.path, "-", *TOKENS).out == expected
        patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"7")))
        assert_refused(run("batch", tiny_folder.path, "-"), "stdin, line 1: the line holds")
    read, write = os.pipe()
    os.write(write, file.read_bytes())
    os.close(write)
    assert run("batch", tiny_folder.path, f"/dev/fd/{read}", *TOKENS).out == expected
    os.close(read)


def test_quiet_says_nothing_and_a_terminal_is_told_how_far_it_is(
    run: Run, tiny_folder: ModelFolder, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float | None, str]] = []

    @contextmanager
    def bar(start: str) -> Iterator[Any]:
        yield lambda share, text: told.append((share, text))

    monkeypatch.setattr(measuring, "progress_bar", bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    out = tmp_path / "out.jsonl"
    arguments = ("batch", tiny_folder.path, file, *TOKENS, "-o", out)
    assert run(*arguments, "--quiet").err == ""
    assert told == []
    out.write_bytes(b"".join(out.read_bytes().splitlines(True)[:2]))
    assert run(*arguments).err.startswith("pocketlm: answered 4 lines (2 there before), ")
    checks, shares = told[:4], told[4:]
    assert [text for _, text in checks] == [f"checking line {number}" for number in (3, 4, 5, 6)]
    assert [share for share, _ in shares] == [0.25, 0.5, 0.75, 1]
    assert all(re.fullmatch(r"\d of 6 lines, \d+ tokens/s", text) for _, text in shares)


def test_options_out_of_range_are_named(run: Run, tiny_folder: ModelFolder, file: Path) -> None:
    for option, value, message in (
        ("--rows", 0, "'--rows': 0 is not in the range"),
        ("--seed", -1, "--seed is -1, expected"),
        ("--temperature", -1, "^pocketlm: --temperature is -1.0, expected"),
        ("--system", "x", "found --system without --chat"),
    ):
        assert_refused(run("batch", tiny_folder.path, file, option, value), message)


def test_answers_by_other_weights_for_prompts_are_others(prefill_folder: ModelFolder) -> None:
    line = Line(1, b"a")
    first, second, again = (
        Identity(pocketlm.Model(prefill_folder, threads=1, prefill=asked), Terms({})).digest(line)
        for asked in ("none", "int8", "auto")
    )
    assert first != second == again
