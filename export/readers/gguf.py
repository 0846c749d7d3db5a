"""Reads a GGUF file of llama.cpp: weights, configuration and tokenizer in one, or split into parts.

Parts are named NAME-00001-of-00003.gguf; the first has all of the metadata, and is the one to name.
A file's own tokenizer is used, whatever lies beside it. Its format: ``gguf.header``; blocks of
numbers are unpacked by the package ``gguf``, an extra of the same name. What quantization lost
before the file was written stays lost.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..gguf.families import read_family
from ..gguf.header import AGAIN, GGUFFile, is_gguf, read_header
from ..gguf.metadata import Metadata
from ..gguf.tokenizer import end_ids, tokenizer_source
from ..tokenizers import TokenizerSource

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"


def matches(path: Path) -> bool:
    """Tells whether ``path`` is a file that begins as GGUF does."""
    return is_gguf(path)


def read(path: Path, tokenizer: TokenizerSource | None = None) -> Checkpoint:
    """Opens the checkpoint in the file ``path``, and its other parts; reads headers only.

    ``tokenizer`` stands in for the file's own. Raises CheckpointError, and MissingExtraError where
    weights are quantized and the package ``gguf`` is not there.
    """
    first = read_header(path)
    files = [first, *_other_parts(first)]
    about = Metadata(path.name, first.metadata)
    stored = {name: tensor for file in files for name, tensor in file.tensors.items()}
    _check_parts(about, files, len(stored))
    config, tensors = read_family(about, stored)
    ends = end_ids(first)
    return Checkpoint(
        path=path,
        config=config | ends,
        tensors=tensors,
        generation_config=ends,
        format="gguf",
        files=tuple(file.path for file in files),
        tokenizer=tokenizer or tokenizer_source(first),
    )


def _other_parts(first: GGUFFile) -> list[GGUFFile]:
    """The files that belong to the first one, by its number of parts."""
    about = Metadata(first.path.name, first.metadata)
    if SPLIT_COUNT not in about or about.count(SPLIT_COUNT) == 1:
        return []
    count = about.count(SPLIT_COUNT, most=99_999)
    named = PART.fullmatch(first.path.name)
    if named is None or int(named[3]) != count:
        raise CheckpointError(
            f"{first.path.name} is one of {count:,} parts, expected its name to end in "
            f"-00001-of-{count:05}.gguf; give the parts the names that they had"
        )
    if not about.is_number(SPLIT_NUMBER, 0):
        raise CheckpointError(
            f"{first.path.name} is part {named[2]} of {count:,}, expected the first; name "
            f"{_part(named[1], 0, count)}"
        )
    paths = [first.path.with_name(_part(named[1], i, count)) for i in range(1, count)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{first.path.name}: found no {missing[0]}{more} beside it, expected all {count:,} "
            "parts in one folder; download the others as well"
        )
    return [_checked(read_header(path), i, count) for i, path in enumerate(paths, 1)]


def _part(name: str, number: int, count: int) -> str:
    return f"{name}-{number + 1:05}-of-{count:05}.gguf"


def _checked(file: GGUFFile, number: int, count: int) -> GGUFFile:
    """A part, if it says that it is this one."""
    about = Metadata(file.path.name, file.metadata)
    for key, expected in ((SPLIT_NUMBER, number), (SPLIT_COUNT, count)):
        if not about.is_number(key, expected):
            raise about.wrong(key, f"{expected}, as its name says", "take all parts from one place")
    return file


def _check_parts(about: Metadata, files: list[GGUFFile], num_tensors: int) -> None:
    """That no tensor is in two parts, and none missing."""
    listed = sum(len(file.tensors) for file in files)
    if listed != num_tensors:
        raise CheckpointError(
            f"{about.file} and its parts have {listed - num_tensors:,} tensors twice, expected "
            "each once; take all parts from one place"
        )
    wrong = SPLIT_TENSORS in about and not about.is_number(SPLIT_TENSORS, num_tensors)
    if len(files) > 1 and wrong:
        raise about.wrong(SPLIT_TENSORS, f"{num_tensors:,}, as many as there are", AGAIN)
