"""OpenAI's client for Node: the same answers, whole and streamed, calls and errors.

The package is installed once, in a folder of its own, without scripts.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from chat_requests import answered
from served import Served

pytestmark = pytest.mark.node

PACKAGE = "openai@7.59.0"
PROGRAM = Path(__file__).with_name("openai_client.mjs")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, chats: Served) -> Any:
    """What the program got."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js with npm")
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", PACKAGE]
    subprocess.run(install, cwd=folder, check=True, capture_output=True, timeout=300)
    program = shutil.copy(PROGRAM, folder)
    ended = subprocess.run(
        ["node", program, f"{chats.url}/v1"],
        cwd=folder,
        capture_output=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return json.loads(ended.stdout)


def test_it_chats(told: Any, chats: Served) -> None:
    text = answered(chats)["choices"][0]["message"]["content"]
    assert told["whole"] == told["streamed"] == told["after"] == text
    assert told["response"] == told["response_streamed"] == text
    assert told["usage"] == 12
    assert "plain" in told["models"]


def test_it_calls_functions(told: Any) -> None:
    assert told["finish_reason"] == "tool_calls"
    assert told["call"] == told["streamed_call"]
    assert told["call"]["name"] == "weather"
    assert json.loads(told["call"]["arguments"])["city"] in ("Paris", "Seoul")


def test_it_continues_a_text(told: Any, chats: Served) -> None:
    body = {"model": "base", "prompt": "Why?", "max_tokens": 12, "seed": 3, "temperature": 1}
    _, found = chats.post("/v1/completions", body)
    assert told["completion"] == found["choices"][0]["text"]


def test_it_raises_the_error_of_its_kind(told: Any) -> None:
    assert told["error"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found"}
