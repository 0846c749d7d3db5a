"""An importance matrix for llama.cpp's quantizer, as llama-imatrix makes it, over its C API.

For every matrix the mean square of each of its inputs, over tokens that the model itself said: its
own full precision decodes several sequences at temperature 1, and a callback sees the inputs of
every product. Used by the adapter ``llama_cpp``, in its environment; the loops are those of
llama.cpp ``tools/imatrix/imatrix.cpp``, the structure that of ``ggml/include/ggml.h``.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEQUENCES, LENGTH = 16, 512  # tokens to calibrate on
MUL_MAT = b"MUL_MAT"
NAME_BYTES, SOURCES, PARAMETERS = 64, 10, 16


class Tensor(ctypes.Structure):
    """ggml_tensor, up to its name."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * PARAMETERS),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * SOURCES),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * NAME_BYTES),
]


class Collector:
    """Sums of squares of the inputs of every matrix, fed by llama.cpp while it computes."""

    def __init__(self, op_name: Any) -> None:
        self._op_name = op_name
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}

    def __call__(self, address: int, ask: bool, data: object) -> bool:
        """Asked first whether a node is wanted; called again when it has been computed."""
        node = ctypes.cast(address, ctypes.POINTER(Tensor)).contents
        if self._op_name(node.op) != MUL_MAT or not node.src[0].contents.name.endswith(b".weight"):
            return not ask  # False ends the computation, where it was not a question
        if not ask:
            self._add(node.src[0].contents.name.decode(), node.src[1].contents)
        return True

    def _add(self, name: str, inputs: Tensor) -> None:
        columns, *rows = (int(size) for size in inputs.ne)
        count = int(np.prod(rows))
        assert inputs.type == 0 and inputs.nb[0] == 4 and inputs.nb[1] == 4 * columns, name
        pointer = ctypes.cast(inputs.data, ctypes.POINTER(ctypes.c_float))
        values = np.ctypeslib.as_array(pointer, (count, columns))
        self.sums[name] = self.sums.get(name, 0) + np.square(values, dtype=np.float64).sum(axis=0)
        self.counts[name] = self.counts.get(name, 0) + count


def imatrix(file: Path, begin: int | None) -> tuple[Any, str]:
    """What ``llama_model_quantize`` takes as ``imatrix``, and what is said of it in a table."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(file).encode(), llama_cpp.llama_model_default_params()
    )
    ids = _dream(llama_cpp, model, begin or 0)
    collector = Collector(_op_name())
    _read(llama_cpp, model, ids, collector)
    llama_cpp.llama_model_free(model)
    means = {name: sums / collector.counts[name] for name, sums in collector.sums.items()}
    for head in ("output.weight", "token_embd.weight"):  # which llama-imatrix leaves out as well
        means.pop(head, None)
    return _entries(llama_cpp, means), f"imatrix of {ids.size:,} tokens that it said itself"


def _entries(api: Any, means: dict[str, NDArray[np.float64]]) -> Any:
    """An array that ends in an entry without a name; it keeps what it points to."""
    entries = (api.llama_model_imatrix_data * (len(means) + 1))()
    kept = []
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        floats = (ctypes.c_float * len(values))(*values.astype(np.float32).tolist())
        kept.append(floats)
        entry.name = name.encode()
        entry.data = ctypes.cast(floats, ctypes.POINTER(ctypes.c_float))
        entry.size = len(values)
    entries.kept = kept
    return entries


def _op_name() -> Any:
    from llama_cpp import _ggml

    function = _ggml.libggml.ggml_op_name
    function.restype = ctypes.c_char_p
    return function


def _context(api: Any, model: Any, callback: Any) -> Any:
    parameters = api.llama_context_default_params()
    parameters.n_ctx, parameters.n_seq_max = SEQUENCES * LENGTH, SEQUENCES
    if callback is not None:
        parameters.cb_eval = callback
    return api.llama_init_from_model(model, parameters)


def _dream(api: Any, model: Any, begin: int) -> NDArray[np.int64]:
    """(SEQUENCES, LENGTH) sampled at temperature 1, all after ``begin``."""
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    length = min(LENGTH, api.llama_model_n_ctx_train(model))
    context = _context(api, model, None)
    ids = np.full((SEQUENCES, length), begin, np.int64)
    random = np.random.default_rng(0)
    for place in range(1, length):
        _decode(api, context, ids[:, place - 1 : place], place - 1)
        found = api.llama_get_logits(context)
        logits = np.ctypeslib.as_array(found, (SEQUENCES, size))
        # The largest of logits and Gumbel noise is a sample of their softmax.
        ids[:, place] = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    api.llama_free(context)
    return ids


def _read(api: Any, model: Any, ids: NDArray[np.int64], collector: Collector) -> None:
    callback = api.ggml_backend_sched_eval_callback(collector)
    context = _context(api, model, callback)
    for row in ids:
        api.llama_memory_clear(api.llama_get_memory(context), False)
        _decode(api, context, row[None], 0)
    api.llama_free(context)


def _decode(api: Any, context: Any, ids: NDArray[np.int64], start: int) -> None:
    """A batch of (rows, tokens) that begin at ``start``; logits of each row's last."""
    rows, count = ids.shape
    batch = api.llama_batch_init(rows * count, 0, 1)
    try:
        batch.n_tokens = rows * count
        for i in range(rows * count):
            row, place = divmod(i, count)
            batch.token[i], batch.pos[i] = int(ids[row, place]), start + place
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = place == count - 1
        if status := api.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode returned {status}")
    finally:
        api.llama_batch_free(batch)
