"""The one loop of every decoder: a family's parts and a checkpoint -> one fused float32 graph.

    x = embed(ids)
    for each layer:  block(x)
    logits = norm(x) @ lm_head.T (+ lm_head.bias)

A family (``architectures``) is a ``Config``, a block, and what else it does not share with another.
A build without weights is what names the tensors of a checkpoint. Letters: see ``layers``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Self, TypeVar

import numpy as np
import onnx_ir as ir

from .checkpoint import Checkpoint
from .config_fields import read_fields
from .decoder_inputs import DecoderInputs, decoder_inputs
from .folder import DecoderShape
from .graph import Dimension, Graph
from .layers import Attend, add_bias, attention, last_rows
from .rotary import Rotary
from .stream import Stream
from .weight_source import Change, Order, WeightSource


class DecoderConfig(ABC):
    """Fields of config.json that shape the graph, and what the loop reads out of them."""

    tie_word_embeddings: bool

    @classmethod
    def read(cls, config: dict[str, Any]) -> Self:
        """Reads and checks ``config``; CheckpointError names a field and value we cannot build."""
        fields = read_fields(cls, config)
        fields.check(config)
        return fields

    @abstractmethod
    def check(self, config: dict[str, Any]) -> None:
        """Raises CheckpointError for a combination of fields that has no graph."""

    @property
    @abstractmethod
    def shape(self) -> DecoderShape:
        """The sizes, under the names that all families share."""

    @property
    def scale(self) -> float:
        """What the products of queries and keys are multiplied by."""
        return float(self.shape.head_size**-0.5)

    def window(self, layer: int) -> int | None:
        """Tokens that a token of ``layer`` sees, itself included; None for all."""
        return None

    @property
    def softcap(self) -> float | None:
        """Bounds the products of queries and keys; None does not."""
        return None

    @property
    def logit_softcap(self) -> float | None:
        """Bounds the logits: softcap · tanh(what the head makes), which is divided before."""
        return None

    def rotaries(
        self, g: Graph, config: dict[str, Any], inputs: DecoderInputs
    ) -> Sequence[Rotary | None]:
        """The rotation of each layer's queries and keys, as ``config`` asks for it."""
        return [None] * self.shape.num_layers


C = TypeVar("C", bound=DecoderConfig)


@dataclass(frozen=True)
class Architecture(Generic[C]):
    """A family of models: how its graph is built, and what its checkpoints call things."""

    config: type[C]
    embed: Callable[[Graph, C, DecoderInputs], Stream]
    block: Callable[[Graph, C, Stream, Attend], None]  # adds a layer's branches to the stream
    norm: Callable[[Graph, C, Stream], ir.Value]  # the last one
    bare: Callable[[str], str | None]  # a tensor's name in the graph; None to leave it out
    table: str  # name of the embedding
    layers: str
    head_bias: bool = False  # whether the head may have one
    inner: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config  # of a wrapped one
    change: Callable[[C, str], Change | None] = lambda config, name: None  # of stored values
    order: Callable[[C, str], Order | None] = lambda config, name: None  # of stored rows
    inputs_first: bool = False  # whether matrices in layers are stored (in, out)

    def is_tied(self, config: dict[str, Any]) -> bool:
        """Whether config.json has the head share the embedding's values."""
        return self.config.read(self.inner(config)).tie_word_embeddings

    def untied(self, config: dict[str, Any]) -> dict[str, Any]:
        """``config`` of a head of its own, said wherever a config.json says it."""
        own = {"tie_word_embeddings": False}
        text = config.get("text_config")
        return config | own | ({"text_config": text | own} if isinstance(text, dict) else {})

    def build(self, checkpoint: Checkpoint) -> tuple[ir.Model, DecoderShape]:
        """The float32 model of ``checkpoint`` and its sizes; no weight is read yet.

        Raises CheckpointError when the config asks for something else or a tensor does not fit it.
        """
        stored = self.inner(checkpoint.config)
        config = self.config.read(stored)

        def bare(name: str) -> str | None:
            known = self.bare(name)
            # Some files store a tied head a second time.
            return None if known == "lm_head.weight" and config.tie_word_embeddings else known

        source = WeightSource(
            checkpoint.tensors.values(),
            bare,
            partial(self.change, config),
            partial(self.order, config),
        )
        model = self._declare(config, stored, source)
        source.check()
        return model, config.shape

    def tensor_shapes(self, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that a checkpoint with this config.json has."""
        source = WeightSource([], self.bare)
        config = self.inner(config)
        self._declare(self.config.read(config), config, source)
        return source.asked

    def _declare(self, config: C, stored: dict[str, Any], source: WeightSource) -> ir.Model:
        shape = config.shape
        g = Graph(str(stored.get("model_type")), source)
        inputs = decoder_inputs(g)
        rotaries = config.rotaries(g, stored, inputs)
        stream = self.embed(g, config, inputs)
        for i in range(shape.num_layers):
            attend = partial(
                attention,
                g,
                inputs=inputs,
                layer=i,
                shape=shape,
                scale=config.scale,
                rotary=rotaries[i],
                window=config.window(i),
                softcap=config.softcap,
            )
            with g.scope(f"{self.layers}.{i}"):
                self.block(g, config, stream, attend)
        x = self.norm(g, config, stream)

        table = self.table if config.tie_word_embeddings else "lm_head"
        head = g.parameter(f"{table}.weight", (shape.vocab_size, shape.hidden_size))
        x = last_rows(g, x, inputs.num_logits_to_keep)
        logits = g.FusedMatMul(x, head, transB=1, name="lm_head")  # (B, S, D) -> (B, S, V)
        if self.head_bias and "lm_head.bias" in source:
            logits = add_bias(g, logits, "lm_head", shape.vocab_size)
        if config.logit_softcap is not None:
            cap = g.constant(np.float32(config.logit_softcap), "logit_softcap")
            logits = g.Mul(g.Tanh(logits, name="bounded"), cap, name="softcap")
        # First among the outputs, as callers by position expect.
        dims: list[Dimension] = ["batch_size", "sequence_length", shape.vocab_size]
        g.output(logits, "logits", np.float32, dims, first=True)
        model = g.model()
        model.metadata_props.update(g.ir.metadata_props)
        g.ir.metadata_props.clear()
        return model
