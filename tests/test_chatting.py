"""Chatting with a model: ``Model.chat``, ``run --chat`` and ``pocketlm chat``, end to end."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, TURNS
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from model_folders import with_files
from terminals import Keyboard, Terminal

import pocketlm
from pocketlm import cli
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.runtime.chat import TRANSCRIPT_STOPS

HI = [{"role": "user", "content": "Hi"}]
CONTEXT = 256
GREEDY = ["--temperature", "0", "--max-tokens", "12", "--threads", "1"]


def chat_checkpoint(folder: Path, template: str, config: dict[str, Any]) -> Path:
    """A tiny random GPT-2 whose tokenizer has the special tokens of ChatML."""
    sizes = gpt2_config(vocab_size=303, n_positions=CONTEXT, bos_token_id=299, eos_token_id=299)
    tensors = {
        name: values * 5 if values.ndim == 2 else values
        for name, values in gpt2_tensors(sizes, seed=2).items()
    }
    write_checkpoint(folder, gpt2_config(vocab_size=300))  # for its tokenizer
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    (known,) = tokenizer["added_tokens"]
    for index, name in enumerate(("<|im_start|>", "<|im_end|>", "<unused>"), 300):
        tokenizer["added_tokens"].append({**known, "id": index, "content": name})
    text = json.dumps(tokenizer)
    write_checkpoint(folder, sizes, tensors, tokenizer=False)
    file.write_text(text)
    (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A model folder with a chat template."""
    place = tmp_path_factory.mktemp("chat")
    checkpoint = chat_checkpoint(place / "checkpoint", CHATML.source, {"pad_token": "<unused>"})
    return export_model(open_checkpoint(checkpoint), place / "model")


@pytest.fixture(scope="module")
def model(folder: ModelFolder) -> pocketlm.Model:
    return pocketlm.Model(folder, threads=1, prefix_cache_bytes=0)


def text_of(stream: pocketlm.TextStream) -> str:
    return "".join(piece.text for piece in stream)


# Model.chat --------------------------------------------------------------------------------------


def test_chat_continues_the_templates_text(model: pocketlm.Model) -> None:
    text = (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    expected = model.generate(text, temperature=0, max_tokens=12)
    stream = model.chat(HI, temperature=0, max_tokens=12)
    assert text_of(stream) == expected.text
    assert stream.token_ids == expected.token_ids
    assert list(stream.prompt_ids) == model.tokenizer.encode(text)
    assert model.generate(model.chat_prompt(HI), temperature=0, max_tokens=12).text == expected.text


def test_an_answer_ends_with_the_turn(folder: ModelFolder) -> None:
    """generation_config.json names <|endoftext|> alone; the template tells of <|im_end|>."""
    model = pocketlm.Model(folder, threads=1)
    end = model.tokenizer.id_of("<|im_end|>")
    assert model.end_ids == {299} and model.chat_prompt(HI).end_ids - model.end_ids == {end}
    ids = model.chat(HI, temperature=0, max_tokens=12)
    text_of(ids)
    model._answer_end_ids = frozenset({ids.token_ids[5]})
    stream = model.chat(HI, temperature=0, max_tokens=12)
    text_of(stream)
    assert stream.finish_reason == "eos"
    assert stream.token_ids == ids.token_ids[: ids.token_ids.index(ids.token_ids[5]) + 1]
    whole = model.chat(HI, temperature=0, max_tokens=12, ignore_eos=True)
    text_of(whole)
    assert whole.token_ids == ids.token_ids


def test_a_base_model_is_not_chatted_with_unasked(tiny_model: pocketlm.Model) -> None:
    with pytest.raises(
        pocketlm.RequestError, match="found no chat template .*this is a base model"
    ):
        tiny_model.chat(HI)
    prompt = tiny_model.chat_prompt(HI, transcript=True)
    assert tiny_model.tokenizer.decode(prompt.token_ids) == "User: Hi\nAssistant:"
    assert prompt.stop == TRANSCRIPT_STOPS == ("\nUser:", "\nAssistant:")


def test_a_script_ends_with_the_next_speaker(tiny_model: pocketlm.Model) -> None:
    whole = text_of(tiny_model.chat(HI, transcript=True, temperature=0, max_tokens=20))
    stopped = tiny_model.chat(HI, transcript=True, temperature=0, max_tokens=20, stop=whole[5:8])
    assert text_of(stopped) == whole[: whole.index(whole[5:8])]
    prompt = tiny_model.chat_prompt(HI, transcript=True)
    prompt = replace(prompt, stop=(whole[9:12],))
    found = text_of(tiny_model.stream(prompt, temperature=0, max_tokens=20))
    assert found == whole[: whole.index(whole[9:12])]


def test_a_conversation_computes_only_what_is_new(model: pocketlm.Model) -> None:
    cache = model.new_cache()
    messages = list(HI)
    for turn in range(3):
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
        stream = model.chat(messages, cache=cache, **options)
        answer = text_of(stream)
        alone = model.chat(messages, **options)
        assert answer == text_of(alone) and stream.token_ids == alone.token_ids
        timings = stream.timings
        assert (timings.reused_tokens > 30 * turn) == (
            turn > 0
        ) and alone.timings.reused_tokens == 0
        computed = timings.prompt_tokens - timings.reused_tokens
        assert timings.prefill_rate == pytest.approx(computed / timings.prefill_seconds)
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Go on"}]


def test_an_answer_has_its_form_and_ends_the_turn(model: pocketlm.Model) -> None:
    pytest.importorskip("llguidance", reason="the extra 'grammar' is not installed")
    cache, messages = model.new_cache(), list(HI)
    for form in ({"choices": ["yes", "no"]}, {"regex": "[0-9]{3}"}, {"json_schema": {"const": 1}}):
        stream = model.chat(messages, cache=cache, temperature=0, max_tokens=12, **form)
        answer = text_of(stream)
        assert re.fullmatch("yes|no|[0-9]{3}|1", answer) and stream.finish_reason == "eos"
        alone = model.chat(messages, temperature=0, max_tokens=12, **form)
        assert text_of(alone) == answer
        messages += [{"role": "assistant", "content": answer}, *HI]


def test_a_conversation_longer_than_the_context_is_refused(model: pocketlm.Model) -> None:
    long = [{"role": "user", "content": "qz" * CONTEXT}]
    with pytest.raises(
        pocketlm.ContextLengthError, match="the prompt has .* tokens, expected at most"
    ):
        model.chat(long)
    long[0]["content"] *= 9
    with pytest.raises(
        pocketlm.ContextLengthError, match="messages have .* characters, expected at most"
    ):
        model.chat(long)


# run --chat --------------------------------------------------------------------------------------

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls the command line in this process, with text on stdin."""

    def run(*arguments: str | Path, lines: str | io.TextIOBase = "") -> tuple[int, str, str]:
        capsys.readouterr()
        stdin = io.StringIO(lines) if isinstance(lines, str) else lines
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


def test_run_chat_prints_the_answer(call: Call, folder: ModelFolder, model: pocketlm.Model) -> None:
    expected = text_of(model.chat(HI, temperature=0, max_tokens=12))
    assert call("run", folder.path, "Hi", "--chat", *GREEDY) == (0, expected + "\n", "")
    told = [{"role": "system", "content": "Be brief."}, *HI]
    expected = text_of(model.chat(told, temperature=0, max_tokens=12))
    found = call("run", folder.path, "Hi", "--chat", "--system", "Be brief.", *GREEDY, "--json")
    result = json.loads(found[1])
    assert (found[0], result["text"], result["prompt"]) == (0, expected, "Hi")
    assert result["prompt_tokens"] == len(model.chat_prompt(told).token_ids)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["Hi", "--system", "x"], "found --system without --chat, expected both"),
        (["", "--chat"], "found --chat and no prompt, expected"),
        (["--chat"], "found --chat and no prompt, expected"),
        (["qz" * 300, "--chat"], "the prompt has .* tokens, expected at most 256"),
    ],
    ids=str,
)
def test_run_chat_refuses(
    call: Call, folder: ModelFolder, arguments: list[str], message: str
) -> None:
    code, out, err = call("run", folder.path, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(f"^pocketlm: .*{message}", err)


BAD_TEMPLATES = {
    "loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "chat_template.jinja: the chat template took longer than 2 s",
    ),
    "raises": ("{{ raise_exception('bad words') }}", "the chat template says 'bad words'"),
    "is none": ("{% for %}", "the chat template failed"),
    "allocates": (
        "{{ 'x' * 10 ** 9 }}",
        "template needed more than 256 MB" if sys.platform == "linux" else "has more than",
    ),
    "refuses a system": (TURNS.source, "the chat template says 'No system role here'"),
}


@pytest.mark.parametrize("case", BAD_TEMPLATES)
@pytest.mark.parametrize("verb", ["run", "chat"])
def test_a_bad_template_is_one_message(
    call: Call, folder: ModelFolder, tmp_path: Path, case: str, verb: str
) -> None:
    source, message = BAD_TEMPLATES[case]
    copy = with_files(folder, tmp_path / "copy", {"chat_template.jinja": source})
    rest = ["Hi", "--chat"] if verb == "run" else []
    code, out, err = call(verb, copy.path, *rest, "--system", "x", lines="Hi\n")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err and "expected" in err


def test_run_chat_of_a_base_model_says_what_to_do(call: Call, tiny_folder: ModelFolder) -> None:
    code, out, err = call("run", tiny_folder.path, "Hi", "--chat")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "found no chat template" in err and "leave --chat out" in err


# pocketlm chat, its input a pipe -----------------------------------------------------------------


def test_the_conversation_is_remembered(
    call: Call, folder: ModelFolder, model: pocketlm.Model
) -> None:
    code, out, err = call("chat", folder.path, *GREEDY, lines="Hi\n\nGo on\n")
    first = text_of(model.chat(HI, temperature=0, max_tokens=12))
    messages = [*HI, {"role": "assistant", "content": first}, {"role": "user", "content": "Go on"}]
    second = text_of(model.chat(messages, temperature=0, max_tokens=12))
    assert (code, out) == (0, f"{first}\n{second}\n")
    assert err == 2 * "stopped after 12 tokens, see --max-tokens\n"


def test_reset_forgets_but_not_the_system_message(
    call: Call, folder: ModelFolder, tmp_path: Path
) -> None:
    lines = f"Hi\n/reset\nHi\n/save {tmp_path / 'a.json'}\n"
    code, out, err = call("chat", folder.path, "--system", "Be é.", *GREEDY, lines=lines)
    first, second = out[: len(out) // 2], out[len(out) // 2 :]
    assert code == 0 and first == second
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [
        {"role": "system", "content": "Be é."},
        *HI,
        {"role": "assistant", "content": first.removesuffix("\n")},
    ]
    assert f"wrote 3 messages to {tmp_path / 'a.json'}\n" in err


def test_system_is_replaced_and_taken_away(call: Call, folder: ModelFolder, tmp_path: Path) -> None:
    names = [tmp_path / name for name in "abc"]
    lines = (
        f"/system one\nHi\n/save {names[0]}\n/system two\n/save {names[1]}\n"
        f"/system\n/save {names[2]}\n"
    )
    assert call("chat", folder.path, *GREEDY, lines=lines)[0] == 0
    one, two, none = (json.loads(name.read_text(encoding="utf-8")) for name in names)
    assert one[0] == {"role": "system", "content": "one"}
    assert two[0] == {"role": "system", "content": "two"}
    assert one[1:] == two[1:] == none and len(none) == 2


@pytest.mark.parametrize(
    "line, message",
    [
        ("/save", "found no name, expected /save FILE"),
        ("/save {file}", "kept: found a file, expected a new name; choose another"),
        ("/save {file}/x", "kept, expected a folder; make it first"),
        ("/save a\0b", "cannot be written (embedded null byte), expected a place"),
    ],
)
def test_a_command_that_cannot_be_says_so_and_ends_nothing(
    call: Call, folder: ModelFolder, tmp_path: Path, line: str, message: str
) -> None:
    file = tmp_path / "kept"
    file.write_text("years of work")
    code, out, err = call("chat", folder.path, lines=f"{line.format(file=file)}\n/help\n")
    assert (code, out, file.read_text()) == (0, "", "years of work")
    assert message in err.splitlines()[0]
    for name in ("/reset", "/save", "/system", "/help", "/exit"):
        assert f"\n{name} " in err


@pytest.mark.parametrize("line", ["/nope x", "/"])
def test_an_unknown_command_is_told_where_it_is_typed(
    line: str, call: Call, folder: ModelFolder
) -> None:
    code, out, err = call("chat", folder.path, lines=Keyboard(f"{line}\n/exit\n"))
    assert (code, out) == (0, "")
    expected = f"found {line.split()[0]}, expected one of /reset, /save, /system, /help, /exit; for"
    assert expected in err


@pytest.mark.parametrize(
    "lines, messages",
    [
        ("one \\\ntwo\\\n\nthree\n", ["one \ntwo\n", "three"]),
        ("//etc is a folder\n", ["/etc is a folder"]),
        ("/etc is a folder\n/\n", ["/etc is a folder", "/"]),
        ("\ufeffone\n\ufefftwo\n", ["one", "\ufefftwo"]),
        ("  \n\\\n\n", []),
    ],
)
def test_lines_become_messages(
    lines: str, messages: list[str], call: Call, folder: ModelFolder, tmp_path: Path
) -> None:
    file = tmp_path / "saved.json"
    lines = lines if lines.endswith("\n") else lines + "\n"
    options = [*GREEDY[:2], "--max-tokens", "1", "--threads", "1"]
    assert call("chat", folder.path, *options, lines=f"{lines}/save {file}\n")[0] == 0
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [m["content"] for m in saved if m["role"] == "user"] == messages


def test_what_windows_adds_to_a_pipe_is_left_out(
    call: Call, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = call("run", folder.path, "one\ntwo", "--json", *GREEDY)[1]
    for data in (b"\xef\xbb\xbfone\r\ntwo\r\n", "one\r\ntwo\r\n".encode("utf-16")):
        stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
        found = call("run", folder.path, "-", "--json", *GREEDY, lines=stdin)
        assert json.loads(found[1])["prompt"] == "one\ntwo"
        assert json.loads(found[1])["text"] == json.loads(plain)["text"]


def test_a_template_gets_the_arguments_of_the_command_line(
    call: Call, folder: ModelFolder, tmp_path: Path
) -> None:
    source = CHATML.source + "{{ '<think>' if enable_thinking else '' }}{{ year }}"
    other = with_files(folder, tmp_path / "copy", {"chat_template.jinja": source})
    model = pocketlm.Model(other, threads=1)
    args = {"enable_thinking": True, "year": "1999"}
    expected = text_of(model.chat(HI, template_args=args, temperature=0, max_tokens=12))
    plain = text_of(model.chat(HI, temperature=0, max_tokens=12))
    given = ["--template-arg", "enable_thinking=true", "--template-arg", 'year="1999"']
    found = call("run", other.path, "Hi", "--chat", *given, *GREEDY)
    assert found == (0, expected + "\n", "") and expected != plain
    assert call("chat", other.path, *given, *GREEDY, lines="Hi\n")[1].startswith(expected)
    for wrong in ("x", "enable_thinking=yes", "=1", "a b=1", "year=NaN", "year=", "year={'a':1}"):
        code, out, err = call("run", other.path, "Hi", "--chat", "--template-arg", wrong)
        assert (code, out) == (2, "") and f"found --template-arg {wrong}, expected" in err
    code, _, err = call("run", other.path, "Hi", "--chat", "--template-arg", "enable_thinkng=true")
    assert code == 2 and "has 'enable_thinkng', expected the name of a variable" in err
    assert call("run", other.path, "Hi", "--template-arg", "year=1")[0] == 2
    code, out, err = call("chat", "demo", "--template-arg", "year=1", lines="Hi\n")
    assert (code, out) == (2, "")
    assert "found --template-arg, expected a model with a chat template" in err


def test_save_finds_the_home_folder(
    call: Call, folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert call("chat", folder.path, lines="/save ~/x.json\n")[0] == 0
    assert (tmp_path / "x.json").read_text() == "[]\n"


def test_options_are_checked_before_a_line_is_read(call: Call, folder: ModelFolder) -> None:
    code, out, err = call("chat", folder.path, "--temperature", "-1")
    assert (code, out) == (2, "") and "temperature is -1.0, expected" in err


def test_every_answer_has_the_form_that_was_asked_for(
    call: Call, folder: ModelFolder, tmp_path: Path
) -> None:
    pytest.importorskip("llguidance", reason="the extra 'grammar' is not installed")
    schema, grammar = tmp_path / "schema.json", tmp_path / "sum.lark"
    schema.write_text('{"enum": ["yes", 7]}')
    grammar.write_text('start: "1" " + 1"?')
    forms = {
        "--json-schema": (str(schema), '"yes"|7'),
        "--regex": ("[0-9]{2}x", "[0-9]{2}x"),
        "--choice": ("yes,no", "yes|no"),
        "--grammar": (str(grammar), r"1( \+ 1)?"),
    }
    for option, (form, pattern) in forms.items():
        code, out, err = call("chat", folder.path, *GREEDY, option, form, lines="Hi\nGo on\n")
        assert (code, err) == (0, "")
        answers = out.splitlines()
        assert len(answers) == 2 and all(re.fullmatch(pattern, answer) for answer in answers)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--regex", "("], "--regex was refused"),
        (["--regex", "a", "--choice", "b"], "found --regex and --choice, expected one of"),
        (["--json-schema", "nowhere.json"], "nowhere.json"),
    ],
    ids=str,
)
def test_a_form_that_cannot_be_is_refused_before_a_line_is_read(
    call: Call, folder: ModelFolder, options: list[str], message: str
) -> None:
    pytest.importorskip("llguidance", reason="the extra 'grammar' is not installed")
    code, out, err = call("chat", folder.path, *options)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err


def test_exit_ends_before_the_input_does(call: Call, folder: ModelFolder) -> None:
    assert call("chat", folder.path, lines="/exit\nHi\n") == (0, "", "")


def test_a_message_in_a_pipe_that_cannot_be_answered_ends_it(
    call: Call, folder: ModelFolder
) -> None:
    code, out, err = call("chat", folder.path, lines=f"{'qz' * 300}\nHi\n")
    assert (code, out) == (2, "") and "tokens, expected at most 256" in err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # this of the locale C
def test_input_that_is_not_text_is_refused(
    folder: ModelFolder,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
    errors: str,
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"sea \xff\n"), encoding, errors)
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(SystemExit) as ended:
        cli.main(["chat", str(folder.path)])
    assert ended.value.code == 2
    assert "stdin: found the byte 0xff, expected UTF-8 text" in capsys.readouterr().err


def test_the_locale_c_reads_accents_in_a_line(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"é\n/save {tmp_path / 'a.json'}\n".encode()
    stdin = io.TextIOWrapper(io.BytesIO(lines), "ascii", errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(SystemExit) as ended:
        cli.main(["chat", str(folder.path), *GREEDY])
    assert ended.value.code == 0
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))[0]["content"] == "é"


def test_a_full_context_forgets_the_oldest_turns(
    call: Call, folder: ModelFolder, tmp_path: Path
) -> None:
    file = tmp_path / "a.json"
    lines = "".join(f"message {n}\n" for n in range(9)) + f"/save {file}\n"
    code, _, err = call("chat", folder.path, "--system", "S", *GREEDY, lines=lines)
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert code == 0
    assert "the context is full: forgot the oldest " in err
    assert saved[0] == {"role": "system", "content": "S"}
    assert saved[1]["role"] == "user" and saved[1]["content"] != "message 0"
    assert saved[-2] == {"role": "user", "content": "message 8"}
    # Half of the context is freed at once, so that most turns find their beginning in the cache.
    assert err.count("forgot") < 4


def test_a_base_model_is_given_a_script_and_it_is_said(
    call: Call, tiny_folder: ModelFolder, tiny_model: pocketlm.Model
) -> None:
    code, out, err = call("chat", tiny_folder.path, *GREEDY, lines="Hi\n")
    expected = text_of(tiny_model.chat(HI, transcript=True, temperature=0, max_tokens=12))
    assert (code, out) == (0, expected + "\n")
    assert err.startswith("this is a base model, without a chat template: it continues a script")


# pocketlm chat at a terminal ---------------------------------------------------------------------


@pytest.fixture
def terminal(folder: ModelFolder) -> Iterator[Terminal]:
    pytest.importorskip("termios", reason="needs a pseudo-terminal")
    options = ["--ignore-eos", "--seed", "1", "--threads", "1"]
    opened = Terminal("chat", folder.path, *options)
    try:
        opened.wait_for("> ")
        yield opened
    finally:
        opened.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal, tmp_path: Path) -> None:
    terminal.ask("Hi")
    terminal.type("\x03")
    terminal.wait_for("> ")
    terminal.type(f"/save {tmp_path / 'a.json'}\n")
    terminal.wait_for("wrote 2 messages")
    user, assistant = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert user == HI[0]
    assert assistant["role"] == "assistant"
    assert 0 < len(assistant["content"]) < 200
    terminal.wait_for("> ")
    terminal.ask("Go on")
    terminal.type("\x03")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_lines_that_are_pasted_together_are_one_message(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("one\ntwo\n")
    terminal.wait_for("two\r\n")
    while len(terminal.seen) < 20:
        terminal.seen += os.read(terminal.master, 100).decode("utf-8", "replace")
    terminal.type("\x03")
    terminal.wait_for("> ")
    terminal.type(f"/save {tmp_path / 'a.json'}\n")
    terminal.wait_for("wrote 2 messages")
    user, _ = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert user["content"] == "one\ntwo"
    terminal.type("/exit\n")
    assert terminal.end() == 0


def test_ctrl_c_at_the_prompt_clears_the_line_and_twice_ends(terminal: Terminal) -> None:
    terminal.type("not sent")
    terminal.wait_for("not sent")
    terminal.interrupt()
    terminal.wait_for("> ")
    terminal.type("/help\n")
    terminal.wait_for("/exit")
    terminal.wait_for("> ")
    terminal.interrupt()
    terminal.wait_for("> ")
    terminal.interrupt()
    assert terminal.end() == 0


def test_a_refused_message_at_a_terminal_ends_nothing(terminal: Terminal) -> None:
    terminal.type("qz" * 300 + "\n")
    terminal.wait_for("expected at most 256")
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.end() == 0
