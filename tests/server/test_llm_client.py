"""simonw/llm, told of the server by its file of further models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_requests import answered
from served import Served

pytest.importorskip("llm")
pytestmark = pytest.mark.clients

SETTINGS = ["-o", "max_tokens", "12", "-o", "seed", "3", "-o", "temperature", "1"]
MODELS = """
- model_id: local
  model_name: plain
  api_base: {url}/v1
  supports_schema: true
- model_id: local-base
  model_name: base
  api_base: {url}/v1
  completion: true
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, chats: Served) -> Path:
    """The folder in which it finds models and keys."""
    folder = tmp_path_factory.mktemp("llm")
    (folder / "extra-openai-models.yaml").write_text(MODELS.format(url=chats.url))
    (folder / "keys.json").write_text(json.dumps({"openai": "any"}))
    return folder


def says(place: Path, *arguments: str) -> str:
    """What it prints; UTF-8 without what the terminal adds."""
    environment: dict[str, Any] = os.environ | {
        "LLM_USER_PATH": str(place),
        "PYTHONIOENCODING": "utf-8",
    }
    command = [sys.executable, "-m", "llm", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode().removesuffix("\n")


@pytest.mark.parametrize("way", ["--no-stream", "stream"])
def test_it_chats(way: str, place: Path, chats: Served) -> None:
    extra = [] if way == "stream" else [way]
    text = answered(chats)["choices"][0]["message"]["content"]
    assert says(place, "-m", "local", "Why?", *SETTINGS, *extra) == text


def test_it_continues_a_text(place: Path, chats: Served) -> None:
    body = {"model": "base", "prompt": "Why?", "max_tokens": 12, "seed": 3, "temperature": 1}
    _, found = chats.post("/v1/completions", body)
    assert says(place, "-m", "local-base", "Why?", *SETTINGS) == found["choices"][0]["text"]


def test_it_asks_for_json_by_a_schema(place: Path) -> None:
    schema: dict[str, Any] = {
        "properties": {"old": {"type": "boolean"}},
        "required": ["old"],
        "type": "object",
    }
    schema["additionalProperties"] = False
    options = ["--schema", json.dumps(schema), "-o", "max_tokens", "60"]
    assert json.loads(says(place, "-m", "local", "Why?", *options))["old"] in (True, False)
