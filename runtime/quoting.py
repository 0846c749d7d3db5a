"""Text of strangers inside a text of ours: what spells a marker there must not become it.

Markers are the special tokens, and of the other added ones those that the text of ours writes: the
distillations of DeepSeek-R1 mark turns with tokens that are not special.

A chat template writes special tokens such as "<|eot_id|>" by their spelling, and so may a message.
To tell them apart, the spellings in messages are hidden before a template runs, each behind one
character of Unicode's private planes that no message has:

    "say <|eot_id|>"  --hide-->  "say \\U000F0000"  --template-->  "...say \\U000F0000<|eot_id|>"

Whatever is spelled out in the template's text is the template's own. It is encoded by a twin of the
tokenizer that takes no spelling for a special token, but knows each by a name nobody can guess; so
the hidden text can come back as what it says, and every other rule of the tokenizer holds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import tokenizers

from ..export.errors import RequestError
from .encoding import encoded

HIDING, NAMING = 0xF0000, 0x100000  # Unicode's planes 15 and 16, both for private use
NAME_CHARACTERS = 5  # random ones in a secret name: 80 bits


@dataclass
class Quotation:
    """What was hidden from one template: by which character it is represented."""

    spellings: Sequence[str]
    _characters: dict[str, str] = field(default_factory=dict)  # by what they stand for

    def hide(self, text: str, only: Sequence[str] | None = None) -> str:
        """``text`` without markers, or ``only`` some; what could be mistaken is hidden, too."""
        spellings = self.spellings if only is None else only
        pattern = f"{_any_of(spellings)}|[{chr(HIDING)}-{chr(NAMING - 1)}]"
        return re.sub(pattern, lambda match: self._character(match[0]), text)

    def count(self, text: str) -> int:
        """How many markers ``text`` spells."""
        return len(re.findall(_any_of(self.spellings), text))

    def restore(self, text: str) -> str:
        """``text`` with all that was hidden."""
        return text.translate(
            {ord(character): known for known, character in self._characters.items()}
        )

    def _character(self, hidden: str) -> str:
        return self._characters.setdefault(hidden, chr(HIDING + len(self._characters)))


class PlainTwin:
    """Encodes a text in which only the markers written by us count as such."""

    def __init__(self, library: tokenizers.Tokenizer, written: Collection[str] = ()) -> None:
        """Copies ``library``: about 0.5 s and 100 MB for a vocabulary of 128 thousand.

        ``written``: the markers that are not special.
        """
        self.written = frozenset(written)
        special = {
            token_id: token
            for token_id, token in library.get_added_tokens_decoder().items()
            if token.special or token.content in self.written
        }
        self._special_ids = frozenset(special)
        content = library.to_str()
        if self.written:
            content = _as_special(content, self.written)
        self._twin = tokenizers.Tokenizer.from_str(content)
        self._twin.encode_special_tokens = True  # as the text they are spelled with
        secret = "".join(
            chr(NAMING + int.from_bytes(os.urandom(2))) for _ in range(NAME_CHARACTERS)
        )
        names = [secret + chr(NAMING + index) for index in range(len(special))]
        self._twin.add_tokens(
            [_named(token, name) for token, name in zip(special.values(), names, strict=True)]
        )
        self._names = {
            token.content: name for token, name in zip(special.values(), names, strict=True)
        }
        unknown = getattr(library.model, "unk_token", None)  # stands for what has no token
        self._unknown = {library.token_to_id(unknown)} if isinstance(unknown, str) else set()
        self._ids = {
            self._twin.token_to_id(name): token_id
            for token_id, name in zip(special, names, strict=True)
        }

    def encode(
        self, text: str, restore: Callable[[str], str], add_special_tokens: bool
    ) -> list[int]:
        """The twin's ids of ``text``, in which ``restore`` puts back what does not count."""
        named = re.sub(_any_of(self._names), lambda match: self._names[match[0]], text)
        return encoded(self._twin, restore(named), add_special_tokens).ids

    def known(self, found: list[int], add_special_tokens: bool) -> list[int]:
        """What ``encode`` found as ids of the tokenizer.

        Raises RequestError where the vocabulary itself has a marker as an ordinary word, so that
        what is put back becomes one.
        """
        forged = self._special_ids.intersection(found)
        if forged and not add_special_tokens and not forged <= self._unknown:
            spelled = self._twin.id_to_token(min(forged - self._unknown))
            raise RequestError(
                f"the text spells {spelled!r}, which this tokenizer can only read as that token; "
                "write it in another way"
            )
        return [self._ids.get(token_id, token_id) for token_id in found]


def _any_of(spellings: Sequence[str] | Mapping[str, str]) -> str:
    """A pattern; of two spellings that begin alike the longer one matches."""
    longest_first = sorted(spellings, key=len, reverse=True)
    return "|".join(map(re.escape, longest_first)) or "(?!)"


def _as_special(content: str, written: Collection[str]) -> str:
    """tokenizer.json's text in which the tokens ``written`` are special as well."""
    changed = json.loads(content)
    for token in changed["added_tokens"]:
        token["special"] = token["special"] or token["content"] in written
    return json.dumps(changed, ensure_ascii=False)


def _named(token: tokenizers.AddedToken, name: str) -> tokenizers.AddedToken:
    """``token`` under another name, with its rules for the spaces around it."""
    return tokenizers.AddedToken(
        name,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=False,
    )
