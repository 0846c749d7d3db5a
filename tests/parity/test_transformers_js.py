"""A model folder opened by transformers.js on Node gives the greedy tokens of our own loop.

The package is installed once, in a folder of its own, without the scripts that would download more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from interop_models import MODELS, TEXT, InteropModels, check_tokens

from pocketlm.export.folder import ModelFolder
from pocketlm.quantize.precisions import PRECISIONS

pytestmark = pytest.mark.node

PACKAGE = "@huggingface/transformers@4.3.2"
PROGRAM = Path(__file__).with_name("transformers_js.mjs")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program beside its packages."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js with npm")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", PACKAGE]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    return Path(shutil.copy(PROGRAM, folder))


def run(program: Path, folder: ModelFolder, count: int) -> dict[str, Any]:
    """What it makes of ``TEXT``, without network."""
    command = ["node", program.name, str(folder.path), TEXT, str(count)]
    environment = os.environ | {"NODE_NO_WARNINGS": "1"}
    ended = subprocess.run(
        command, cwd=program.parent, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_transformers_js_prefers_the_same_tokens(
    name: str, precision: str, program: Path, interop_models: InteropModels
) -> None:
    folder = interop_models.folder(name, precision)
    expected = interop_models.expected(folder)
    found = run(program, folder, len(expected.tokens))
    assert found["prompt"] == expected.prompt
    check_tokens(found["tokens"], expected)
    if len(found["tokens"]) == len(expected.tokens):
        assert found["text"] == expected.text


def test_transformers_js_leaves_other_graphs_alone(
    program: Path, interop_models: InteropModels, prefill_folder: ModelFolder
) -> None:
    expected = interop_models.expected(prefill_folder)
    check_tokens(run(program, prefill_folder, len(expected.tokens))["tokens"], expected)
