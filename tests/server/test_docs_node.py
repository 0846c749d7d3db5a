"""The program of docs/server.md for Node, with OpenAI's client for it.

The package is installed once, in a folder of its own, without its scripts.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from source_tree import ROOT

pytestmark = pytest.mark.node

PACKAGE = "openai@7.59.0"
URL = "http://127.0.0.1:8080"


def test_the_client_for_node_streams_a_text(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    from served import served

    import pocketlm

    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js with npm")
    text = (ROOT / "docs" / "server.md").read_text("utf-8")
    (program,) = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", PACKAGE]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    with served({"demo": lambda: pocketlm.load("demo", threads=1)}) as server:
        (tmp_path / "program.mjs").write_text(program.replace(URL, server.url))
        ended = subprocess.run(
            ["node", "program.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.split()) > 10
