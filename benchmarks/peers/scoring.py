"""What each contender loses on texts: its logits against those of our fp32, token by token.

Our fp32's logits lie in a file that all read from, a row for each scored token; the peers' never
leave their processes, see ``protocol``. Sums, errors and windows are those of ``quality``, so that
a row here is comparable with ``pocketlm eval`` on the same texts. V is the vocabulary.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...export.errors import StorageError
from ...export.folder import ModelFolder
from ...export.quantities import size_text
from ..quality.divergence import Rows
from ..quality.plan import QualityPlan, check_texts
from ..quality.reading import Reading
from ..quality.text_windows import Window
from ..quality.totals import Totals
from .environments import PeerError
from .measure import Entry, Options, start

FLOAT_BYTES = 4
NO_LOGITS = "its API gives no logits"


@dataclass(frozen=True)
class Texts:
    """Texts, and how they are cut; as ``measure_quality`` takes them."""

    paths: Sequence[Path]
    window: int | None = None
    limit: int | None = None
    split: str | None = None

    def plan(self, folder: ModelFolder) -> QualityPlan:
        """Raises RequestError for texts that will not do."""
        cut = {"window": self.window, "limit": self.limit, "split": self.split}
        return check_texts({"fp32": folder}, self.paths, **cut)  # type: ignore[arg-type]


class Scoring:
    """The windows of the texts, and the file of our fp32's logits for them."""

    def __init__(self, plan: QualityPlan, reference: Entry, options: Options, file: Path) -> None:
        """Runs ``reference`` over the texts. Raises PeerError where it fails."""
        self._plan, self._options, self._file = plan, options, file
        reading = Reading(plan)
        many = plan.has_many_documents()
        self._windows = [(window, many and reading.goes_on) for window in reading]
        self._about = reading.result() | {"clusters": "documents" if many else "windows"}
        self._reference_rows: list[Rows] = []
        try:
            process = start(reference, options)
            process.ask("make_file", file=str(file), rows=self._num_tokens)
            for window, first in self._places("pocketlm fp32"):
                answer = process.ask("record", **self._request(window, first))
                self._reference_rows.append(_rows(answer))
        finally:
            reference.close()

    @property
    def _num_tokens(self) -> int:
        return sum(window.num_scored for window, _ in self._windows)

    def _places(self, who: str) -> Iterator[tuple[Window, int]]:
        """Every window with the file's row of its first scored token."""
        first = 0
        for number, (window, _) in enumerate(self._windows):
            self._options.on_progress(f"{who}: window {number + 1} of {len(self._windows)}")
            yield window, first
            first += window.num_scored

    def _request(self, window: Window, first: int) -> dict[str, Any]:
        ids = window.ids.tolist()
        return {"ids": ids, "scored": window.num_scored, "file": str(self._file), "first": first}

    def score(self, entry: Entry) -> None:
        """Fills what ``entry`` loses; a failure is kept as the reason why there is nothing."""
        try:
            process = start(entry, self._options)
            entry.bytes_per_token = process.ask("reads")["bytes_per_token"]
            if "logits" not in process.opened["can"]:
                entry.unscored = NO_LOGITS
                return
            totals = Totals(entry.peer, self._plan.tokenizer)
            name = f"{entry.peer} {entry.precision}"
            for place, (window, first) in enumerate(self._places(name)):
                rows = _rows(process.ask("score", **self._request(window, first)))
                if not np.isfinite(rows.kl).all():
                    raise PeerError("failed at score: its logits are NaN or infinite")
                reference, more = self._reference_rows[place], self._windows[place][1]
                totals.add(window, rows, reference, more)
            result = totals.result(False)
            entry.quality = {name: result[name] for name in ("perplexity", "loss", "against")}
        except PeerError as error:
            entry.unscored = str(error)
        finally:
            entry.close()

    def describe(self) -> dict[str, Any]:
        """The texts, as the results of ``measure_quality`` have them."""
        plan, windows = self._plan, [window for window, _ in self._windows]
        return {
            "texts": [str(text.path) for text in plan.texts],
            "tokens": self._num_tokens,
            "bytes": sum(window.num_bytes for window in windows),
            "words": sum(window.num_words for window in windows),
            **self._about,
            "window": plan.window,
            "stride": plan.stride,
            "limit": plan.limit,
            "split": plan.split,
            "start_token": _start_token(plan),
        }


def _start_token(plan: QualityPlan) -> str | None:
    if plan.start is None:
        return None
    spelled = plan.tokenizer.token_bytes(plan.start, skip_special_tokens=False)
    return spelled.decode("utf-8", "replace")


def _rows(answer: Mapping[str, Any]) -> Rows:
    return Rows(**{name: np.array(values) for name, values in answer.items()})


@contextmanager
def scoring(
    texts: Texts, folder: ModelFolder, reference: Entry, options: Options, root: Path
) -> Iterator[Scoring]:
    """Our fp32's logits for ``texts`` in a file under ``root``, removed in the end.

    Raises RequestError for texts that will not do, StorageError where the file does not fit.
    """
    plan = texts.plan(folder)
    tokens = sum(window.num_scored for _, window in plan.all_windows())
    needed = FLOAT_BYTES * tokens * folder.shape.vocab_size
    if (free := shutil.disk_usage(root).free) < needed:
        raise StorageError(
            f"{root}: found {size_text(free)} free, expected {size_text(needed)} for the logits of "
            f"{tokens:,} tokens; make room, or give --limit"
        )
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        yield Scoring(plan, reference, options, Path(temporary) / "logits.npy")
