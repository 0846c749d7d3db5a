"""What each precision of a checkpoint costs in bytes and loses on texts, a line each."""

from __future__ import annotations

from typing import Any

from ..export.quantities import megabytes
from .peers.table import with_error
from .quality.figures import text_sentence
from .tables import NOTHING, Table

COLUMNS = ["precision", "MB", "MB/token", "KL, 0.001 nats/token", "p99", "top-1 agreement"]


def quality_table(results: dict[str, Any]) -> str:
    """Perplexity, how far each is from the first, and over which texts; in Markdown.

    MB/token: weights that a token reads; not in results that were kept before it was.
    """
    sizes = {model["name"]: model for model in results["models"]}
    rows = []
    for model in results["quality"]["models"]:
        size = sizes[model["model"]]
        read = size.get("weight_bytes_per_token")
        cells = [model["model"], megabytes(size["disk_bytes"])]
        cells += [NOTHING if read is None else megabytes(read), "0", "0", "100 %"]
        if against := model["against"]:
            kl, agreement = against["kl"], against["top1_agreement"]
            cells[3:] = [
                with_error(kl["mean"], 1e3, 2),
                f"{1e3 * kl['p99']['value']:.1f}",
                f"{with_error(agreement, 100, 1)} %",
            ]
        rows.append([*cells, f"{model['perplexity']['token']['value']:.2f}"])
    about = results["circumstances"]
    caption = (
        f"{text_sentence(results['quality'])}; ± one standard error. ONNX Runtime "
        f"{about['onnxruntime']}, Python {about['python']}."
    )
    return f"{Table([*COLUMNS, 'perplexity'], rows).filled().markdown()}\n\n{caption}"
