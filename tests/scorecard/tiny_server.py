"""A server with a tiny model, and whether it is still there and generates what it should."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from model_folders import with_files
from served import Served, served

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model

TEMPLATE = """\
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""

# In what a figure asks wherever nothing of it may be told: neither in the log nor elsewhere.
MARKER = "hush-9f3ac1"
GOLDEN: dict[str, Any] = {"prompt": "Ducks", "max_tokens": 12, "seed": 11, "temperature": 0.8}
# Of every server that ran in this process: what it wrote into its log.
LOGS: list[StringIO] = []


@cache
def tiny_folder() -> ModelFolder:
    """The model folder, with a chat template; removed when the process ends."""
    place = Path(tempfile.mkdtemp(prefix="scorecard-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    config = gpt2_config(vocab_size=300, n_positions=160)
    tensors = {
        name: values * 5 if values.ndim == 2 else values
        for name, values in gpt2_tensors(config, seed=1).items()
    }
    checkpoint = write_checkpoint(place / "gpt2", config, tensors)
    plain = export_model(open_checkpoint(checkpoint), place / "fp32")
    return with_files(plain, place / "chatty", {"chat_template.jinja": TEMPLATE})


@cache
def golden_tokens() -> list[str]:
    """Those of ``GOLDEN``, by the engine alone."""
    with pocketlm.Model(tiny_folder(), threads=1, prefix_cache_bytes=0) as model:
        result = model.submit(**GOLDEN).result()
        return [model.tokenizer.token_text(token) for token in result.token_ids]


@contextmanager
def tiny_server(**settings: Any) -> Iterator[Served]:
    """One that serves ``tiny``, opened and asked once."""
    path = tiny_folder().path
    with served({"tiny": lambda: pocketlm.load(path, threads=1)}, **settings) as running:
        LOGS.append(running.written)
        key = settings.get("api_key")
        assert is_golden(running, {"Authorization": f"Bearer {key}"} if key else {})
        yield running


def is_golden(server: Served, headers: dict[str, str] | None = None) -> bool:
    """Whether the server lives, and generates token by token what the engine alone does."""
    sent = headers or {}
    health, _ = server.send("GET", "/health")
    status, found = server.post("/v1/completions", GOLDEN | {"logprobs": 0}, **sent)
    if health.status != 200 or status != 200:
        return False
    tokens: list[str] = found["choices"][0]["logprobs"]["tokens"]
    return tokens == golden_tokens()


def steps(server: Served) -> float:
    """Grows with every step that the model of ``server`` computes."""
    engine = server.service.pool.served["tiny"].engine
    assert engine is not None
    return engine.model.session.run_seconds
