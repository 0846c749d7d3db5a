"""The chat template of a model folder: messages go in, the text a model was trained to read out.

A template is found in ``chat_template.jinja``, else in ``tokenizer_config.json`` ("chat_template":
a text, or a list of {"name", "template"} of which "default" counts, and "tool_use" where tools are
given). It is rendered by jinja2 in
a process of its own, with limits of time, memory and length: see ``template_worker``. That process
is started by the first rendering, waits for the next one, and ends with the object or with us. It
runs in this Python interpreter, or in the executable that PyInstaller made of an application.

Sources: ``apply_chat_template`` of transformers, for the variables a template may expect.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..export.errors import (
    ContextLengthError,
    MissingExtraError,
    ModelFolderError,
    RequestError,
    missing_extra,
)
from ..export.folder import ModelFolder
from ..export.frozen import is_frozen, to_install
from ..export.quantities import size_text
from ..export.strict_json import load_json_object, quoted, shown
from ..export.tokenizers import TEMPLATE_FILE, read_template
from ..export.tokenizers.beside import CONFIG_FILE, LARGEST_FILE, NAMES
from . import template_worker as worker
from .worker_process import DIED, TIME, WorkerProcess, interpreter

RENDER_SECONDS = 2.0
RENDER_BYTES = 256_000_000
OURS = ("messages", "tools", "add_generation_prompt")  # variables that are given otherwise
MINIMUM_JINJA2 = (3, 1, 6)  # earlier sandboxes have known ways out
# Finds this package wherever it was found here; and imports no script, which may lack a guard.
BOOT = (
    "import json, sys; path, limits = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from pocketlm.runtime.template_worker import serve; serve(*limits)"
)


class ChatTemplate:
    """A template, the special tokens it may name, and the process that renders it."""

    def __init__(
        self,
        source: str,
        where: str | Path,
        tokens: Mapping[str, str] | None = None,
        process: TemplateProcess | None = None,
        for_tools: str | None = None,
    ) -> None:
        """``where`` is named in messages; ``tokens`` are variables such as ``bos_token``.

        ``for_tools``: what is rendered instead where tools are given.
        """
        self.source = source
        self.for_tools = for_tools or source
        self.where = where
        self.tokens = dict(tokens or {})
        self._process = process or TemplateProcess()

    @staticmethod
    def open(folder: ModelFolder) -> ChatTemplate | None:
        """The template of ``folder``, not yet run; None without one.

        Raises ModelFolderError for files that cannot be read or hold something else.
        """
        file = folder.path / CONFIG_FILE
        config = {}
        if CONFIG_FILE in folder.files:  # what the manifest does not list was not verified
            config = load_json_object(file, LARGEST_FILE, ModelFolderError)
        source = _template(config.get("chat_template"), "default", file)
        for_tools = None
        if isinstance(config.get("chat_template"), list):
            for_tools = _template(config["chat_template"], "tool_use", file)
        if TEMPLATE_FILE in folder.files:
            file = folder.path / TEMPLATE_FILE
            source, for_tools = read_template(file, ModelFolderError), None
        if source is None:
            return None
        return ChatTemplate(source, file, special_tokens(config), for_tools=for_tools)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_characters: int,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        args: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of ``messages``, with the beginning of the answer unless told otherwise.

        ``args`` are further variables, see ``check_args``.

        Raises RequestError when the template refuses the messages or the text is longer than
        ``max_characters``; ModelFolderError when it fails or exceeds its time or memory;
        MissingExtraError without jinja2 or an interpreter to run it.
        """
        variables = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": tools,
            "documents": None,
            **self.tokens,
            **(args or {}),
        }
        source = self.for_tools if tools else self.source
        reply = self._process.ask(source, variables, max_characters)
        if "text" in reply:
            return str(reply["text"])
        self._fail(str(reply["failed"]), str(reply["detail"]), max_characters)

    def check_args(self, args: Any) -> dict[str, Any]:
        """``args`` as further variables; RequestError for what the template does not ask for."""
        if args is None:
            return {}
        if not isinstance(args, Mapping) or not all(isinstance(name, str) for name in args):
            raise RequestError(
                f"template_args is {shown(args)} of type {type(args).__name__}, expected a mapping "
                "of names to values"
            )
        for name, value in args.items():
            asked = re.search(rf"\b{re.escape(name)}\b", f"{self.source} {self.for_tools}")
            if name in OURS or not asked:
                raise RequestError(
                    f"template_args has {quoted(name, 60)}, expected the name of a variable that "
                    f"the chat template of {self.where} asks for; leave it out"
                )
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise RequestError(
                    f"template_args: {name} is no JSON ({error}), expected a plain value"
                ) from error
        return dict(args)

    def _fail(self, kind: str, detail: str, max_characters: int) -> NoReturn:
        if kind == worker.REFUSED:
            raise RequestError(
                f"{self.where}: the chat template says {quoted(detail, 300)}, expected messages it "
                "takes; change the messages"
            )
        if kind == worker.TOO_LONG:
            raise ContextLengthError(
                f"{self.where}: the text of the messages has more than {max_characters:,} "
                "characters, expected what fits the context; shorten the messages"
            )
        seconds, memory = f"{self._process.seconds:g} s", size_text(self._process.num_bytes)
        found = {
            TIME: f"took longer than {seconds}",
            DIED: "ended its process",
            worker.MEMORY: f"needed more than {memory}",
            worker.BROKEN: f"failed ({quoted(detail, 300)})",
        }
        raise ModelFolderError(
            f"{self.where}: the chat template {found[kind]}, expected a text within {seconds} and "
            f"{memory}; export the model again with a template that works"
        )


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that tokenizer_config.json names: text, or an object with its content."""
    found = {}
    for name in NAMES:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found


def _template(value: Any, name: str, file: Path) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict) and entry.get("name") == name:
                return _template(entry.get("template"), name, file)
        if name != "default":
            return None
    raise ModelFolderError(
        f"{file}: chat_template is {shown(value)}, expected a text, or a list with a template "
        "named 'default'; export the model again"
    )


# The process -------------------------------------------------------------------------------------


class TemplateProcess(WorkerProcess):
    """The process in which ``template_worker`` renders; may be shared between threads."""

    def __init__(self, seconds: float = RENDER_SECONDS, num_bytes: int = RENDER_BYTES) -> None:
        super().__init__(seconds, num_bytes)

    def ask(self, template: str, variables: dict[str, Any], max_characters: int) -> dict[str, Any]:
        """The worker's reply; {"failed": TIME or DIED, "detail": ""} if it gave none."""
        request = {"template": template, "variables": variables, "max_characters": max_characters}
        # A character takes at most twelve bytes in a reply: two escapes of six.
        return self.request(request, 12 * max_characters + 10_000)

    def command(self, limits: list[float]) -> list[str]:
        """As ``WorkerProcess``."""
        if hasattr(sys, "_MEIPASS"):  # by PyInstaller, whose hook for pocketlm looks for the flag
            return [sys.executable, worker.FLAG, json.dumps(limits)]
        if not sys.executable or is_frozen():
            raise RequestError(
                "found no Python interpreter beside this application "
                f"({quoted(sys.executable)}), expected one to render chat templates in; freeze it "
                "with PyInstaller, or write the prompt yourself and use stream"
            )
        return interpreter(BOOT, limits)

    def check(self) -> None:
        """As ``WorkerProcess``."""
        _check_jinja2()

    def refuse(self, ready: dict[str, Any]) -> None:
        """As ``WorkerProcess``."""
        raise ModelFolderError(
            f"{sys.executable}: found no Python that imports jinja2 ({shown(ready)}), expected "
            "the interpreter pocketlm runs in, to render the chat template; run pocketlm in it"
        )


def _check_jinja2() -> None:
    """Raises MissingExtraError without a jinja2 whose sandbox holds."""
    import importlib.metadata
    import importlib.util

    needed = ".".join(map(str, MINIMUM_JINJA2))
    try:
        importlib.util.find_spec("jinja2")  # an import would take its time and memory here, too
        found = importlib.metadata.version("jinja2")
    except ModuleNotFoundError as error:
        raise missing_extra(
            "chat", "a chat template", ModuleNotFoundError(name="jinja2")
        ) from error
    if tuple(int(number) for number in re.findall(r"\d+", found)[:3]) < MINIMUM_JINJA2:
        raise MissingExtraError(
            f"a chat template needs jinja2 {needed} or newer, found {found}, whose sandbox has "
            "known holes; " + to_install('pip install "pocketlm[chat]"', "update it")
        )
