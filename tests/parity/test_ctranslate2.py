"""A peer from the package index computes what we do: environment, conversion, rounds and judge.

One is enough to see that the whole way works, and CTranslate2's is the smallest that needs no
compiler. ``tests/benchmarks/test_peers.py`` has the rest, on adapters that the tests write.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from llama_checkpoints import LLAMA3, llama_config, llama_tensors
from source_tree import FRONT_FOLDER

from pocketlm.benchmarks.peers import __main__ as command
from pocketlm.benchmarks.peers.conversions import convert, known_peers, our_peer
from pocketlm.benchmarks.peers.environments import child_environment
from pocketlm.benchmarks.peers.process import PeerProcess
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.session import Session

pytestmark = pytest.mark.peers
DEMO = FRONT_FOLDER / "demo"
PEER = known_peers()["ctranslate2"]

# The adapter with a request more.
WITH_LOGITS = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("plain", {PEER.adapter!r})
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)
NAME, PACKAGE, PRECISIONS, convert = plain.NAME, plain.PACKAGE, plain.PRECISIONS, plain.convert

class Model(plain.Model):
    def listed(self, ids):
        return {{"logits": self.logits(ids).tolist()}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the environment is made, once for all tests."""
    return tmp_path_factory.mktemp("peers")


def test_it_runs_the_same_model_from_its_pins(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(DEMO), "--folder", str(root), "--rounds", "1"]
    options += ["--prompt", "32", "--generation", "8", "--json", str(tmp_path / "results.json")]
    text = tmp_path / "text.txt"
    text.write_text("It was a dark and stormy night; the rain fell in torrents. " * 8)
    options += ["--text", str(text), "--html", str(tmp_path / "report.html")]
    assert command.main([*options, "--peer", PEER.key]) == 0
    (results,) = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["peer"], row["level"]): row for row in results["rows"]}
    assert {level for peer, level in rows if peer == PEER.name} == {"fp32", "int8"}
    for row in rows.values():
        assert row["failure"] is None
        assert row["agreement"] >= (0.95 if row["level"] == "fp32" else 0.5)
        kl = row["quality"]["against"]["kl"]["mean"]["value"]
        assert abs(kl) < 1e-6 if row["level"] == "fp32" else 1e-5 < kl < 0.1
        assert all(row["tests"][test]["tokens_per_second"]["median"] > 0 for test in row["tests"])
    assert "| CTranslate2 | 4." in capsys.readouterr().out


@pytest.mark.parametrize("scaling", [None, LLAMA3], ids=["unscaled", "llama3"])
def test_its_llama_has_our_logits(
    root: Path, tmp_path: Path, scaling: dict[str, object] | None
) -> None:
    # Heads as its converter takes them: as wide as the model together.
    heads: dict[str, Any] = {"num_attention_heads": 4, "head_dim": None}
    config = llama_config(**heads, rope_scaling=scaling, rope_theta=100.0)
    checkpoint = write_checkpoint(tmp_path / "llama", config, llama_tensors(config))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    loader = {"tokenizer_class": "PreTrainedTokenizerFast"} | special
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(loader))
    (tmp_path / f"{PEER.key}.py").write_text(WITH_LOGITS)
    peer = replace(PEER, adapter=str(tmp_path / f"{PEER.key}.py"))
    theirs = convert(peer, "float32", checkpoint, root)
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], 24).tolist()
    process = PeerProcess(theirs.command(1), tmp_path / "log", child_environment(1))
    try:
        found = np.array(process.ask("listed", ids=ids)["logits"])
    finally:
        process.close()
    session = Session(ModelFolder.open(convert(our_peer(), "fp32", checkpoint, root).folder), 1)
    expected = session.all_logits(ids, session.new_cache())
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
