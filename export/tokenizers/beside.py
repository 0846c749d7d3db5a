"""The files beside a tokenizer that say more about it, read in the order of transformers.

    tokenizer_config.json    names special tokens, lists added ones, holds the chat template
    special_tokens_map.json  names special tokens; wins, but is read only where the former has no
                             ``added_tokens_decoder``, as in layouts before transformers 4.34
    added_tokens.json        ids of added tokens by spelling; read likewise
    chat_template.jinja      wins over the template in tokenizer_config.json
    config.json              the class of the tokenizer where tokenizer_config.json names none: by
                             name, else that of the model's kind

Sources: ``AutoTokenizer`` and ``PreTrainedTokenizerBase._from_pretrained`` of transformers 4.57 and
5.24.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..strict_json import LARGEST_CONFIG, load_json_object, shown

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
DECODER = "added_tokens_decoder"
NAMES = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
EXTRA = ("additional_special_tokens", "extra_special_tokens")  # of transformers 4 and 5
CLASS = "tokenizer_class"
# By ``model_type``: those classes that are not told by their files.
CLASSES = {
    **dict.fromkeys(("gpt2", "phi", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("qwen2", "qwen3"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma2", "gemma3_text"), "GemmaTokenizer"),
    "gpt_neox": "GPTNeoXTokenizer",
}
LARGEST_FILE = 5_000_000  # bytes; Gemma 3's tokenizer_config.json has 1.2 million


@dataclass(frozen=True)
class Beside:
    """What the files say together."""

    files: tuple[Path, ...]
    config: dict[str, Any]  # tokenizer_config.json's content, with the names of the special tokens
    added: dict[str, int]  # added_tokens.json's content


def read_beside(folder: Path) -> Beside:
    """Reads those that are there. Raises CheckpointError for one that is not what it should be."""
    files = []

    def content(name: str) -> dict[str, Any]:
        file = folder / name
        if not file.is_file():
            return {}
        files.append(file)
        return load_json_object(file, LARGEST_FILE, CheckpointError)

    config = content(CONFIG_FILE)
    added = {}
    if DECODER not in config:
        config |= _checked_names(content(SPECIAL_FILE))
        added = _checked_ids(content(ADDED_FILE))
    if config.get(CLASS) is None:
        config |= _class_of_model(folder / "config.json")
    return Beside(tuple(files), config, added)


def _class_of_model(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    fields = load_json_object(file, LARGEST_CONFIG, CheckpointError)
    found = fields.get(CLASS) or CLASSES.get(str(fields.get("model_type")))
    return {CLASS: found} if isinstance(found, str) else {}


def _checked_names(names: dict[str, Any]) -> dict[str, Any]:
    for name, value in names.items():
        values = value if isinstance(value, list) and name in EXTRA else [value]
        if isinstance(value, dict) and name == EXTRA[1] and "content" not in value:
            values = list(value.values())
        for found in values:
            text = found.get("content") if isinstance(found, dict) else found
            if not isinstance(text, str | None) or (isinstance(found, dict) and text is None):
                raise CheckpointError(
                    f"{SPECIAL_FILE}: {name} is {shown(value, 80)}, expected a token or its "
                    "properties; the file is damaged: get it again from its source"
                )
    return names


def _checked_ids(added: dict[str, Any]) -> dict[str, int]:
    for token, token_id in added.items():
        if not token or type(token_id) is not int or not 0 <= token_id < 1 << 31:
            raise CheckpointError(
                f"{ADDED_FILE}: {shown(token)} has the id {shown(token_id)}, expected tokens with "
                "their ids; the file is damaged: get it again from its source"
            )
    return added
