"""Fixtures for all tests: one tiny GPT-2, exported once, and a cache folder of our own."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tokenizers
from chat_models import TEMPLATES, base_model, chat_model
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from command_line import Ended, Run
from hub_server import HubServer, serving
from interop_models import InteropModels
from threadpoolctl import threadpool_limits
from tokenizers.processors import TemplateProcessing

import pocketlm
from pocketlm import cli
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.cache_scales import cache_scales
from pocketlm.quantize.run import precision_of
from pocketlm.quantize.second_graph import add_int8_cache
from pocketlm.runtime.session import Session
from pocketlm.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from served import Served


# What the server needs, and the tests that import it: other steps of CI run where it is not.
OF_THE_SERVER = ("h11", "msgspec", "prometheus_client", "starlette", "uvicorn")
collect_ignore = ["server", "page", "parity/test_lm_eval_server.py"]
if all(importlib.util.find_spec(name) for name in OF_THE_SERVER):
    collect_ignore = []


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing a test does reaches the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETLM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_products() -> Iterator[None]:
    """A test worker has a core: threads of NumPy's products would only wait for one another.

    Nor do those of the processes that tests start, which are to come to the same bits.
    """
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1, user_api="blas"):
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would what the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls the command line in this process, with ``lines`` on stdin."""

    def call(*arguments: str | Path, lines: str | io.TextIOBase | None = None) -> Ended:
        capsys.readouterr()
        if lines is not None:
            stdin = io.StringIO(lines) if isinstance(lines, str) else lines
            monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says, requests may be made: to loopback, nothing else is asked."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read when it was imported


@pytest.fixture
def hub_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, online: None
) -> Iterator[HubServer]:
    """An empty hub on loopback, named by the environment, with a token of its own."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path.parent / "no-token"))
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture(scope="session")
def test_data() -> Path:
    """A folder with models, tokenizers and texts that may not be part of the project.

    Named by the environment variable POCKETLM_TEST_DATA; without it the test is skipped.
    """
    folder = os.environ.get("POCKETLM_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("POCKETLM_TEST_DATA names no folder with test data")
    return Path(folder)


@pytest.fixture(scope="session")
def interop_models(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> InteropModels:
    """Models that other runtimes open, each exported once."""
    return InteropModels(tmp_path_factory.mktemp("interop"), request)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with all single bytes and some merges; its greedy text does not repeat at once."""
    config = gpt2_config(vocab_size=300, n_positions=160)
    # Five times the usual scale: with small weights the largest logit is always the last token's.
    tensors = {
        name: values * 5 if values.ndim == 2 else values
        for name, values in gpt2_tensors(config, seed=1).items()
    }
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "gpt2", config, tensors)


@pytest.fixture(scope="session")
def tiny_folder(tiny_checkpoint: Path) -> ModelFolder:
    """The fp32 model folder of ``tiny_checkpoint``; not to be written to."""
    return export_model(open_checkpoint(tiny_checkpoint), tiny_checkpoint.parent / "fp32")


@pytest.fixture
def copy(tiny_folder: ModelFolder, tmp_path: Path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(tiny_folder.path, tmp_path / "copy"))


@pytest.fixture(scope="session")
def tiny_session(tiny_folder: ModelFolder) -> Session:
    """One session for the tests that leave nothing behind in it."""
    return Session(tiny_folder, threads=1)


@pytest.fixture(scope="session")
def int8_kv_folder(
    tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> ModelFolder:
    """The same folder with a second graph, whose KV cache is of int8; not to be written to."""
    out = tmp_path_factory.mktemp("int8-kv") / "fp32"
    shutil.copytree(tiny_folder.path, out)
    windows = np.random.default_rng(5).integers(0, 300, (4, 120))
    scales = cache_scales(Session(tiny_folder, threads=1), windows)
    return add_int8_cache(ModelFolder.open(out), scales)


@pytest.fixture(scope="session")
def int8_kv_session(int8_kv_folder: ModelFolder) -> Session:
    """One session with that cache for the tests that leave nothing behind in it."""
    return Session(int8_kv_folder, threads=1, kv="int8")


@pytest.fixture(scope="session")
def prefill_folder(
    tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> ModelFolder:
    """The same model in int4 with a second set of weights, both over either KV cache: all graphs.

    Not to be written to.
    """
    change = precision_of("int4", prefill=True)
    folder = export_model(tiny_folder, tmp_path_factory.mktemp("prefill") / "int4", change)
    windows = np.random.default_rng(5).integers(0, 300, (4, 120))
    return add_int8_cache(folder, cache_scales(Session(folder, threads=1), windows))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: ModelFolder) -> pocketlm.Model:
    """The same folder behind the front door; it remembers no prompt of another test."""
    return pocketlm.Model(tiny_folder, threads=1, prefix_cache_bytes=0)


@pytest.fixture(scope="session")
def starting_tokenizer(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    """The tiny one's, but that it puts the token 299 before every text, as Llama's does."""
    library = tokenizers.Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    start = "<|endoftext|>"
    library.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, library.token_to_id(start))]
    )
    path = tmp_path_factory.mktemp("starting") / "tokenizer.json"
    library.save(str(path))
    return Tokenizer.open(path)


@pytest.fixture(scope="session")
def chat_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFolder]:
    """By name: "plain", "hermes" and "deaf" by their templates, and "base" without one."""
    folder = tmp_path_factory.mktemp("chat-models")
    base = base_model(folder)
    chats = {name: chat_model(base, folder / name, TEMPLATES[name]) for name in TEMPLATES}
    return {**chats, "base": base}


@pytest.fixture(scope="session")
def chats(chat_folders: dict[str, ModelFolder]) -> Iterator[Served]:
    """A server of them; "plain" is the one that is meant where none is named."""
    from served import served  # needs the extra "serve"

    opened = {
        name: partial(pocketlm.load, folder.path, threads=1)
        for name, folder in chat_folders.items()
    }
    with served(opened) as running:
        yield running


@pytest.fixture(scope="session")
def plain_model(chat_folders: dict[str, ModelFolder]) -> pocketlm.Model:
    """What the engine itself says of it."""
    return pocketlm.Model(chat_folders["plain"], threads=1, prefix_cache_bytes=0)
