"""An adapter's folder as peft saves it: adapter_config.json and adapter_model.safetensors.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight          (r, in)
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight          (out, r)
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias            (out,), with lora_bias
    base_model.model.model.embed_tokens.lora_embedding_A                    (r, V)
    base_model.model.model.embed_tokens.lora_embedding_B                    (D, r)
    base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta  (tokens, D)
    base_model.model.lm_head.weight                                         whole, modules_to_save
    base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias        whole, bias
    base_model.model.model.embed_tokens.base_layer.weight                   whole, of the base

Before ``weight`` older files also have the name of the adapter (``lora_A.default.weight``). Headers
are read when it is opened, tensors when they are merged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ..checkpoint import READABLE_DTYPES, CheckpointTensor
from ..errors import CheckpointError
from ..readers.safetensors import read_file
from ..strict_json import quoted
from .asked import AskedAdapter, asked_adapter
from .changes import Read
from .config import LoraConfig, read_config
from .folder import CONFIG_FILE, PICKLE_ADVICE, PICKLE_FILE, WEIGHTS_FILE

PREFIXES = ("base_model.model.", "_orig_mod.", "module.", "_fsdp_wrapped_module.")
REMEMBERED = 8  # tensors of an adapter whose values are kept, as pieces of one weight need them

_NAME = r"(?:\.[^.]+)?"  # that of the adapter
# What the end of a tensor's name says it is.
_PARTS = {
    "A": re.compile(rf"(.+)\.lora_A{_NAME}\.weight"),
    "B": re.compile(rf"(.+)\.lora_B{_NAME}\.weight"),
    "bias of B": re.compile(rf"(.+)\.lora_B{_NAME}\.bias"),
    "embedding A": re.compile(rf"(.+)\.lora_embedding_A{_NAME}"),
    "embedding B": re.compile(rf"(.+)\.lora_embedding_B{_NAME}"),
    "tokens": re.compile(rf"(.+)\.token_adapter\.trainable_tokens_delta{_NAME}"),
}
_SAVED = re.compile(rf"(.+)\.modules_to_save{_NAME}\.([^.]+)")
_ORIGINAL = re.compile(r"(.+)\.original_module\.([^.]+)")
_BASE_LAYER = re.compile(r"(.+)\.base_layer\.([^.]+)")


@dataclass(frozen=True)
class Whole:
    """A parameter that is stored whole; ``saved``: as modules_to_save are, not the base's own."""

    tensor: CheckpointTensor
    saved: bool


@dataclass(frozen=True)
class Adapter:
    """An open adapter; modules and parameters are named as transformers names them."""

    path: Path
    weight: float
    config: LoraConfig
    files: tuple[Path, ...]
    parts: dict[str, dict[str, CheckpointTensor]] = field(default_factory=dict)  # by module
    whole: dict[str, Whole] = field(default_factory=dict)  # by parameter
    read: Read = field(default_factory=lambda: lru_cache(REMEMBERED)(CheckpointTensor.read))


def open_adapter(asked: str | Path | AskedAdapter, weight: float | None = None) -> Adapter:
    """Opens the adapter in a folder, ``DIR`` or ``DIR:0.5``; ``weight`` overrides the latter.

    Raises RequestError for a weight that is none, and CheckpointError, which names the folder, for
    what is no LoRA adapter of peft's, or one that is not plain, or is damaged.
    """
    found = asked_adapter(asked)
    if weight is not None:
        found = AskedAdapter(found.folder, weight)
    path = Path(found.folder).absolute()  # tensors are read later
    path = path.resolve() if path.name in ("", "..") else path
    try:
        return _open(path, found.weight)
    except CheckpointError as error:
        raise CheckpointError(f"adapter {quoted(str(found.folder), 200)}: {error}") from error


def _open(path: Path, weight: float) -> Adapter:
    if not path.is_dir():
        found = "is a file" if path.exists() else "is not there"
        raise CheckpointError(
            f"it {found}, expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}; check the path "
            "(a weight stands behind a colon, as lora/:0.5); one on the hub is downloaded before"
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (path / name).exists():
            pickled = name == WEIGHTS_FILE and (path / PICKLE_FILE).exists()
            raise CheckpointError(
                f"found {PICKLE_FILE if pickled else f'no {name}'}, expected {CONFIG_FILE} and "
                f"{WEIGHTS_FILE}; "
                + (PICKLE_ADVICE if pickled else "save the adapter with peft's save_pretrained")
            )
    config = read_config(path)
    tensors = read_file(path / WEIGHTS_FILE)
    if not tensors:
        raise CheckpointError(
            f"{WEIGHTS_FILE} holds no tensor, expected those of an adapter; get it again from its "
            "source"
        )
    adapter = Adapter(path, weight, config, (path / CONFIG_FILE, path / WEIGHTS_FILE))
    for stored, tensor in tensors.items():
        if tensor.dtype not in READABLE_DTYPES:
            raise CheckpointError(
                f"{WEIGHTS_FILE}: tensor {quoted(stored)} is {tensor.dtype}, expected one of "
                f"{', '.join(READABLE_DTYPES)}; quantized adapters cannot be merged"
            )
        _sort(adapter, tensor)
    return adapter


def _sort(adapter: Adapter, tensor: CheckpointTensor) -> None:
    """Puts ``tensor`` where it belongs by its name."""
    name = _bare(tensor.name)
    for part, pattern in _PARTS.items():
        if match := pattern.fullmatch(name):
            parts = adapter.parts.setdefault(match[1], {})
            _refuse_second(parts.get(part), tensor, f"the {part} of {match[1]}")
            parts[part] = tensor
            return
    if "lora_magnitude_vector" in name:
        raise _unknown(tensor, "which is of DoRA")
    if ".lora_" in name or "token_adapter" in name:
        raise _unknown(tensor, "of a kind that is not known")
    if _ORIGINAL.fullmatch(name):
        return  # the base's own, beside the one that was trained
    for pattern in (_SAVED, _BASE_LAYER):
        if match := pattern.fullmatch(name):
            name = f"{match[1]}.{match[2]}"
            break
    else:
        pattern = _SAVED if adapter.config.targets.saves(name.rpartition(".")[0]) else _BASE_LAYER
    known = adapter.whole.get(name)
    _refuse_second(known.tensor if known else None, tensor, name)
    adapter.whole[name] = Whole(tensor, saved=pattern is _SAVED)


def _bare(name: str) -> str:
    """``name`` without what peft and trainers put before and into it."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name.replace("._orig_mod.", ".").replace("._fsdp_wrapped_module.", ".")


def _refuse_second(first: CheckpointTensor | None, second: CheckpointTensor, what: str) -> None:
    if first is not None:
        raise CheckpointError(
            f"{WEIGHTS_FILE}: tensors {quoted(first.name)} and {quoted(second.name)} are both "
            f"{quoted(what)}, expected one; the file mixes two adapters"
        )


def _unknown(tensor: CheckpointTensor, what: str) -> CheckpointError:
    return CheckpointError(
        f"{WEIGHTS_FILE}: found a tensor {quoted(tensor.name)} {what}, expected those of a plain "
        "LoRA adapter; merge it with peft (model.merge_and_unload()), save the result with "
        "save_pretrained, and export that"
    )
