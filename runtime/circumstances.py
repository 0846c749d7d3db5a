"""By what a text was made: the model, how it is computed, and what that takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..export.memory import peak_rss_bytes

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True)
class Circumstances:
    """``path`` is a folder, or the address of a server's model; the rest is as ``Model`` has it."""

    path: str
    architecture: str
    precision: str
    load_seconds: float
    threads: int
    provider: str
    kv: str
    prefill: str
    prefill_note: str | None
    fallback: str | None
    peak_rss_bytes: int


def circumstances_of(model: Model) -> Circumstances:
    """Of a model in this process."""
    session, manifest = model.session, model.folder.manifest
    return Circumstances(
        path=str(model.folder.path),
        architecture=manifest.architecture,
        precision=manifest.precision.name,
        load_seconds=model.load_seconds,
        threads=session.threads,
        provider=session.place.name,
        kv=session.kv,
        prefill=session.prefill,
        prefill_note=session.prefill_note,
        fallback=model.fallback,
        peak_rss_bytes=peak_rss_bytes(),
    )
