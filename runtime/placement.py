"""Opens a model folder on the processor asked for, or says why it cannot be that one."""

from __future__ import annotations

import warnings

from ..export.errors import MissingExtraError, ProviderError
from ..export.folder import GROWING, ModelFolder
from ..export.importing import importing
from .kv import AUTO as AUTO_KV
from .kv import choose_kv
from .prefill_choice import AUTO as AUTO_PREFILL
from .prefill_choice import choose_prefill
from .providers import (
    ASKED_FOR_CUDA,
    AUTO,
    CUDA,
    ON_CPU,
    FallbackWarning,
    check_provider,
    cuda_obstacle,
    has_cuda_build,
)
from .session import Session


def open_session(
    folder: ModelFolder,
    threads: int | None,
    provider: str,
    kv: str = AUTO_KV,
    prefill: str = AUTO_PREFILL,
) -> tuple[Session, str | None]:
    """A session on ``provider``: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is one.

    ``kv`` and ``prefill`` are those of ``Session``. What is int8 of them is the CPU's: with that
    ``auto`` ends up there.

    With it comes None, or why ``auto`` took the CPU although ONNX Runtime is built for CUDA, which
    is a FallbackWarning too. Raises RequestError for another name, ProviderError when ``cuda``
    cannot be had, and what ``Session`` raises.
    """
    check_provider(provider)
    if provider == ON_CPU or (provider == AUTO and not has_cuda_build()):
        return Session(folder, threads, kv=kv, prefill=prefill), None
    try:
        return _open_on_cuda(folder, threads, kv, prefill), None
    except (ProviderError, MissingExtraError) as error:
        if provider != AUTO:
            raise
        fallback = f"running on the CPU: {str(error).removeprefix(ASKED_FOR_CUDA)}"
    warnings.warn(fallback, FallbackWarning, stacklevel=4)  # the caller of load
    return Session(folder, threads, kv=kv, prefill=prefill), fallback


def _open_on_cuda(folder: ModelFolder, threads: int | None, kv: str, prefill: str) -> Session:
    choose_prefill(folder, prefill, CUDA, choose_kv(folder, kv, CUDA))
    obstacle = cuda_obstacle(folder.decoder_formats)
    if obstacle is not None:
        raise obstacle.error()
    # Where the cache grows no attention is fused: every node has a float32 kernel.
    if folder.graph().cache.layout == GROWING:
        return Session(folder, threads, CUDA, kv=kv)
    with importing("running on CUDA", "cuda"):
        from ..export.float16_attention import float16_attention_graph
    return Session(folder, threads, CUDA, float16_attention_graph(folder), kv=kv)
