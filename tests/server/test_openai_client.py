"""OpenAI's Python client: all of what it is scored by, and a program that knows nothing of us."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from chat_requests import answered
from served import Served
from source_tree import ROOT

pytest.importorskip("openai")
pytestmark = pytest.mark.clients

# As in OpenAI's own introduction; where it asks is in the environment alone.
PROGRAM = """
import openai

client = openai.OpenAI()
stream = client.chat.completions.create(
    model="plain",
    messages=[{"role": "user", "content": "Why?"}],
    max_tokens=12, seed=3, temperature=1.0,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="")
"""


def test_every_assertion_of_the_scorecard_holds() -> None:
    command = [sys.executable, "-m", "tests.scorecard", "--quick", "F1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout


def test_a_program_of_anybody_runs_unchanged(chats: Served) -> None:
    environment = os.environ | {
        "OPENAI_BASE_URL": f"{chats.url}/v1",
        "OPENAI_API_KEY": "any",
        "PYTHONIOENCODING": "utf-8",
    }
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    text = answered(chats)["choices"][0]["message"]["content"]
    assert ended.stdout.decode().replace("\r\n", "\n") == text.replace("\r\n", "\n")
