"""tokenizer.json in the tokenizers library: the one place that decides which of them can be run.

An export opens a tokenizer here before it publishes it, and the runtime opens it here again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import tokenizers

from ..errors import CheckpointError, PocketLMError
from ..memory import exhausted, is_exhaustion
from . import TokenizerSource
from .token_bytes import ByteRule, looks_back, read_decoder


def open_library(data: bytes, where: object, error: type[PocketLMError]) -> tokenizers.Tokenizer:
    """The tokenizer in ``data``, the content of a tokenizer.json, once it can encode and decode.

    Truncation, padding and BPE dropout set in it are switched off. Raises ``error``, its message
    beginning with ``where``, for content that the library refuses or cannot encode with.
    """
    with library_errors("reading it", where, error):
        library = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        library.no_truncation()
        library.no_padding()
        if getattr(library.model, "dropout", None) is not None:
            library.model.dropout = None
    with library_errors("encoding a text", where, error):
        library.encode("")  # a text of its own might not be in the vocabulary
    decoding(library, where, error)
    return library


def open_source(source: TokenizerSource) -> tokenizers.Tokenizer:
    """The tokenizer of a checkpoint as a model folder will have it; CheckpointError as above."""
    data = source.folder_files(source.read())["tokenizer.json"]
    return open_library(data, source.files[0], CheckpointError)


def decoding(
    library: tokenizers.Tokenizer, where: object, error: type[PocketLMError]
) -> tuple[ByteRule | None, int]:
    """What ``read_decoder`` and ``looks_back`` say of an open tokenizer."""
    with library_errors("reading the decoder", where, error):
        state = None if library.decoder is None else library.decoder.__getstate__()
    decoder = json.loads(state) if state else None
    return read_decoder(decoder), looks_back(decoder)


@contextmanager
def library_errors(doing: str, where: object, error: type[PocketLMError]) -> Iterator[None]:
    """Turns every failure of the library into an ``error`` that names the file.

    A panic in it arrives as PyO3's PanicException, which derives from BaseException alone and
    cannot be imported; KeyboardInterrupt, SystemExit and others of that kind pass through.
    """
    try:
        yield
    except BaseException as cause:
        if not isinstance(cause, Exception) and type(cause).__name__ != "PanicException":
            raise
        if isinstance(cause, Exception) and is_exhaustion(cause):
            raise exhausted(f"{where}: {doing}") from cause
        said = " ".join(str(cause).split())
        raise error(
            f"{where}: {doing} failed ({type(cause).__name__}: {said[:300]}), expected a "
            "tokenizer.json of the tokenizers library; take the tokenizer from where the weights "
            "are from, and export the checkpoint again"
        ) from cause
