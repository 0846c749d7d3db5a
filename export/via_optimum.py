"""Another source of a model: Optimum traces the graph that we do not declare.

    target = Target("out")
    with traced("bloom-560m", target) as decoder:
        export_model(decoder, target)

Any architecture that optimum-onnx exports for text generation, and torch ``.bin`` checkpoints of
the declared ones too. The tracing happens in a child process (``traced.process``); its graph is
checked (``traced.contract``), and then goes the way of all graphs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from .checkpoint import Checkpoint, load_config, open_checkpoint
from .errors import CheckpointError
from .external_data import adopt_weights
from .folder import GRAPH_FILE, GROWING, IN_PLACE
from .folder_tokenizer import read_tokenizer
from .generation_defaults import generation_defaults
from .graph import Weight
from .manifest import FLOAT32, CacheKind, Tracing
from .publishing import Target, check_free_space, folder_beside
from .strict_json import LARGEST_INDEX, load_json_object, quoted
from .tokenizers import given_tokenizer
from .tokenizers.opening import open_source
from .traced.contract import check_operators, check_trace, read_shape
from .traced.in_place import ATTENTION, AttendInPlace
from .traced.process import Trace, run_trace
from .traced.simplify import LiftConstants, Simplify
from .traced.torch_zip import check_torch_file
from .writing import Decoder, require_tokenizer

TORCH_FILE = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"


@contextmanager
def traced(
    path: str | Path,
    target: Target,
    *,
    tokenizer: str | Path | None = None,
    origin: dict[str, str] | None = None,
    rewrite: bool = True,
) -> Iterator[Decoder]:
    """Traces the checkpoint folder ``path``: a decoder for ``export_model``, inside the block.

    Needs the extra "optimum", and room beside ``target``, where the folder is to be. ``origin`` is
    the repository and commit of a download. Without ``rewrite`` the attention stays as it was
    traced. Raises what ``export_model`` raises, CheckpointError for what Optimum or our loop cannot
    do, and MissingExtraError.
    """
    checkpoint = replace(open_for_tracing(path, tokenizer), origin=origin or {})
    check_free_space(target, 2 * float32_bytes(checkpoint))
    if checkpoint.format == "torch":
        for file in checkpoint.files:
            check_torch_file(file)
    with folder_beside(target.path) as folder:
        trace = run_trace(checkpoint.path, folder)
        yield traced_decoder(checkpoint, folder, trace, rewrite=rewrite)


def open_for_tracing(path: str | Path, tokenizer: str | Path | None = None) -> Checkpoint:
    """The checkpoint at ``path`` with a tokenizer; of torch ``.bin`` files without tensors.

    Pickles are not opened here: names and sizes of the files are all that is looked at.
    """
    path = Path(path).absolute()
    if is_torch_folder(path):
        checkpoint = open_torch_folder(path, tokenizer)
    else:
        checkpoint = open_checkpoint(path, tokenizer)
    if checkpoint.format in ("llm.c", "gguf"):
        raise CheckpointError(
            f"{path}: found a checkpoint of {checkpoint.format}, expected a folder that "
            "transformers reads; leave out --via optimum"
        )
    if "quantization_config" in checkpoint.config:
        raise CheckpointError(
            f"{path}: config.json has a quantization_config, expected weights in float32, float16 "
            "or bfloat16; quantized checkpoints cannot be exported"
        )
    open_source(require_tokenizer(checkpoint))  # now: tracing may take hours
    return checkpoint


def is_torch_folder(path: Path) -> bool:
    """Whether the weights in the folder ``path`` are torch files and nothing else."""
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    return not any(name.endswith(".safetensors") for name in names) and bool(
        names & {TORCH_FILE, TORCH_INDEX}
    )


def open_torch_folder(path: Path, tokenizer: str | Path | None) -> Checkpoint:
    """What lies beside the weights, and which files hold them."""
    generation = path / "generation_config.json"
    return Checkpoint(
        path=path,
        config=load_config(path / "config.json"),
        tensors={},
        generation_config=load_config(generation) if generation.is_file() else {},
        format="torch",
        files=(*torch_files(path), path / "config.json"),
        tokenizer=given_tokenizer(tokenizer, path),
    )


def torch_files(path: Path) -> list[Path]:
    """pytorch_model.bin, or the index and all the shards it names."""
    if (path / TORCH_FILE).is_file():
        return [path / TORCH_FILE]
    index = path / TORCH_INDEX
    weight_map = load_json_object(index, LARGEST_INDEX, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: found no weight_map, expected the file of every tensor; "
            "get the file again from its source"
        )
    shards = sorted({str(name) for name in weight_map.values()})
    for shard in shards:
        if shard != Path(shard).name or "\\" in shard:
            raise CheckpointError(
                f"{index}: found the file name {quoted(shard)}, expected a plain name in the "
                "folder; the index is damaged or harmful"
            )
        if not (path / shard).is_file():
            raise CheckpointError(
                f"{path / shard}: missing, expected the shard that {TORCH_INDEX} names; "
                "download it into the folder"
            )
    return [*(path / shard for shard in shards), index]


def float32_bytes(checkpoint: Checkpoint) -> int:
    """What the weights take as float32; of torch files, about."""
    if checkpoint.tensors:
        return sum(4 * math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    stored = sum(file.stat().st_size for file in checkpoint.files if file.suffix == ".bin")
    dtype = checkpoint.config.get("torch_dtype") or checkpoint.config.get("dtype")
    halves = dtype in ("float16", "bfloat16")
    return 2 * stored if halves else stored


def traced_decoder(
    checkpoint: Checkpoint, folder: Path, trace: Trace, *, rewrite: bool = True
) -> Decoder:
    """The graph in ``folder``, checked and simplified, with lazy weights that are read from there.

    Attention is rewritten to a cache in place where that is possible, unless ``rewrite`` is False.
    """
    model = ir.load(folder / GRAPH_FILE)
    check_trace(model)
    shape = read_shape(model, trace.sizes)
    parameters = [value.const_value for value in model.graph.initializers.values()]
    num_parameters = sum(tensor.size for tensor in parameters if tensor is not None)
    constants = LiftConstants().apply(model).changed
    adopt_weights(model, folder)
    for name in constants:
        tensor = model.graph.initializers[name].const_value
        if isinstance(tensor, Weight):
            tensor.learned = False
    Simplify().apply(model)
    reason: str | None = "asked to stay as traced"
    if rewrite:
        reason = AttendInPlace(shape).apply(model).skipped.get(ATTENTION)
    check_operators(model)
    defaults, defaults_notes = generation_defaults(checkpoint, shape.vocab_size)
    files, tokenizer_notes = read_tokenizer(checkpoint.tokenizer, shape.vocab_size)
    return Decoder(
        model=model,
        shape=shape,
        num_tensors=len(parameters),
        num_parameters=num_parameters,
        architecture=str(checkpoint.config["model_type"]),
        source=checkpoint.source,
        bytes_to_read=float32_bytes(checkpoint),
        config=checkpoint.config,
        generation_config=defaults,
        tokenizer_files=files,
        notes=(*defaults_notes, *tokenizer_notes),
        cache=CacheKind(layout=GROWING if reason else IN_PLACE, dtype=FLOAT32),
        traced=Tracing(
            made_by=", ".join(f"{name} {number}" for name, number in trace.versions.items()),
            not_rewritten=reason or None,
        ),
    )
