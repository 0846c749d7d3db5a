"""Llama 2's tokenizer.model: a sentencepiece BPE model with byte fallback.

The file is a protocol buffer, ``ModelProto``; read here without the sentencepiece library, whose
C++ parser is not meant for files of strangers. What is used of it:

    1 pieces (repeated):     1 piece (text)  2 score (float)  3 type
    2 trainer_spec:          3 model_type  24 treat_whitespace_as_suffix  35 byte_fallback
    3 normalizer_spec:       1 name  2 precompiled_charsmap  3 add_dummy_prefix
                             4 remove_extra_whitespaces  5 escape_whitespaces

The two neighbours whose text together has the highest score merge first; every pair that makes a
piece is a merge here, in that order. Unlike sentencepiece, which never finds them in a text,
``<s>`` and its like are recognised, as chat templates need.

Sources: ``sentencepiece_model.proto`` and ``bpe_model.cc`` of google/sentencepiece; the encoding of
protocol buffers, https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..strict_json import quoted
from . import read_tokenizer_file
from .added_tokens import Token, added_token, around, configured_tokens, wanted

BPE = 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
SPACE = "\u2581"  # how a space is spelled
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its position."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Model:
    """What the file says."""

    pieces: list[Piece]
    model_type: int = 1
    suffix: bool = False
    byte_fallback: bool = False
    normalizer: str = ""
    character_map: bytes = b""
    dummy_prefix: bool = True
    remove_spaces: bool = True
    escape_spaces: bool = True
    legacy: bool = True  # every text between special tokens gets the dummy prefix, not the first


def find(path: Path) -> tuple[Path] | None:
    """tokenizer.model, in a folder or named itself."""
    file = path / "tokenizer.model" if path.is_dir() else path
    return (file,) if file.is_file() and file.suffix == ".model" else None


def read(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer as tokenizer.json's content.

    Raises CheckpointError for a damaged file, and for a model that cannot be had exactly.
    """
    data = read_tokenizer_file(file, CheckpointError)
    try:
        model = _parse(data)
    except (ValueError, struct.error) as cause:
        raise CheckpointError(
            f"{file.name} is neither a sentencepiece model nor a file of ranks ({cause}), expected "
            "one of them; get the file again from its source"
        ) from cause
    added = {
        i: added_token(i, piece.text, special=piece.kind != USER_DEFINED)
        for i, piece in enumerate(model.pieces)
        if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED)
    }
    added |= {int(token["id"]): token for token in configured_tokens(config)}
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    ids |= {token["content"]: token_id for token_id, token in added.items()}
    begin = "<s>" if wanted(config, "add_bos_token", True) and "<s>" in ids else None
    end = "</s>" if wanted(config, "add_eos_token", False) and "</s>" in ids else None
    model = replace(
        model,
        dummy_prefix=wanted(config, "add_prefix_space", model.dummy_prefix),
        legacy=wanted(config, "legacy", True),
    )
    return converted(file.name, model, added, around(ids, begin, end))


def converted(
    name: str, model: Model, added: dict[int, Token], post_processor: Token | None
) -> dict[str, Any]:
    """The content of tokenizer.json for the ``model`` in the file ``name``.

    ``added`` are its tokens that are found in a text as they are, by id. Raises CheckpointError for
    a model that cannot be had exactly.
    """
    _refuse_inexact(name, model)
    unknown = [piece.text for piece in model.pieces if piece.kind == UNKNOWN]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added[token_id] for token_id in sorted(added)],
        "normalizer": _normalizer(model),
        "pre_tokenizer": None if model.legacy or not model.dummy_prefix else _first_prefix(),
        "post_processor": post_processor,
        "decoder": _decoder(model),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown[0] if unknown else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: i for i, piece in enumerate(model.pieces)},
            "merges": _merges(model.pieces),
        },
    }


def _refuse_inexact(name: str, model: Model) -> None:
    texts = [piece.text for piece in model.pieces]
    num_bytes = sum(piece.kind == BYTE for piece in model.pieces)
    problems = {
        f"a model of type {model.model_type}": model.model_type != BPE,
        "no byte fallback": not model.byte_fallback or num_bytes != 256,
        f"the normalizer {quoted(model.normalizer)}": bool(model.character_map),
        "the space behind a word": model.suffix,
        "spaces as they are": not model.escape_spaces,
        "the same piece twice": len(set(texts)) != len(texts),
        "an empty piece": "" in texts,
    }
    for problem, there in problems.items():
        if there:
            raise CheckpointError(
                f"{name} has {problem}, expected a BPE model with byte fallback that changes "
                "no characters; it cannot be converted exactly - take the model's tokenizer.json"
            )


def _first_prefix() -> dict[str, Any]:
    return {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": "first",
        "split": False,
    }


def _normalizer(model: Model) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = []
    if model.remove_spaces:
        steps += [
            {"type": "Replace", "pattern": {"Regex": r"\A +"}, "content": ""},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    if model.dummy_prefix and model.legacy:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    if model.remove_spaces:  # at the end, spaces and the mark itself are one to sentencepiece
        steps.append({"type": "Replace", "pattern": {"Regex": SPACE + r"+\z"}, "content": ""})
    return {"type": "Sequence", "normalizers": steps}


def _decoder(model: Model) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _merges(pieces: list[Piece]) -> list[list[str]]:
    """Every pair of pieces that together are one, the highest score first."""
    mergeable = {piece.text: i for i, piece in enumerate(pieces) if piece.kind == NORMAL}
    by_score = sorted(mergeable.items(), key=lambda item: -pieces[item[1]].score)
    merges = []
    for text, _ in by_score:
        splits = [(text[:i], text[i:]) for i in range(1, len(text))]
        pairs = [pair for pair in splits if pair[0] in mergeable and pair[1] in mergeable]
        merges += sorted(pairs, key=lambda pair: (mergeable[pair[0]], mergeable[pair[1]]))
    return [list(pair) for pair in merges]


# --- the protocol buffer ------------------------------------------------------------------------


def _parse(data: bytes) -> Model:
    pieces: list[Piece] = []
    fields: dict[str, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_message(value)))
        elif number == 2:
            spec = dict(_fields(_message(value)))
            fields |= {
                "model_type": _integer(spec.get(3, 1)),
                "suffix": bool(_integer(spec.get(24, 0))),
                "byte_fallback": bool(_integer(spec.get(35, 0))),
            }
        elif number == 3:
            spec = dict(_fields(_message(value)))
            fields |= {
                "normalizer": _message(spec.get(1, b"")).decode("utf-8"),
                "character_map": _message(spec.get(2, b"")),
                "dummy_prefix": bool(_integer(spec.get(3, 1))),
                "remove_spaces": bool(_integer(spec.get(4, 1))),
                "escape_spaces": bool(_integer(spec.get(5, 1))),
            }
    if not pieces:
        raise ValueError("it has no pieces")
    return Model(pieces, **fields)


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    score = fields.get(2, 0.0)
    if not isinstance(score, float) or score != score:
        raise ValueError("a score is not a number")
    return Piece(_message(fields.get(1, b"")).decode("utf-8"), score, _integer(fields.get(3, 1)))


def _message(value: bytes | int | float) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field is a number where a text belongs")
    return value


def _integer(value: bytes | int | float) -> int:
    if not isinstance(value, int):
        raise ValueError("a field is a text where a number belongs")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int | float]]:
    """(number, value) of every field of a message."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        value: bytes | int | float
        if wire == VARINT:
            value, position = _varint(data, position)
        elif wire in (FIXED32, FIXED64):
            size, kind = (4, "<f") if wire == FIXED32 else (8, "<d")
            value = struct.unpack_from(kind, data, position)[0]
            position += size
        elif wire == LENGTH:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError("it is cut off")
            value, position = data[position : position + length], position + length
        else:
            raise ValueError(f"wire type {wire}")
        yield number, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it is cut off")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return result, position
    raise ValueError("a number of more than ten bytes")
