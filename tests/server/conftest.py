"""One server with a base model and two that chat, for all tests of what they answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from chat_models import TEMPLATES, base_model, chat_model
from served import Served, served

import pocketlm
from pocketlm.export.folder import ModelFolder


@pytest.fixture(scope="session")
def chat_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFolder]:
    """By name: "plain" and "hermes" by their templates, and "base" without one."""
    folder = tmp_path_factory.mktemp("chat-models")
    base = base_model(folder)
    chats = {name: chat_model(base, folder / name, TEMPLATES[name]) for name in TEMPLATES}
    return {**chats, "base": base}


@pytest.fixture(scope="session")
def chats(chat_folders: dict[str, ModelFolder]) -> Iterator[Served]:
    """A server of them; "plain" is the one that is meant where none is named."""
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
