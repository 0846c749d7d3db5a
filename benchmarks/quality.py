"""What a precision loses: perplexity, KL divergence and top-1 agreement against the fp32 graph.

    python -m pocketlm.benchmarks.quality CHECKPOINT --text novel.txt other.txt

Every text is tokenized line by line (each line with its newline), begins with the end-of-text token
and is cut into consecutive windows of the context length; each window is scored from an empty
cache, at all its positions. Both graphs see the same window side by side, and only sums are kept.

    KL(fp32 || quantized) = Σ p log(p / q)  per position, in nats; the mean and its standard error
    perplexity            = exp(mean -log p(next token))
    top-1 agreement       = share of positions where both prefer the same token
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.checkpoint import open_checkpoint
from ..export.errors import RequestError
from ..export.folder import ModelFolder
from ..quantize.run import export_checkpoint
from ..runtime.session import Session
from ..runtime.tokenizer import Tokenizer
from .machine import describe_machine

# Precision, its options, and the name it has in tables.
VARIANTS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("int8", {}, "int8"),
    ("int8-weight", {}, "int8-weight"),
    ("int4", {"block_size": 32}, "int4 b32"),
    ("int4", {"block_size": 64}, "int4 b64"),
    ("int4", {"block_size": 128}, "int4 b128"),
    ("int4", {"block_size": 128, "head": "int4"}, "int4 b128, int4 head"),
)


@dataclass
class Sums:
    """Running sums over positions; means are taken at the end."""

    count: int = 0
    kl: float = 0.0
    kl_squared: float = 0.0
    agreed: int = 0
    loss: float = 0.0  # nats, of the quantized graph
    reference_loss: float = 0.0
    scored: int = 0  # positions whose next token is in the window

    def add(
        self, reference: NDArray[np.float32], other: NDArray[np.float32], ids: NDArray[np.int64]
    ) -> None:
        """Adds the positions of a window: logits (S, V) of both graphs and the ids (S,)."""
        p, q = log_softmax(reference), log_softmax(other)
        kl = (np.exp(p) * (p - q)).sum(axis=-1, dtype=np.float64)
        self.count += len(ids)
        self.kl += float(kl.sum())
        self.kl_squared += float(np.square(kl).sum())
        self.agreed += int((reference.argmax(-1) == other.argmax(-1)).sum())
        rows = np.arange(len(ids) - 1)
        self.loss -= float(q[rows, ids[1:]].sum(dtype=np.float64))
        self.reference_loss -= float(p[rows, ids[1:]].sum(dtype=np.float64))
        self.scored += len(rows)

    def result(self) -> dict[str, float]:
        """Means, in nats per token."""
        mean = self.kl / self.count
        variance = max(0.0, self.kl_squared / self.count - mean**2)
        return {
            "tokens": self.count,
            "kl": mean,
            "kl_standard_error": math.sqrt(variance / self.count),
            "top1_agreement": self.agreed / self.count,
            "perplexity": math.exp(self.loss / self.scored),
            "reference_perplexity": math.exp(self.reference_loss / self.scored),
        }


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural log of the softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    total: NDArray[np.float32] = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    logprobs: NDArray[np.float32] = (shifted - np.log(total)).astype(np.float32)
    return logprobs


def windows(
    tokenizer: Tokenizer, text: Path, length: int, limit: int | None = None
) -> Iterator[NDArray[np.int64]]:
    """Consecutive windows of ``length`` tokens of a text file, at most ``limit`` tokens in all."""
    start = tokenizer.id_of("<|endoftext|>")
    ids = [] if start is None else [start]
    for line in text.read_text(encoding="utf-8").splitlines(keepends=True):
        ids += tokenizer.encode(line)
        if limit is not None and len(ids) >= limit:
            break
    for first in range(0, len(ids[:limit]) - length + 1, length):
        yield np.array(ids[first : first + length], np.int64)


def compare(
    reference: Session,
    others: dict[str, Session],
    tokenizer: Tokenizer,
    texts: list[Path],
    limit: int | None,
) -> dict[str, dict[str, float]]:
    """One result per session of ``others``, over all windows of ``texts``.

    Raises RequestError for a text without a whole window: it would silently count for nothing.
    """
    sums = {name: Sums() for name in others}
    length = reference.shape.context_length
    for text in texts:
        found = list(windows(tokenizer, text, length, limit))
        if not found:
            raise RequestError(
                f"found no window of {length} tokens in {text.name}, expected at least one; "
                "give a longer text or a higher limit"
            )
        for ids in found:
            expected = reference.all_logits(ids, reference.new_cache())
            for name, session in others.items():
                sums[name].add(expected, session.all_logits(ids, session.new_cache()), ids)
    return {name: total.result() for name, total in sums.items()}


def main() -> None:
    """Exports a checkpoint in every precision, compares, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder or file")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="UTF-8 text files")
    parser.add_argument("--tokens", type=int, help="at most this many tokens of each text")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folders = _export_all(arguments.checkpoint, arguments.tokenizer, Path(temporary))
        sessions = {name: Session(folder, arguments.threads) for name, folder in folders.items()}
        reference = sessions.pop("fp32")
        tokenizer = Tokenizer.open(folders["fp32"].path / "tokenizer.json")
        results = compare(reference, sessions, tokenizer, arguments.text, arguments.tokens)
        sizes = {name: folder.weights_bytes for name, folder in folders.items()}
    machine = describe_machine(arguments.threads)
    print(table(results, sizes))
    print(f"\n{next(iter(results.values()))['tokens']:,} tokens")
    texts = [text.name for text in arguments.text]
    if arguments.json:
        content = {"machine": machine, "texts": texts, "bytes": sizes, "results": results}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


def _export_all(
    checkpoint: Path, tokenizer: Path | None, temporary: Path
) -> dict[str, ModelFolder]:
    variants = (("fp32", {}, "fp32"), *VARIANTS)
    return {
        name: export_checkpoint(
            open_checkpoint(checkpoint, tokenizer), temporary / f"{i}", precision, **options
        )
        for i, (precision, options, name) in enumerate(variants)
    }


def table(results: dict[str, dict[str, float]], sizes: dict[str, int]) -> str:
    """A Markdown table, fp32 first."""
    first = next(iter(results.values()))
    lines = [
        "| precision | weights MB | KL, 0.001 nats/token | top-1 agreement | perplexity |",
        "|---|--:|--:|--:|--:|",
        f"| fp32 | {sizes['fp32'] / 1e6:.1f} | 0 | 100 % | {first['reference_perplexity']:.2f} |",
    ]
    lines += [
        f"| {name} | {sizes[name] / 1e6:.1f} | {1e3 * result['kl']:.2f} ± "
        f"{1e3 * result['kl_standard_error']:.3f} | {100 * result['top1_agreement']:.1f} % | "
        f"{result['perplexity']:.2f} |"
        for name, result in results.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
