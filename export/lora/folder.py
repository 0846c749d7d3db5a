"""What an adapter's folder is told by, and what to type where one was given as the model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError
from ..strict_json import LARGEST_CONFIG, load_json_object, quoted, shown

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PICKLE_ADVICE = (
    "pickle files can run code when loaded, so pocketlm never loads them; convert it once, where "
    "you trust the file: safetensors.torch.save_file(torch.load("
    f"{PICKLE_FILE!r}, weights_only=True), {WEIGHTS_FILE!r})"
)
_PLAIN = re.compile(r"[\w./\\@:~ -]{1,200}")


def is_adapter_folder(names: Sequence[str]) -> bool:
    """Whether files of these ``names`` are an adapter without the weights of a model."""
    weights = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf")
    others = [n for n in names if n.endswith(weights) and not n.startswith("adapter_")]
    return not others and bool({CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE} & set(names))


def refuse_adapter_folder(path: Path, names: Sequence[str]) -> None:
    """Raises CheckpointError for a folder that is an adapter; says of what, and how to merge it."""
    if not is_adapter_folder(names):
        return
    kind, base = "an adapter", None
    if CONFIG_FILE in names:
        fields = load_json_object(path / CONFIG_FILE, LARGEST_CONFIG, CheckpointError)
        base = fields.get("base_model_name_or_path")
        peft_type = fields.get("peft_type")
        is_lora = peft_type == "LORA"
        kind = "a LoRA adapter" if is_lora else f"an adapter of peft's kind {shown(peft_type, 40)}"
    raise CheckpointError(f"{quoted(str(path))} {advice(kind, base, str(path))}")


def advice(kind: str, base: object, path: str) -> str:
    """That something is ``kind``, of which ``base`` if that is known, and what to type."""
    of = f" of {shown(base)}" if isinstance(base, str) and base else ""
    name = base if isinstance(base, str) and _PLAIN.fullmatch(base) else "BASE"
    return (
        f"is {kind}{of} and not a model of its own, expected a checkpoint; merge it into its base: "
        f"pocketlm export {shlex.quote(name)} OUT --adapter {shlex.quote(path)}"
    )
