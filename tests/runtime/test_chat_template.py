"""Chat templates: the texts they make, where they are found, and what a hostile one cannot do."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from chat_templates import QUESTION, STYLES, TALK, Messages, Style
from model_folders import with_files

from pocketlm.export.errors import MissingExtraError, ModelFolderError, RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.pyinstaller import rthooks
from pocketlm.runtime import chat_template
from pocketlm.runtime.chat_template import ChatTemplate, TemplateProcess, special_tokens

PATIENT = 30.0  # seconds: nothing that should end is stopped on a busy machine
MB = 10**6


@pytest.fixture(scope="module")
def process() -> TemplateProcess:
    return TemplateProcess(PATIENT, 256 * MB)


def render(
    source: str,
    process: TemplateProcess,
    messages: Messages = QUESTION,
    tokens: dict[str, str] | None = None,
    max_characters: int = 10_000,
    **options: Any,
) -> str:
    template = ChatTemplate(source, "chat_template.jinja", tokens, process)
    return template.render(messages, max_characters=max_characters, **options)


# What a template makes of messages ---------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_texts_are_those_the_models_were_trained_on(style: Style, process: TemplateProcess) -> None:
    assert render(style.source, process, QUESTION, style.tokens) == style.question
    if style.talk is not None:
        assert render(style.source, process, TALK, style.tokens) == style.talk


def test_the_answer_is_begun_only_if_wanted(process: TemplateProcess) -> None:
    style = STYLES["llama 3"]
    found = render(style.source, process, QUESTION, style.tokens, add_generation_prompt=False)
    assert found == style.question.removesuffix("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_a_template_may_ask_for_the_date(process: TemplateProcess) -> None:
    before = datetime.now()
    found = render("{{ strftime_now('%d %b %Y') }}", process)
    assert found in {f"{day:%d %b %Y}" for day in (before, datetime.now())}


def test_a_refusal_is_the_templates_own_words(process: TemplateProcess) -> None:
    style = STYLES["turns"]
    message = r"chat_template\.jinja: the chat template says 'No system role here', expected"
    with pytest.raises(RequestError, match=message):
        render(style.source, process, TALK, style.tokens)
    wrong_order = [*QUESTION, *QUESTION]
    with pytest.raises(RequestError, match="After user comes assistant"):
        render(STYLES["inst"].source, process, wrong_order, STYLES["inst"].tokens)


@pytest.mark.parametrize(
    "source, message",
    [
        ("{% if %}", "TemplateSyntaxError in line 1: Expected an expression"),
        ("\n\n{% nope %}", "TemplateSyntaxError in line 3: Encountered unknown tag 'nope'"),
        ("{{ messages.x.y }}", "UndefinedError: .* has no attribute 'x'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include 'x' %}", "no loader"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ nope() }}", "UndefinedError: 'nope' is undefined"),
    ],
)
def test_a_template_that_fails_is_named(
    source: str, message: str, process: TemplateProcess
) -> None:
    with pytest.raises(ModelFolderError, match=message) as caught:
        render(source, process)
    assert re.search(
        r"^chat_template\.jinja: the chat template failed .*, expected", str(caught.value)
    )
    assert render("fine", process) == "fine"


def test_a_text_longer_than_the_context_is_refused(process: TemplateProcess) -> None:
    with pytest.raises(RequestError, match="more than 1,000 characters, expected"):
        render("{{ 'x' * 1001 }}", process, max_characters=1000)
    assert len(render("{{ 'é\U0001f600' * 500 }}", process, max_characters=1000)) == 1000


# Where a template is found -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, None),
        ({"tokenizer_config.json": "{}"}, None),
        ({"tokenizer_config.json": '{"chat_template": null}'}, None),
        ({"tokenizer_config.json": '{"chat_template": "a"}'}, "a"),
        ({"chat_template.jinja": "b"}, "b"),
        ({"chat_template.jinja": "b", "tokenizer_config.json": '{"chat_template": "a"}'}, "b"),
        (
            {
                "tokenizer_config.json": json.dumps(
                    {
                        "chat_template": [
                            {"name": "tool_use", "template": "t"},
                            {"name": "default", "template": "d"},
                        ]
                    }
                )
            },
            "d",
        ),
    ],
    ids=str,
)
def test_places(
    files: dict[str, str], expected: str | None, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    found = ChatTemplate.open(with_files(tiny_folder, tmp_path / "copy", files))
    assert (None if found is None else found.source) == expected


def test_tools_have_a_template_of_their_own(
    tiny_folder: ModelFolder, tmp_path: Path, process: TemplateProcess
) -> None:
    sources = {"tool_use": "tools: {{ tools | length }} {{ mood }}", "default": "none"}
    listed = [{"name": name, "template": source} for name, source in sources.items()]
    files = {"tokenizer_config.json": json.dumps({"chat_template": listed})}
    found = ChatTemplate.open(with_files(tiny_folder, tmp_path / "copy", files))
    assert found is not None
    found._process = process
    args = found.check_args({"mood": "calm"})
    for tools, text in ((None, "none"), ([], "none"), ([{"name": "now"}], "tools: 1 calm")):
        assert found.render(QUESTION, max_characters=99, tools=tools, args=args) == text


def test_a_file_the_manifest_does_not_list_is_not_read(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = with_files(tiny_folder, tmp_path / "copy", {})
    (folder.path / "chat_template.jinja").write_text("unverified")
    assert ChatTemplate.open(folder) is None


@pytest.mark.parametrize(
    "value",
    [5, [], {}, [{"name": "x", "template": "t"}], [{"name": "default"}], ["default"]],
    ids=str,
)
def test_a_template_of_another_kind_is_refused(
    value: Any, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    text = json.dumps({"chat_template": value})
    folder = with_files(tiny_folder, tmp_path / "copy", {"tokenizer_config.json": text})
    if value == [{"name": "default"}]:  # as null: no template
        assert ChatTemplate.open(folder) is None
        return
    with pytest.raises(ModelFolderError, match=r"chat_template is .*, expected a text, or a list"):
        ChatTemplate.open(folder)


def test_special_tokens_are_texts_or_objects() -> None:
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "pad_token": None,
        "unk_token": 5,
        "chat_template": "x",
    }
    assert special_tokens(config) == {"bos_token": "<s>", "eos_token": "</s>"}


# Hostile templates -------------------------------------------------------------------------------

# Each would print the content of the file SECRET, or make the file CANARY, if it could.
READ = "open('SECRET').read()"
RUN = "popen('touch CANARY').read()"
ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('__cla' ~ 'ss__')|attr('__mro__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__globals__.__builtins__." + READ + " }}",
    "{{ strftime_now.__globals__['sys'].modules['os']." + RUN + " }}",
    "{{ strftime_now.__code__ }}",
    "{{ cycler.__init__.__globals__.os." + RUN + " }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__.__builtins__." + READ + " }}",
    "{{ lipsum.__globals__['os']." + RUN + " }}",
    "{{ lipsum|attr('__globals__') }}",
    "{{ lipsum['__glob' + 'als__'].os." + RUN + " }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ self._TemplateReference__context.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{{ '{0.__class__.__init__.__globals__}'.format(lipsum) }}",
    "{{ ('{0.__glo' ~ 'bals__[os]}').format(lipsum) }}",
    "{% set f = '{0.__globals__}'.format %}{{ f(lipsum) }}",
    "{{ ['{0.__globals__}']|map('format', lipsum)|list }}",
    "{{ '{x.__globals__}'.format_map({'x': lipsum}) }}",
    "{{ '%(x)s'|format(x=lipsum.__globals__) }}",
    "{% set x = ''|attr %}{{ x('__class__') }}",
    "{{ messages|groupby('__class__')|list }}",
    "{{ messages|sort(attribute='__class__.__init__.__globals__')|list }}",
    "{{ messages|sum(attribute='__class__.__name__', start='') }}",
    "{% include 'SECRET' %}",
    "{% import 'os' as os %}{{ os." + RUN + " }}",
    "{% from 'SECRET' import x %}",
    "{% extends 'SECRET' %}",
    "{{ __import__('os')." + RUN + " }}",
    "{{ " + READ + " }}",
    "{% do messages.append(1) %}",
    "{{ (messages|list).__reduce_ex__(2) }}",
    "{{ dict(a=1).items.__self__.__class__ }}",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_sandbox_holds(attack: str, process: TemplateProcess, tmp_path: Path) -> None:
    secret, canary = tmp_path / "secret", tmp_path / "canary"
    secret.write_text("the secret")
    source = attack.replace("SECRET", str(secret)).replace("CANARY", str(canary))
    try:
        text = render(source, process)
    except ModelFolderError as error:
        text = str(error)
    assert not canary.exists()
    for inside in ("the secret", "<class ", "<module ", "__builtins__", "<built-in", "<function"):
        assert inside not in text
    assert render("fine", process) == "fine"


@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_without_a_sandbox_the_attacks_succeed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the secret")
    environment = jinja2.Environment()
    environment.globals["raise_exception"] = render
    attacks = [attack for attack in ATTACKS if attack.endswith("__builtins__." + READ + " }}")]
    assert len(attacks) == 2
    for attack in attacks:
        source = attack.replace("SECRET", str(tmp_path / "secret"))
        assert environment.from_string(source).render() == "the secret"
    gc.collect()  # the file that the attack left open


# Where memory is not limited, the length of the text is.
NO_MEMORY = "needed more than 256 MB" if sys.platform == "linux" else "more than|took longer"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"
BOMBS = {
    "loops for ever": (LOOP.replace("BODY", ""), "took longer than"),
    "counts for ever": ("{{ 3 ** (3 ** 20) }}", "took longer than"),
    "counts while compiled": ("{% if 7 ** (7 ** 9) > 1 %}{% endif %}", "took longer than"),
    "writes without end": (LOOP.replace("BODY", "xxxxxxxx"), "more than 10,000 characters"),
    "writes one long text": ("{{ 'x' * 10 ** 9 }}", NO_MEMORY),
    "pads one long text": ("{{ 'x'|center(10 ** 9) }}", NO_MEMORY),
    "formats one long text": ("{{ '%1000000000d' % 1 }}", NO_MEMORY),
    "keeps all it makes": (
        "{% set n = namespace(x='x' * 1000) %}"
        "{% for i in range(99999) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        NO_MEMORY,
    ),
    "calls itself": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    "is deeply nested": ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "RecursionError|Memory"),
}


@pytest.fixture(scope="module")
def impatient() -> TemplateProcess:
    return TemplateProcess(0.5, 256 * MB)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_stopped_and_the_next_request_works(
    bomb: str, impatient: TemplateProcess, process: TemplateProcess
) -> None:
    source, message = BOMBS[bomb]
    stopped = impatient if message.startswith("took") else process
    with pytest.raises((ModelFolderError, RequestError), match=message):
        render(source, stopped)
    assert render("fine", process) == "fine"


# The process -------------------------------------------------------------------------------------


def test_one_process_serves_many_requests() -> None:
    process = TemplateProcess(PATIENT)
    assert render("a", process) == "a"
    first = process._child
    assert render("b", process) == "b"
    assert process._child is first


def test_a_process_that_died_is_replaced() -> None:
    process = TemplateProcess(PATIENT)
    assert render("a", process) == "a"
    assert process._child is not None
    process._child.kill()
    process._child.wait()
    assert render("b", process) == "b"


def test_a_process_that_dies_at_work_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    boot = "import sys; print('{}', flush=True); sys.stdin.readline()"
    monkeypatch.setattr(chat_template, "BOOT", boot)
    with pytest.raises(ModelFolderError, match="the chat template ended its process, expected"):
        render("a", TemplateProcess(PATIENT))


def test_a_python_without_jinja2_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    boot = "import sys; sys.modules['jinja2'] = None; " + chat_template.BOOT
    monkeypatch.setattr(chat_template, "BOOT", boot)
    with pytest.raises(ModelFolderError, match="found no Python that imports jinja2.*expected"):
        render("a", TemplateProcess(PATIENT))


def test_the_process_ends_with_its_owner() -> None:
    process = TemplateProcess(PATIENT)
    render("a", process)
    child = process._child
    assert child is not None and child.poll() is None
    del process
    gc.collect()
    assert child.poll() is not None


def test_the_process_ends_with_the_program(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pocketlm.runtime.chat_template import ChatTemplate\n"
        "template = ChatTemplate('a', 'x')\n"
        "template.render([], max_characters=9)\n"
        "print(template._process._child.pid, flush=True)\n"
        "os._exit(0) if sys.argv[1:] else None\n"
    )
    for arguments in ([], ["abruptly"]):
        command = [sys.executable, "-W", "error", "-c", code, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")
        wait_for_the_end_of(int(ended.stdout))


def wait_for_the_end_of(pid: int) -> None:
    """Returns when the process is gone, or waits for ever for the test's time limit."""
    ended = threading.Event()
    while not ended.wait(0.01):
        try:
            os.kill(pid, 0)
            stat = Path(f"/proc/{pid}/stat")
            if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return  # nobody's child any more, and nobody has asked how it ended
        except (ProcessLookupError, FileNotFoundError):
            return


def test_an_interrupt_while_it_works_leaves_no_old_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    process = TemplateProcess(PATIENT)
    render("a", process)
    stopped = process._child
    assert stopped is not None and stopped.stdout is not None

    def interrupted(_: int) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(stopped, "stdout", Reading(interrupted, stopped.stdout.close))
    with pytest.raises(KeyboardInterrupt):
        render("the old one", process)
    assert render("the new one", process) == "the new one"
    assert stopped.poll() is not None


class Reading:
    """Stands where a pipe is read."""

    def __init__(self, readline: Any, close: Any) -> None:
        self.readline = readline
        self.close = close


def test_threads_take_turns(process: TemplateProcess) -> None:
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = render("{{ messages[0].content }}", process, message(number))

    def message(number: int) -> Messages:
        return [{"role": "user", "content": str(number)}]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: str(number) for number in range(8)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_starts_its_own(process: TemplateProcess) -> None:
    assert render("a", process) == "a"
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, render("from the fork", process).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader) as pipe:
        assert pipe.read() == "from the fork"
    assert render("b", process) == "b"


# What it needs -----------------------------------------------------------------------------------


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Versions of packages, as they are to be found."""
    found: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    yield found


@pytest.mark.parametrize("old", ["2.11.3", "3.1.5", "3.0", "3.1"])
def test_an_old_jinja2_is_refused(old: str, versions: dict[str, str]) -> None:
    versions["jinja2"] = old
    message = rf'jinja2 3\.1\.6 or newer, found {old}, .*pip install "pocketlm\[chat\]"'
    with pytest.raises(MissingExtraError, match=message):
        render("a", TemplateProcess(PATIENT))


@pytest.mark.parametrize("new", ["3.1.6", "3.2", "4.0.0rc1"])
def test_a_newer_jinja2_is_taken(new: str, versions: dict[str, str]) -> None:
    versions["jinja2"] = new
    assert render("a", TemplateProcess(PATIENT)) == "a"


def test_a_missing_jinja2_names_its_extra(versions: dict[str, str]) -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "pocketlm\[chat\]"'):
        render("a", TemplateProcess(PATIENT))


@pytest.mark.parametrize("name, value", [("frozen", True), ("executable", "")])
def test_an_application_without_an_interpreter_is_told(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, name, value, raising=False)
    message = "found no Python interpreter beside this application.*freeze it with PyInstaller"
    with pytest.raises(RequestError, match=message):
        render("a", TemplateProcess(PATIENT))


@pytest.fixture
def frozen_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As PyInstaller freezes: what its hook for pocketlm runs first, then a program."""
    if sys.platform == "win32":
        pytest.skip("starts a shell's script")
    first = Path(rthooks.__file__).with_name("pyi_rth_pocketlm.py")
    code = "import runpy, sys; sys.path[:] = {}; runpy.run_path({!r}); print('a window')"
    program = tmp_path / "application"
    command = shlex.join([sys.executable, "-c", code.format(sys.path, str(first))])
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n', "utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)
    monkeypatch.setattr(sys, "executable", str(program))
    return program


def test_an_application_renders_in_its_own_executable(frozen_program: Path) -> None:
    process = TemplateProcess(PATIENT)
    assert render("{{ messages[0].content }}", process) == QUESTION[0]["content"]
    assert render("fine", process) == "fine"


def test_an_application_that_is_started_as_such_comes_to_its_program(frozen_program: Path) -> None:
    done = subprocess.run([frozen_program, "--help"], capture_output=True, text=True)
    assert done.stdout == "a window\n"
