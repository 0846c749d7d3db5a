"""One file per form in which tokenizers are published; each becomes the content of tokenizer.json.

A form offers ``find(folder, config)``: the source in ``folder``, or None. ``config`` is the content
of tokenizer_config.json. Finding looks at names; the files are read by ``TokenizerSource.read``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import CheckpointError, PocketLMError
from ..regular_file import RegularFile
from ..strict_json import quoted
from .beside import CONFIG_FILE, DECODER, Beside, read_beside
from .configured import Rewritten, configured, decoder_of, with_class_defaults

TEMPLATE_FILE = "chat_template.jinja"
LARGEST_TOKENIZER = 64_000_000  # bytes; Gemma 3's has 33 million, with 2.2 million values
TOKENIZER_VALUES = 4_000_000  # keys and values
LARGEST_TEMPLATE = 1_000_000  # bytes

# In order of preference: what is published for the library comes before what must be converted.
FORMS = ("library", "tiktoken", "sentencepiece", "vocab_merges")

Content = dict[str, Any]


@dataclass(frozen=True)
class TokenizerSource:
    """The tokenizer of a checkpoint, not yet read."""

    files: tuple[Path, ...]  # what all of it comes from
    read: Callable[[], Content]  # tokenizer.json's content; raises CheckpointError
    converted: bool  # from another form
    config: Content  # tokenizer_config.json's content and the special tokens named beside it
    chat_template: str | None  # chat_template.jinja's text

    @property
    def name(self) -> str:
        return self.files[0].name

    def folder_files(self, content: Content) -> dict[str, bytes]:
        """What a model folder holds of it, by name; ``content`` is what ``read`` returned.

        A tokenizer.json comes along byte for byte, unless the files beside it say more.
        """
        config = with_class_defaults(self.config, content)
        files = {
            "tokenizer.json": self._spelled(content),
            # However little it says: without it transformers.js opens no tokenizer.
            CONFIG_FILE: json.dumps(config, indent=1, ensure_ascii=False).encode(),
        }
        if self.chat_template is not None:
            files[TEMPLATE_FILE] = self.chat_template.encode()
        return files

    def _spelled(self, content: Content) -> bytes:
        if self.converted or isinstance(content, Rewritten):
            return json.dumps(content, ensure_ascii=False).encode()
        return read_tokenizer_file(self.files[0], CheckpointError)


def find_tokenizer(path: Path) -> TokenizerSource | None:
    """The tokenizer in the folder ``path``, or the one that the file ``path`` is.

    None if there is none. Raises CheckpointError for a file beside it that cannot be read; what is
    wrong with the tokenizer itself shows when it is read.
    """
    folder = path if path.is_dir() else path.parent
    beside = read_beside(folder)
    template_file = [file for file in [folder / TEMPLATE_FILE] if file.is_file()]
    template = read_template(template_file[0], CheckpointError) if template_file else None
    for name in FORMS:
        form = importlib.import_module(f"{__name__}.{name}")
        files = form.find(path)
        if files is not None:
            return TokenizerSource(
                files=(*files, *beside.files, *template_file),
                read=partial(_read, form, files, beside),
                converted=name != "library",
                config=beside.config,
                chat_template=template,
            )
    return None


def _read(form: ModuleType, files: tuple[Path, ...], beside: Beside) -> Content:
    config, added = beside.config, beside.added
    if added and files[0].name != "tokenizer.json":
        config = config | {DECODER: decoder_of(config, added)}
    return configured(form.read(*files, config), config, added)


def given_tokenizer(given: str | Path | None, folder: Path) -> TokenizerSource | None:
    """The tokenizer at ``given``, or where nothing is given the one in ``folder``, if any."""
    if given is not None:
        return open_tokenizer(Path(given).absolute())
    return find_tokenizer(folder)


def open_tokenizer(path: Path) -> TokenizerSource:
    """The tokenizer at ``path``, which must be there: CheckpointError otherwise."""
    if path.suffix == ".gguf":
        raise CheckpointError(
            f"{path}: found a GGUF file, expected a tokenizer.json or a folder with one; take the "
            "tokenizer from where the model was published first"
        )
    try:
        found = find_tokenizer(path)
    except (OSError, ValueError):  # a name that is no path
        found = None
    if found is None:
        raise CheckpointError(
            f"there is no tokenizer at {quoted(str(path))}, expected a tokenizer.json or a folder "
            "with one; check the path given as the tokenizer"
        )
    return found


def read_tokenizer_file(file: Path, error: type[PocketLMError]) -> bytes:
    """The bytes of a tokenizer in any form; raises ``error`` if there are more than can belong."""
    with RegularFile(file, error) as stream:
        if stream.num_bytes() > LARGEST_TOKENIZER:
            raise error(
                f"{file.name} has {stream.num_bytes():,} bytes, expected at most "
                f"{LARGEST_TOKENIZER:,} bytes of a tokenizer; get the file again from its source"
            )
        return stream.read(0, LARGEST_TOKENIZER)


def read_template(file: Path, error: type[PocketLMError]) -> str:
    """The text of a chat template; raises ``error`` if it is no text, or longer than it may be."""
    with RegularFile(file, error) as stream:
        data = stream.read(0, LARGEST_TEMPLATE + 1)
    if len(data) > LARGEST_TEMPLATE:
        raise error(
            f"{file.name} has more than {LARGEST_TEMPLATE:,} bytes, expected the text of a chat "
            "template; get the file again from its source"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise error(
            f"{file.name} is not UTF-8 (byte {cause.start}), expected the text of a chat template; "
            "get the file again from its source"
        ) from cause
