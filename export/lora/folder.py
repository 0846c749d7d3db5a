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
LORA = "LORA"  # peft_type
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


def fetch_advice(repository: str) -> str:
    """What to type for an adapter that lies on the hub."""
    return (
        f"download it into a folder, as with: hf download {repository} --local-dir lora - and "
        "merge it into its base: pocketlm export BASE OUT --adapter lora"
    )


def refuse_adapter_folder(path: Path, names: Sequence[str]) -> None:
    """Raises CheckpointError for a folder that is an adapter; says of what, and how to merge it."""
    if not is_adapter_folder(names):
        return
    kind, base = "an adapter", None
    if CONFIG_FILE in names:
        fields = load_json_object(path / CONFIG_FILE, LARGEST_CONFIG, CheckpointError)
        base = fields.get("base_model_name_or_path")
        peft_type = fields.get("peft_type")
        kind = "a LoRA adapter"
        if peft_type != LORA:  # opening it says that it cannot be merged here, and what can
            kind = f"an adapter of the kind {shown(peft_type, 40)}"
    of = f" of {shown(base)}" if isinstance(base, str) and base else ""
    name = base if isinstance(base, str) and _PLAIN.fullmatch(base) else "BASE"
    raise CheckpointError(
        f"{quoted(str(path))} is {kind}{of} and not a model of its own, expected a checkpoint; "
        f"merge it into its base: pocketlm export {shlex.quote(name)} OUT --adapter "
        f"{shlex.quote(str(path))}"
    )
