"""What can be told of a model without opening it, and what it may come to take of memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ....export.folder import ModelFolder
from ...chat_template import ChatTemplate
from ...kv import INT8, choose_kv
from ...prefill_choice import INT8 as INT8_PREFILL
from ...prefill_choice import choose_prefill
from ...prefix_cache import MOST_BYTES, SHARE
from ..settings import Settings


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a model folder.

    weights_bytes       of all sets of weights that it computes with
    kv_bytes_per_token  that the keys and values of a token take
    """

    context_length: int
    precision: str
    chat: bool
    weights_bytes: int
    kv_bytes_per_token: int


def facts_of(folder: ModelFolder, kv: str = "auto", prefill: str = "auto") -> Facts:
    """Of ``folder``, opened with these options of ``load``.

    Raises RequestError for options that it cannot be opened with, ModelFolderError for a chat
    template that cannot be read.
    """
    held, shape = choose_kv(folder, kv), folder.shape
    second = choose_prefill(folder, prefill, kv=held).name == INT8_PREFILL
    return Facts(
        context_length=shape.context_length,
        precision=folder.manifest.precision.name,
        chat=ChatTemplate.open(folder) is not None,
        weights_bytes=folder.weights_bytes + (folder.prefill_memory_bytes if second else 0),
        kv_bytes_per_token=shape.kv_numbers_per_token if held == INT8 else shape.kv_bytes_per_token,
    )


@dataclass(frozen=True)
class Share:
    """What a model may take of memory, in bytes.

    kv          keys and values of its texts; None: half of what is free at its first use
    prefixes    those of prompts that it remembers; None: as much as it likes
    """

    weights: int
    kv: int | None
    prefixes: int | None

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return self.weights + (self.kv or 0) + (self.prefixes or 0)


def share_of(facts: Facts | None, everyone: Collection[Facts], settings: Settings) -> Share:
    """Of one of the models ``everyone`` that are served, as ``settings`` bound it.

    Where nobody says what keys and values may take, they get what the weights leave: if all models
    have room, all of it, alike, else a quarter beside the model's own, so that others have some.
    """
    if settings.memory_bytes is None:
        return Share(0, settings.kv_bytes, None)
    most = settings.memory_bytes
    prefixes = min(MOST_BYTES, most // (SHARE * max(1, len(everyone))))
    if facts is None:
        return Share(0, settings.kv_bytes, prefixes)
    wanted = settings.parallel * facts.context_length * facts.kv_bytes_per_token
    if settings.kv_bytes is not None:
        return Share(facts.weights_bytes, min(wanted, settings.kv_bytes), prefixes)
    left = most - sum(other.weights_bytes + prefixes for other in everyone)
    if left > 0:
        kv = left // max(1, len(everyone))
    else:
        kv = max(0, most - facts.weights_bytes - prefixes) // 4
    return Share(facts.weights_bytes, min(wanted, kv), prefixes)
