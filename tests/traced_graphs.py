"""Decoder graphs as torch's tracer leaves them: shapes computed at run time, constants as nodes.

Written after the graphs that Optimum 2.1 exports of GPT-2 and Llama with transformers 4.55; small,
seeded, and made without torch. ``write_trace`` leaves them as the tracing child does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph import Graph
from pocketlm.export.publishing import Target
from pocketlm.export.traced.process import Trace
from pocketlm.export.via_optimum import traced
from pocketlm.export.writing import Change, export_model

LOWEST = float(np.finfo(np.float32).min)
MAX = np.iinfo(np.int64).max
VOCAB = 300


@dataclass(frozen=True)
class Style:
    """How a graph is traced, and what its attention does."""

    heads: int = 4
    kv_heads: int = 4
    head_size: int = 8
    layers: int = 2
    context: int = 64
    gemm: bool = True  # Gemm between Reshapes and Split, as GPT-2; else MatMul(Transpose(W))
    rotary: bool = False
    mask: str = "causal"  # also: window, alibi, future, ids
    buffer: bool = False  # GPT-2's causal buffer with Where, in front of the mask
    folded: bool = False  # batch and heads joined around the products, as BLOOM
    softcap: float = 0.0
    scaled_last: bool = False  # the scale comes behind the mask, as CodeGen
    spoiled: str = ""  # something that no rule may take

    @property
    def width(self) -> int:
        """D."""
        return self.heads * self.head_size


GPT2 = Style(buffer=True)
LLAMA = Style(heads=6, kv_heads=2, head_size=16, gemm=False, rotary=True)
STYLES = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "window": Style(gemm=False, mask="window"),
    "alibi": Style(gemm=False, mask="alibi"),
    "bloom": Style(mask="alibi", folded=True),
    "soft cap": Style(gemm=False, softcap=2.0),
    "scaled last": Style(gemm=False, scaled_last=True),
    "one key head": Style(kv_heads=1, gemm=False),
}


class Tracer:
    """Writes the nodes that torch's tracer writes."""

    def __init__(self, style: Style, seed: int = 0) -> None:
        self.style = style
        self.g = Graph("main_graph")
        self.g.ir.opset_imports.clear()
        self.g.ir.opset_imports[""] = 18
        self.random = np.random.default_rng(seed)

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        array = np.array(value, dtype)
        return self.g.Constant(value=ir.Tensor(array))

    def size(self, x: ir.Value, axis: int) -> ir.Value:
        """x.size(axis): a scalar."""
        return self.g.Gather(self.g.Shape(x), self.constant(axis), axis=0)

    def view(self, x: ir.Value, *sizes: int | ir.Value) -> ir.Value:
        parts = [
            self.g.Unsqueeze(self.constant(s) if isinstance(s, int) else s, self.constant([0]))
            for s in sizes
        ]
        return self.g.Reshape(x, self.g.Concat(*parts, axis=0), allowzero=0)

    def weight(self, name: str, *shape: int, scale: float = 0.1) -> ir.Value:
        array = (scale * self.random.standard_normal(shape)).astype(np.float32)
        value = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(shape),
            const_value=ir.Tensor(array, name=name),
        )
        self.g.ir.register_initializer(value)
        return value

    def linear(self, x: ir.Value, name: str, inputs: int, outputs: int) -> ir.Value:
        """GPT-2's Conv1D, a Gemm of rows, or nn.Linear without bias."""
        g = self.g
        if not self.style.gemm:
            weight = self.weight(f"{name}.weight", outputs, inputs)
            return g.MatMul(x, g.Transpose(weight, perm=[1, 0]))
        weight = self.weight(f"{name}.weight", inputs, outputs)
        rows = self.view(x, -1, self.last_size(x))
        rows = g.Gemm(rows, weight, self.weight(f"{name}.bias", outputs), alpha=1.0, beta=1.0)
        return self.view(rows, self.size(x, 0), self.size(x, 1), outputs)

    def last_size(self, x: ir.Value) -> ir.Value:
        g = self.g
        last = g.Slice(g.Shape(x), self.constant([-1]), self.constant([MAX]), self.constant([0]))
        return g.Squeeze(last, self.constant([0]))

    def heads(self, x: ir.Value) -> ir.Value:
        """(B, S, n·E) -> (B, n, S, E)."""
        split = self.view(x, self.size(x, 0), self.size(x, 1), -1, self.style.head_size)
        return self.g.Transpose(split, perm=[0, 2, 1, 3])

    def expand(self, x: ir.Value, *sizes: int | ir.Value) -> ir.Value:
        """x.expand(sizes), with the detour that turns -1 into 1."""
        g = self.g
        parts = [
            g.Unsqueeze(self.constant(s) if isinstance(s, int) else s, self.constant([0]))
            for s in sizes
        ]
        shape = g.Reshape(g.Concat(*parts, axis=0), self.constant([-1]), allowzero=0)
        ones = g.ConstantOfShape(g.Shape(shape), value=ir.Tensor(np.array([1], np.int64)))
        negative = g.Equal(shape, g.Mul(ones, self.constant(-1)))
        return g.Expand(x, g.Where(negative, ones, shape))

    def repeat(self, x: ir.Value) -> ir.Value:
        """repeat_kv: every key/value head H / K times in a row."""
        style = self.style
        times = style.heads // style.kv_heads
        if times == 1:
            return x
        sizes = [self.size(x, i) for i in range(4)]
        wide = self.expand(
            self.g.Unsqueeze(x, self.constant([2])), sizes[0], sizes[1], times, sizes[2], sizes[3]
        )
        all_heads = self.g.Mul(sizes[1], self.constant(times))
        return self.view(wide, sizes[0], all_heads, sizes[2], sizes[3])

    def rotate(self, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        g = self.g
        half = g.Unsqueeze(g.Div(self.size(x, 3), self.constant(2)), self.constant([0]))
        axis, step = self.constant([3]), self.constant([1])
        low = g.Slice(x, self.constant([0]), half, axis, step)
        high = g.Slice(x, half, self.constant([MAX]), axis, step)
        turned = g.Concat(g.Neg(high), low, axis=-1)
        return g.Add(g.Mul(x, cos), g.Mul(turned, sin))

    def angles(self, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines (B, 1, S, E)."""
        g, size = self.g, self.style.head_size
        rates = (100.0 ** -(np.arange(0, size, 2) / size)).astype(np.float32)
        rows = g.Cast(g.Unsqueeze(positions, self.constant([1])), to=ir.DataType.FLOAT)
        wide = self.expand(
            self.constant(rates[None, :, None], np.float32), self.size(positions, 0), -1, 1
        )
        angles = g.Transpose(g.MatMul(g.Cast(wide, to=ir.DataType.FLOAT), rows), perm=[0, 2, 1])
        angles = g.Concat(angles, angles, axis=-1)
        cos, sin = (g.Unsqueeze(f(angles), self.constant([1])) for f in (g.Cos, g.Sin))
        return cos, sin

    def mask(self, ids: ir.Value, past: ir.Value, mask: ir.Value) -> ir.Value:
        """The additive mask (B, 1 or H, S, T) that transformers makes once for all layers."""
        g = self.g
        held, new = self.size(past, 2), self.size(ids, 1)
        total = g.Add(held, new)
        one = self.constant(1)
        queries = g.Unsqueeze(g.Range(held, total, one), self.constant([0, 1, 3]))
        keys = g.Unsqueeze(g.Range(self.constant(0), total, one), self.constant([0, 1, 2]))
        if self.style.mask == "future":
            seen = g.LessOrEqual(keys, g.Add(queries, one))
        else:
            seen = g.LessOrEqual(keys, queries)
        if self.style.mask == "window":
            seen = g.And(seen, g.Greater(keys, g.Sub(queries, self.constant(5))))
        present = g.Cast(g.Unsqueeze(mask, self.constant([1, 2])), to=ir.DataType.BOOL)
        seen = g.And(seen, present)
        bias = g.Where(seen, self.constant(0, np.float32), self.constant(LOWEST, np.float32))
        if self.style.mask == "ids":
            extra = g.Unsqueeze(g.Cast(ids, to=ir.DataType.FLOAT), self.constant([1, 3]))
            bias = g.Add(bias, g.Mul(extra, self.constant(0.001, np.float32)))
        return bias

    def slopes(self, mask: ir.Value) -> ir.Value:
        """ALiBi as BLOOM makes it: (B·H, 1, T)."""
        g, heads = self.g, self.style.heads
        slopes = np.array([[2.0 ** -(i + 1)] for i in range(heads)], np.float32)
        places = g.Mul(g.Sub(g.CumSum(mask, self.constant(-1)), self.constant(1)), mask)
        rows = g.Cast(g.Unsqueeze(places, self.constant([1])), to=ir.DataType.FLOAT)
        bias = g.Mul(self.constant(slopes, np.float32), rows)  # (B, H, T)
        joined = g.Mul(self.size(mask, 0), self.constant(heads))
        return self.view(bias, joined, 1, self.size(mask, 1))

    def attention(
        self, layer: int, x: ir.Value, past: list[ir.Value], shared: dict[str, Any]
    ) -> tuple[ir.Value, list[ir.Value]]:
        style, g = self.style, self.g
        kv_width = style.kv_heads * style.head_size
        name = f"layers.{layer}.attn"
        if style.gemm:
            packed = self.linear(x, f"{name}.qkv", style.width, style.width + 2 * kv_width)
            sizes = self.constant([style.width, kv_width, kv_width])
            q, k, v = map(self.heads, g.Split(packed, sizes, axis=2, outputs=3))
        else:
            widths = (style.width, kv_width, kv_width)
            q, k, v = (
                self.heads(self.linear(x, f"{name}.{kind}", style.width, width))
                for kind, width in zip("qkv", widths, strict=True)
            )
        if style.rotary:
            q, k = (self.rotate(item, *shared["angles"]) for item in (q, k))
        keys, values = g.Concat(past[0], k, axis=-2), g.Concat(past[1], v, axis=-2)
        joined = self.weighted(q, self.repeat(keys), self.repeat(values), shared)
        joined = g.Transpose(joined, perm=[0, 2, 1, 3])
        joined = self.view(joined, self.size(joined, 0), self.size(joined, 1), -1)
        if style.spoiled == "values":
            joined = g.Add(joined, g.ReduceMean(values, self.constant([1, 2, 3]), keepdims=0))
        return self.linear(joined, f"{name}.out", style.width, style.width), [keys, values]

    def weighted(
        self, q: ir.Value, keys: ir.Value, values: ir.Value, shared: dict[str, Any]
    ) -> ir.Value:
        """Softmax of the scores times the values: (B, H, S, E)."""
        style, g = self.style, self.g
        batch = self.size(q, 0)
        folds = g.Mul(batch, self.constant(style.heads))
        if style.folded:
            q, keys, values = (self.view(x, folds, -1, style.head_size) for x in (q, keys, values))
        turned = [0, 2, 1] if style.folded else [0, 1, 3, 2]
        scores = g.MatMul(q, g.Transpose(keys, perm=turned))
        scale = self.constant(style.head_size**-0.5, np.float32)
        if not style.scaled_last:
            scores = g.Mul(scores, scale)
        if style.softcap:
            cap = self.constant(style.softcap, np.float32)
            scores = g.Mul(g.Tanh(g.Div(scores, cap)), cap)
        if style.buffer:
            scores = g.Where(self.causal_buffer(q, keys), scores, self.constant(LOWEST, "f"))
        if style.mask == "alibi" and not style.folded:
            slopes = shared["slopes"]
            scores = g.Add(scores, self.view(slopes, batch, style.heads, 1, -1))
        elif style.mask == "alibi":
            scores = g.Add(scores, shared["slopes"])
        if style.folded:
            new = self.size(shared["mask"], 2)
            scores = self.view(scores, batch, style.heads, new, -1)
        scores = g.Add(scores, shared["mask"])
        if style.scaled_last:
            scores = g.Mul(scores, scale)
        if style.spoiled == "scores":
            scores = g.Sigmoid(scores)
        weights = g.Softmax(scores, axis=2 if style.spoiled == "softmax" else -1)
        if style.folded:
            weights = self.view(weights, folds, self.size(shared["mask"], 2), -1)
        weighted = g.MatMul(weights, values)
        if style.folded:
            batch = g.Div(self.size(weighted, 0), self.constant(style.heads))
            weighted = self.view(weighted, batch, style.heads, self.size(weighted, 1), -1)
        return weighted

    def causal_buffer(self, q: ir.Value, keys: ir.Value) -> ir.Value:
        """bias[:, :, T - S : T, :T] of a (1, 1, C, C) buffer."""
        g, context = self.g, self.style.context
        buffer = self.constant(np.tril(np.ones((1, 1, context, context), bool)), bool)
        total, new = self.size(keys, 2), self.size(q, 2)
        ends = [g.Unsqueeze(n, self.constant([0])) for n in (g.Sub(total, new), total)]
        rows = g.Slice(buffer, *ends, self.constant([2]), self.constant([1]))
        return g.Slice(rows, self.constant([0]), ends[1], self.constant([3]), self.constant([1]))


def traced_model(style: Style, seed: int = 0) -> ir.Model:
    """The graph of ``style``; its weights follow from ``seed``."""
    t = Tracer(style, seed)
    g = t.g
    ids = g.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    total = "past_sequence_length + sequence_length"
    mask = g.input("attention_mask", np.int64, ["batch_size", total])
    positions = g.input("position_ids", np.int64, ["batch_size", "sequence_length"])
    dims: list[int | str] = ["batch_size", style.kv_heads, "past_sequence_length", style.head_size]
    pasts = [
        [g.input(f"past_key_values.{layer}.{kind}", np.float32, dims) for kind in ("key", "value")]
        for layer in range(style.layers)
    ]
    table = t.weight("embed.weight", VOCAB, style.width, scale=1.0)
    x = g.Gather(table, t.view(ids, -1, t.size(ids, 1)))
    if not style.rotary:
        places = t.weight("positions.weight", style.context, style.width, scale=1.0)
        x = g.Add(x, g.Cast(g.Gather(places, positions), to=ir.DataType.FLOAT))
    shared: dict[str, Any] = {"mask": t.mask(ids, pasts[0][0], mask)}
    if style.rotary:
        shared["angles"] = t.angles(positions)
    if style.mask == "alibi":
        shared["slopes"] = t.slopes(mask)
    presents: list[list[ir.Value]] = []
    for layer, past in enumerate(pasts):
        branch, present = t.attention(layer, x, past, shared)
        x, presents = g.Add(branch, x), [*presents, present]
    logits = g.Cast(g.MatMul(x, g.Transpose(table, perm=[1, 0])), to=ir.DataType.FLOAT)
    if style.spoiled == "head":
        logits = g.Mul(logits, g.Sigmoid(logits))
    g.output(logits, "logits", np.float32, ["batch_size", "sequence_length", VOCAB])
    dims = ["batch_size", style.kv_heads, total, style.head_size]
    for layer, present in enumerate(presents):
        for value, kind in zip(present, ("key", "value"), strict=True):
            g.output(value, f"present.{layer}.{kind}", np.float32, dims)
    return ir.Model(g.ir, ir_version=8, producer_name="pytorch")


def write_trace(model: ir.Model, style: Style, folder: Path) -> Trace:
    """Writes ``model`` as the tracing child does, and returns what the child tells."""
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(model, folder / "model.onnx", external_data="model.onnx_data")
    return Trace(
        versions={"optimum": "2.1.0", "torch": "2.13.0"},
        sizes={
            "hidden_size": style.width,
            "num_heads": style.heads,
            "context_length": style.context,
        },
    )


def run_model(
    path: Path,
    ids: NDArray[np.int64],
    mask: NDArray[np.int64],
    style: Style,
    config: Mapping[str, str] | None = None,
) -> NDArray[np.float32]:
    """The logits (B, S, V) of a graph file after ``ids`` (B, S), on ONNX Runtime without our loop.

    Positions count the ones of ``mask``, so that left padding takes none. ``config`` is the
    session's.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    empty = np.zeros((len(ids), style.kv_heads, 0, style.head_size), np.float32)
    feeds: dict[str, Any] = {name: empty for name in names if name.startswith("past")}
    feeds |= {"input_ids": ids, "attention_mask": mask}
    feeds["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)
    logits: NDArray[np.float32] = session.run(["logits"], feeds)[0]
    return logits


def export_traced(
    source: Path, out: Path, change: Change | None = None, *, force: bool = False
) -> ModelFolder:
    """The folder that Optimum's graph of the checkpoint ``source`` becomes."""
    target = Target(out, force=force)
    with traced(source, target) as decoder:
        return export_model(decoder, target, change)
