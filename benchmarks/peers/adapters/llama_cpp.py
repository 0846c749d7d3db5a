"""llama.cpp through llama-cpp-python: safetensors -> GGUF -> its own quantizer.

The file has no vocabulary (type "no_vocab"): ids go in and out. Formats: F32; Q8_0 (blocks of 32,
8.5 bits a weight); Q6_K (blocks of 16 in 256); Q4_0 (blocks of 32, 4.5 bits, the fastest on a CPU);
Q4_K_M (the usual choice); IQ4_XS (4.25 bits). "imatrix": its quantizer is told how large the inputs
of every matrix are, see ``importance``. Where 256 does not divide a width, its quantizer falls back
to Q8_0 and to Q5_0, tensor by tensor: the note says what came of it.
Letters: H heads, E head size, D width.
Sources: llama.cpp ``conversion/gpt2.py`` and ``conversion/llama.py`` for names, the order of q and
k, and the factors of rope; ``include/llama.h``.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensor = tuple[str, tuple[int, ...], Callable[[], NDArray[np.float32]]]

NAME = "llama.cpp"
PACKAGE = "llama_cpp_python"
FILE_TYPES = {"F32": 0, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "Q6_K": 18}  # enum llama_ftype
FILE_TYPES |= {"IQ4_XS": 30}
PRECISIONS = {"F32": "fp32", "Q8_0": "int8", "Q6_K": "int8"}
PRECISIONS |= dict.fromkeys(("Q4_0", "Q4_K_M", "IQ4_XS"), "int4")
IMATRIX = " imatrix"
CALIBRATED = {f"{name}{IMATRIX}": "int4" for name in ("Q4_0", "Q4_K_M", "IQ4_XS")}
CONTEXT = 2048  # rows of the cache that is allocated: room for what is measured
CELLS = 256  # of a sequence among several: a multiple of this
BESIDE = [Path(__file__).parent.parent / "importance.py"]


def convert(checkpoint: Path, out: Path, precision: str, ours: Path) -> str:
    """Writes model.gguf."""
    full = out / "full.gguf"
    write_gguf(checkpoint, full)
    if precision == "F32":
        full.rename(out / "model.gguf")
        return ""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    kind = precision.removesuffix(IMATRIX)
    parameters.ftype = FILE_TYPES[kind]
    notes = []
    if kind != precision:
        found, about = _importance(full, checkpoint)
        parameters.imatrix = found  # which owns the memory that it points to
        notes.append(about)
    status = llama_cpp.llama_model_quantize(
        str(full).encode(), str(out / "model.gguf").encode(), parameters
    )
    full.unlink()
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status}")
    return "; ".join(filter(None, [*notes, formats(out / "model.gguf", kind)]))


def _importance(file: Path, checkpoint: Path) -> tuple[Any, str]:
    """What ``importance`` measures; that is loaded by its path, as pocketlm is not installed."""
    spec = importlib.util.spec_from_file_location("importance", BESIDE[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = json.loads((checkpoint / "config.json").read_text())
    found: tuple[Any, str] = module.imatrix(file, config.get("bos_token_id"))
    return found


def formats(file: Path, precision: str) -> str:
    """What its matrices are stored in, where that is not what the name of the precision says."""
    import gguf

    sizes: dict[str, int] = {}
    for tensor in gguf.GGUFReader(file).tensors:
        if len(tensor.shape) > 1:
            kind = tensor.tensor_type.name
            sizes[kind] = sizes.get(kind, 0) + int(tensor.n_elements)
    if list(sizes) == [precision]:
        return ""
    shares = sorted(((size / sum(sizes.values()), kind) for kind, size in sizes.items()))[::-1]
    return ", ".join(f"{share:.0%} {kind}" for share, kind in shares)


def write_gguf(checkpoint: Path, file: Path) -> None:
    """A GGUF file with the checkpoint's weights in float32."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text())
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(file, architecture)
    describe = {"gpt2": _describe_gpt2, "llama": _describe_llama}[architecture]
    layers = describe(writer, config)
    writer.add_block_count(layers)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), layers)
    extra = _rope_factors(config)
    for name, shape, _ in _tensors(checkpoint, config):
        size = 4 * math.prod(shape)
        writer.add_tensor_info(_gguf_name(names, name), shape, np.dtype(np.float32), size)
    for name, values in extra.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, read in _tensors(checkpoint, config):
        writer.write_tensor_data(np.ascontiguousarray(read(), np.float32))
    for values in extra.values():
        writer.write_tensor_data(values)
    writer.close()


def _describe_gpt2(writer: Any, config: dict[str, Any]) -> int:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config.get("layer_norm_epsilon", 1e-5))
    return int(config["n_layer"])


def _describe_llama(writer: Any, config: dict[str, Any]) -> int:
    heads, size = config["num_attention_heads"], _head_dim(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    return int(config["num_hidden_layers"])


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _gguf_name(names: Any, name: str) -> str:
    """Checkpoints of a bare decoder leave out "model.", which llama.cpp's names have."""
    for candidate in (name, f"model.{name}"):
        if (found := names.get_name(candidate, try_suffixes=(".weight", ".bias"))) is not None:
            return str(found)
    raise ValueError(f"llama.cpp has no name for the tensor {name!r}")


def arrange(name: str, tensor: NDArray[Any], config: dict[str, Any]) -> NDArray[Any]:
    """A tensor as llama.cpp stores it: linear weights (out, in), q and k in pairs."""
    if config["model_type"] == "gpt2":
        conv1d = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        return tensor.T if conv1d else tensor
    heads = config["num_attention_heads"]
    if name.endswith("q_proj.weight"):
        return interleave(tensor, heads)
    if name.endswith("k_proj.weight"):
        return interleave(tensor, config.get("num_key_value_heads") or heads)
    return tensor


def interleave(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """(H·E, D) with a head's two halves one after the other -> the halves' rows in turn.

    Rotation acts on rows i and i + E/2 in Hugging Face's order, on 2i and 2i + 1 in llama.cpp's.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)  # (H, 2, E/2, D) -> (H, E/2, 2, D)


def rope_factors(size: int, theta: float, scaling: dict[str, Any]) -> NDArray[np.float32]:
    """Llama 3's divisors (E/2,) of the rotation's frequencies; others are refused."""
    if scaling.get("rope_type") != "llama3":
        raise ValueError(f"rope scaling {scaling.get('rope_type')!r} is not converted, only llama3")
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi * theta ** (np.arange(0, size, 2) / size)
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    factors: NDArray[np.float32] = (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
    return factors


def _rope_factors(config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """The tensor that scales the rotation, if the config scales it."""
    if (scaling := config.get("rope_scaling")) is None:
        return {}
    factors = rope_factors(_head_dim(config), config["rope_theta"], scaling)
    return {"rope_freqs.weight": factors}


def _tensors(checkpoint: Path, config: dict[str, Any]) -> Iterator[Tensor]:
    """Name, shape in the GGUF file and reader of every tensor; nothing stays in memory."""
    for file in sorted(checkpoint.glob("*.safetensors")):
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        data = np.memmap(file, np.uint8, "r", offset=8 + length)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            shape = arrange(name, np.empty(entry["shape"], np.uint8), config).shape
            yield name, shape, partial(_read, data, name, entry, config)


def _read(
    data: NDArray[np.uint8], name: str, entry: dict[str, Any], config: dict[str, Any]
) -> NDArray[np.float32]:
    start, end = entry["data_offsets"]
    values = _float32(data[start:end], entry["dtype"]).reshape(entry["shape"])
    return arrange(name, values, config)


def _float32(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        wide = data.view(np.uint16).astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32)
    stored: dict[str, Any] = {"F32": np.float32, "F16": np.float16}
    values: NDArray[np.float32] = data.view(stored[dtype]).astype(np.float32, copy=False)
    return values


class Model:
    """A context of llama.cpp with what llama-bench takes: flash attention, keys and values in
    float16, batches of 2048 in parts of 512, weights repacked for the processor.
    """

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        import llama_cpp

        self._api, self._threads = llama_cpp, threads
        self._file = folder / "model.gguf"
        llama_cpp.llama_backend_init()
        file = str(self._file).encode()
        self._model = llama_cpp.llama_model_load_from_file(
            file, llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError("llama.cpp did not load the file; its log has the reason")
        self._trained = llama_cpp.llama_model_n_ctx_train(self._model)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self._context = self._new_context(1, min(CONTEXT, self._trained))
        self._many: Any = None  # a context for several sequences, when one is asked for
        self._size = (0, 0)  # its sequences, and cells of each
        said = llama_cpp.llama_print_system_info().decode()  # "CPU : SSE3 = 1 | AVX = 1 | ..."
        built = ", ".join(re.findall(r"(\w+) = 1", said))
        self.settings = f"flash attention, KV in float16, n_batch 2048, n_ubatch 512 ({built})"

    def _new_context(self, rows: int, cells: int) -> Any:
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = cells, rows
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.no_perf = True
        context = self._api.llama_init_from_model(self._model, parameters)
        if not context:
            raise RuntimeError("llama.cpp made no context; its log has the reason")
        return context

    def generate(self, ids: list[int], count: int) -> list[int]:
        """Decodes batch by batch; the largest logit is looked up in llama.cpp's own memory."""
        self._forget(self._context)
        self._prompt(ids)
        tokens = [self._best(self._context, -1)]
        while len(tokens) < count:
            self._decode(tokens[-1:])
            tokens.append(self._best(self._context, -1))
        return tokens

    def generate_many(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """As llama-batched-bench: a sequence each, a batch of one token of each a step."""
        rows = len(prompts)
        self._reserve(rows, max(map(len, prompts)) + count)
        given = [
            (token, place, row)
            for row, ids in enumerate(prompts)
            for place, token in enumerate(ids)
        ]
        ends = np.cumsum([len(ids) for ids in prompts]) - 1
        self._decode_batch(self._many, given, set(ends.tolist()))
        found = [[self._best(self._many, int(end))] for end in ends]
        for step in range(count - 1):
            batch = [
                (tokens[-1], len(prompts[row]) + step, row) for row, tokens in enumerate(found)
            ]
            self._decode_batch(self._many, batch, set(range(rows)))
            for row, tokens in enumerate(found):
                tokens.append(self._best(self._many, row))
        return found

    def _reserve(self, rows: int, length: int) -> None:
        """An empty context for so many sequences of that length; made again when it grows."""
        if self._size[0] != rows or self._size[1] < length:
            if self._many:
                self._api.llama_free(self._many)
            cells = -(-length // CELLS) * CELLS
            self._many, self._size = self._new_context(rows, rows * cells), (rows, cells)
        self._forget(self._many)

    def own_bench(self, prompt: int, generation: int) -> dict[str, float]:
        """Seconds by the loop of llama-bench: random tokens, no look at the logits."""
        random = np.random.default_rng(0)
        ids = random.integers(0, self._vocab_size, max(prompt, generation)).tolist()
        self._forget(self._context)
        started = time.perf_counter()
        if prompt:
            self._prompt(ids[:prompt])
        for token in ids[:generation]:
            self._decode([token])
            self._api.llama_synchronize(self._context)
        self._api.llama_synchronize(self._context)
        return {"seconds": time.perf_counter() - started}

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """All rows (S, V), batch by batch."""
        self._forget(self._context)
        rows = np.empty((len(ids), self._vocab_size), np.float32)
        size = self._api.llama_n_batch(self._context)
        for start in range(0, len(ids), size):
            part = rows[start : start + size]
            given = [(token, start + i, 0) for i, token in enumerate(ids[start : start + size])]
            self._decode_batch(self._context, given, set(range(len(given))))
            found = self._api.llama_get_logits(self._context)
            part[:] = np.ctypeslib.as_array(found, part.shape)
        return rows

    def bytes_per_token(self) -> int:
        """All tensors, but of a table that is no head as well one row is read."""
        import gguf

        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(self._file).tensors}
        tables = {"position_embd.weight", "rope_freqs.weight"}
        if "output.weight" in tensors:
            tables.add("token_embd.weight")
        return sum(int(tensor.n_bytes) for name, tensor in tensors.items() if name not in tables)

    def _forget(self, context: Any) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(context), False)

    def _prompt(self, ids: list[int]) -> None:
        size = self._api.llama_n_batch(self._context)
        for start in range(0, len(ids), size):
            self._decode(ids[start : start + size])

    def _decode_batch(
        self, context: Any, given: list[tuple[int, int, int]], kept: set[int]
    ) -> None:
        """A batch of (token, position, sequence); the logits of those at the places ``kept``."""
        batch = self._api.llama_batch_init(len(given), 0, 1)
        try:
            batch.n_tokens = len(given)
            for i, (token, position, sequence) in enumerate(given):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, i in kept
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if status := self._api.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode returned {status}")
        finally:
            self._api.llama_batch_free(batch)

    def _decode(self, ids: list[int]) -> None:
        array = (self._api.llama_token * len(ids))(*ids)
        batch = self._api.llama_batch_get_one(array, len(ids))
        if status := self._api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {status}")

    def _best(self, context: Any, place: int) -> int:
        logits = self._api.llama_get_logits_ith(context, place)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())
