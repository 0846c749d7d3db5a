"""Whether models share a tokenizer: only then do their predictions at a position compare."""

from __future__ import annotations

import json
from typing import Any

import tokenizers

from ...export.errors import RequestError
from ...export.folder import ModelFolder
from ...runtime.tokenizer import Tokenizer

ADVICE = "compare models made from the same checkpoint, or evaluate them one at a time"
# How a file is cut to length is not asked of it here: Tokenizer.open switches these off.
IGNORED = ("version", "truncation", "padding")


def check_same_tokenizer(folders: dict[str, ModelFolder]) -> None:
    """RequestError that names the first model whose tokenizer is not the first model's, and how."""
    (first, reference), *others = folders.items()
    for name, folder in others:
        if difference := _difference(reference, folder):
            raise RequestError(
                f"the tokenizers of {first} and {name} differ: {difference}; expected the same; "
                f"{ADVICE}"
            )


def _difference(a: ModelFolder, b: ModelFolder) -> str | None:
    if a.shape.vocab_size != b.shape.vocab_size:
        return f"found logits for {a.shape.vocab_size} and {b.shape.vocab_size} tokens"
    digests = [folder.files["tokenizer.json"].sha256 for folder in (a, b)]
    if digests[0] == digests[1]:
        return None
    left, right = _content(a), _content(b)
    tokens, others = _vocabulary(left), _vocabulary(right)
    if len(tokens) != len(others):
        return f"found {len(tokens)} and {len(others)} tokens"
    for token_id in sorted(tokens | others):
        one, other = tokens.get(token_id), others.get(token_id)
        if one != other:
            return f"found {one!r} and {other!r} for token {token_id}"
    for section in sorted(left | right):
        if section not in IGNORED and left.get(section) != right.get(section):
            return f"found the same tokens, but another {section!r} in tokenizer.json"
    return None


def _content(folder: ModelFolder) -> dict[str, Any]:
    """tokenizer.json as the library writes it, so that spelling and order do not count."""
    path = folder.path / "tokenizer.json"
    Tokenizer.open(path)  # raises the error of a damaged one
    content: dict[str, Any] = json.loads(tokenizers.Tokenizer.from_file(str(path)).to_str())
    return content


def _vocabulary(content: dict[str, Any]) -> dict[int, str]:
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: [token, score], by id
        vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
    found = {token_id: token for token, token_id in vocabulary.items()}
    return found | {token["id"]: token["content"] for token in content["added_tokens"]}
