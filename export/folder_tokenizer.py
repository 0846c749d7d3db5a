"""The tokenizer of a checkpoint as its model folder gets it, checked against the vocabulary.

A tokenizer may have fewer tokens than the embedding has rows: published ones are padded, by any
amount, and a row without a token adds no text should the model choose it. Tokens may also have been
added beyond the embedding (Gemma 3's placeholder of images): no text leads to them but the one that
spells them, and a prompt that has one is refused when it is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .generation_defaults import is_id
from .strict_json import quoted, shown
from .tokenizers import TokenizerSource
from .tokenizers.opening import open_library

# Rows that published models pad an embedding with: multiples of 64 to 1024. More is told.
USUAL_PADDING = 1024


def read_tokenizer(
    tokenizer: TokenizerSource | None, vocab_size: int
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The files of a tokenizer, and lines that a person should read about them.

    Read now: what that takes of memory is over before a plan is made. Raises CheckpointError if it
    cannot belong to a vocabulary of ``vocab_size`` or cannot be run.
    """
    if tokenizer is None:
        return {}, ()
    content = tokenizer.read()
    file = tokenizer.files[0]
    notes = _check_size(file, content, vocab_size)
    files = tokenizer.folder_files(content)
    del content
    _check_runs(file, files["tokenizer.json"], vocab_size)
    return files, notes


def _check_runs(file: Path, data: bytes, vocab_size: int) -> None:
    library = open_library(data, file, CheckpointError)
    around = library.encode("").ids
    if around and max(around) >= vocab_size:
        raise CheckpointError(
            f"{file}: found the token id {max(around)} put around every text, expected 0 to "
            f"{vocab_size - 1}, as in config.json; the tokenizer belongs to another model"
        )


def _check_size(file: Path, content: dict[str, Any], vocab_size: int) -> tuple[str, ...]:
    """Raises CheckpointError for tokens that ordinary texts lead to and the embedding has not."""
    ordinary, added = _token_ids(file, content)
    size = max(ordinary.values(), default=-1) + 1
    if size > vocab_size and any(
        token_id >= vocab_size for token, token_id in ordinary.items() if token not in added
    ):
        raise CheckpointError(
            f"{file}: found {size} tokens, expected at most {vocab_size}, as in config.json; the "
            "tokenizer belongs to another model"
        )
    beyond = [token for token, token_id in added.items() if token_id >= vocab_size]
    notes = []
    if beyond:
        listed = ", ".join(quoted(token, 40) for token in beyond[:3])
        more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        notes.append(
            f"{file.name} has {listed}{more} beyond the {vocab_size:,} rows of the embedding: a "
            "prompt with such a token is refused"
        )
    total = max(size, *(token_id + 1 for token_id in added.values()), 0)
    if total < vocab_size - USUAL_PADDING:
        notes.append(
            f"{file.name} has {total:,} tokens, the embedding {vocab_size:,} rows: should the "
            "model choose one of the others, it adds no text"
        )
    return tuple(notes)


def _token_ids(file: Path, content: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Ids by spelling, of the vocabulary and of the tokens added to it."""
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list):
        raise CheckpointError(
            f"{file}: found no model.vocab, expected a tokenizer of the tokenizers library; "
            "take tokenizer.json from the same place as the weights"
        )
    if isinstance(vocab, list):  # [text, score] of a Unigram model
        pieces = [entry[0] if isinstance(entry, list) and entry else entry for entry in vocab]
        vocab = {str(piece): token_id for token_id, piece in enumerate(pieces)}
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise CheckpointError(
            f"{file}: found added_tokens that are {shown(added)}, expected a list; the file is "
            "damaged: get it again from its source"
        )
    entries = [entry if isinstance(entry, dict) else {} for entry in added]
    for token_id in [*vocab.values(), *(entry.get("id") for entry in entries)]:
        if not is_id(token_id):
            raise CheckpointError(
                f"{file}: found the token id {shown(token_id)}, expected 0 or above; the file is "
                "damaged: get it again from its source"
            )
    return vocab, {str(entry.get("content")): entry["id"] for entry in entries}
