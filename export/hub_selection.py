"""Which files of a repository are the checkpoint: config, one form of tokenizer, the weights.

Repositories hold more: other frameworks' weights, GGUF and ONNX, Meta's own layout
(``consolidated*``, ``original/``). Only files of the top folder count, as for any checkpoint.
"""

from __future__ import annotations

import re

from .errors import CheckpointError
from .hub import RemoteFile, Snapshot
from .lora.folder import fetch_advice, is_adapter_folder
from .readers.safetensors import INDEX_NAME, SINGLE_NAME
from .strict_json import LARGEST_INDEX, parse_json_object, quoted, shown
from .tokenizers import TEMPLATE_FILE
from .tokenizers.beside import ADDED_FILE, CONFIG_FILE, SPECIAL_FILE

CONFIG = "config.json"
SMALL_FILES = (
    CONFIG,
    "generation_config.json",
    CONFIG_FILE,
    SPECIAL_FILE,
    ADDED_FILE,
    TEMPLATE_FILE,
)
# As in ``export.tokenizers``: the first form of which all files are there.
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
TORCH_SINGLE_NAME = "pytorch_model.bin"
TORCH_INDEX_NAME = "pytorch_model.bin.index.json"
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,200}")


def relevant_files(snapshot: Snapshot) -> dict[str, str]:
    """Digests by name of every file that could be chosen: while they stay, so does the model."""
    files = snapshot.files
    tokenizers = {name for form in TOKENIZERS for name in form}
    names = {*SMALL_FILES, *tokenizers, INDEX_NAME}
    weights = ".safetensors" if _safetensors(files) else (".bin", TORCH_INDEX_NAME)
    return {
        name: files[name].digest
        for name in sorted(files)
        if name in names or name.endswith(weights)
    }


def small_files(snapshot: Snapshot, for_torch: bool = False) -> list[RemoteFile]:
    """Config and tokenizer. Raises CheckpointError for a repository without config.json."""
    files = snapshot.files
    if is_adapter_folder(tuple(files)):
        raise CheckpointError(
            f"{snapshot.repository}: found an adapter ({_listed(files)}), expected a checkpoint; "
            f"{fetch_advice(snapshot.repository)}"
        )
    if CONFIG not in files:
        advice = "choose a repository in the form of Hugging Face's transformers"
        if any(name.endswith(".gguf") for name in files):
            advice += ", or download one of its GGUF files and name that"
        raise CheckpointError(
            f"{snapshot.repository}: found {_listed(files)}, expected a checkpoint with {CONFIG}; "
            f"{advice}"
        )
    names = [*SMALL_FILES]
    if for_torch:
        names += [name for form in TOKENIZERS for name in form]
    else:
        names += next((form for form in TOKENIZERS if files.keys() >= set(form)), ())
    return [files[name] for name in names if name in files]


def index_file(snapshot: Snapshot, for_torch: bool = False) -> RemoteFile | None:
    """The list of shards, None where the weights are one file; safetensors before all else.

    Raises CheckpointError for one that is too large to be a list: it is not worth its download.
    """
    files = snapshot.files
    found = None
    if SINGLE_NAME not in files and INDEX_NAME in files:
        found = files[INDEX_NAME]
    elif for_torch and not _safetensors(files) and TORCH_SINGLE_NAME not in files:
        found = files.get(TORCH_INDEX_NAME)
    if found is not None and found.num_bytes > LARGEST_INDEX:
        raise CheckpointError(
            f"{snapshot.repository}: {found.name} has {found.num_bytes:,} bytes, expected at most "
            f"{LARGEST_INDEX:,} bytes of JSON; the repository is damaged"
        )
    return found


def weight_files(
    snapshot: Snapshot, index: bytes | None, for_torch: bool = False
) -> list[RemoteFile]:
    """The weights; ``index`` is the content of ``index_file``.

    ``for_torch`` takes PyTorch's own files where there are no safetensors. Raises CheckpointError
    if there are none, or more than one reading of what they are.
    """
    files = snapshot.files
    if index is not None:
        return _shards(snapshot, index, index_file(snapshot, for_torch))
    if SINGLE_NAME in files:
        return [files[SINGLE_NAME]]
    found = _safetensors(files)
    if len(found) == 1:
        return [files[found[0]]]
    if found:
        raise CheckpointError(
            f"{snapshot.repository}: found {len(found)} safetensors files "
            f"({_listed(found)}) without {INDEX_NAME}, expected one file or an index; "
            "download the right one into a folder with its config.json, and name the folder"
        )
    if for_torch and TORCH_SINGLE_NAME in files:
        return [files[TORCH_SINGLE_NAME]]
    raise CheckpointError(
        f"{snapshot.repository}: found {_listed(files)}, expected weights in {SINGLE_NAME} or "
        "shards of it; choose a repository that has them"
        + (" (or: pocketlm export --via optimum)" if _has_pickles(files) else "")
    )


def _safetensors(files: dict[str, RemoteFile]) -> list[str]:
    return [
        name
        for name in sorted(files)
        if name.endswith(".safetensors") and not name.startswith(("consolidated", "adapter_"))
    ]


def _has_pickles(files: dict[str, RemoteFile]) -> bool:
    return TORCH_SINGLE_NAME in files or TORCH_INDEX_NAME in files


def _shards(snapshot: Snapshot, index: bytes, file: RemoteFile | None) -> list[RemoteFile]:
    assert file is not None
    where = f"{snapshot.repository}: {file.name}"
    suffix = ".bin" if file.name == TORCH_INDEX_NAME else ".safetensors"
    weight_map = parse_json_object(index, where, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{where}: found weight_map {shown(weight_map)}, expected the shard of every tensor; "
            "the repository is damaged"
        )
    for name in weight_map.values():
        if not isinstance(name, str) or not _PLAIN.fullmatch(name) or not name.endswith(suffix):
            raise CheckpointError(
                f"{where}: found the shard name {shown(name)}, expected a plain name that ends "
                f"in {suffix}; the file is damaged or means to reach out of its folder"
            )
        if name not in snapshot.files:
            raise CheckpointError(
                f"{where} names the shard {quoted(name)}, which is not in the repository at "
                f"{snapshot.commit[:12]}; its upload is incomplete: choose another revision"
            )
    return [snapshot.files[name] for name in sorted(set(weight_map.values()))]


def _listed(names: dict[str, RemoteFile] | list[str]) -> str:
    shortest = sorted(names)[:6]
    more = len(names) - len(shortest)
    return (", ".join(quoted(name, 60) for name in shortest) or "no file") + (
        f" and {more} more" if more else ""
    )
