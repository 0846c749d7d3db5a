"""The tokenizer in a GGUF file's metadata as the content of tokenizer.json.

    gpt2    byte-level BPE: tokens in GPT-2's byte alphabet, merges, and the name of how a text is
            cut into words ("tokenizer.ggml.pre"), which ``words`` knows
    llama   sentencepiece's BPE: pieces with scores

Kinds of tokens: 1 plain, 2 unknown, 3 control, 4 defined by the user, 5 unused, 6 a byte. Control
tokens are special; one defined by the user is found in a text before anything else; one that is
unused fills the embedding, and is left out.

Sources: llama.cpp ``llama-vocab.cpp``; ``convert_hf_to_gguf.py`` for what it is made from.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..strict_json import quoted
from ..tokenizers import Content, TokenizerSource
from ..tokenizers.added_tokens import Token, added_token, around
from ..tokenizers.byte_alphabet import byte_level
from ..tokenizers.sentencepiece import BPE, Model, Piece, converted
from .header import AGAIN, GGUFFile
from .metadata import Metadata
from .words import find_words

Floats = NDArray[np.float32]

PREFIX = "tokenizer.ggml."
PLAIN, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"  # how sentencepiece spells one
NONE = (None, "none", "no_vocab")
OWN = "give the model's own tokenizer (in a command: --tokenizer FOLDER)"
NAMED = ("bos", "eos", "unknown", "padding")
# Tokens that llama.cpp takes for the end of a turn or a text where they are control tokens.
ENDS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <EOT> _<EOT> <|eom_id|> "
    "<|end_of_text|> <|return|> <|call|> <|calls|> <\uff5cend\u2581of\u2581sentence\uff5c>".split()
)


def tokenizer_source(file: GGUFFile) -> TokenizerSource | None:
    """The tokenizer of ``file``, or None if it has none.

    Raises CheckpointError for names and templates of the wrong kind; what is wrong with the tokens
    shows when it is read.
    """
    about = Metadata(file.path.name, file.metadata, PREFIX)
    if about.text("model") in NONE:
        return None
    return TokenizerSource(
        files=(file.path,),
        read=partial(_content, file),
        converted=True,
        config=_config(about),
        chat_template=None,
    )


def end_ids(file: GGUFFile) -> dict[str, Any]:
    """The ids that begin and end a text, as generation_config.json has them.

    Also those that the vocabulary has not: an export leaves them out, and tells it.
    """
    about = Metadata(file.path.name, file.metadata, PREFIX)
    tokens = about.texts("tokens")
    kinds = _kinds(about, tokens)
    named = [about.token_id(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = [token_id for token_id in named if token_id is not None]
    ends += [i for i, kind in enumerate(kinds) if kind == CONTROL and tokens[i] in ENDS]
    unique = list(dict.fromkeys(ends))
    return {
        "bos_token_id": about.token_id("bos_token_id"),
        "eos_token_id": unique[0] if len(unique) == 1 else unique or None,
    }


def _config(about: Metadata) -> Content:
    """What tokenizer_config.json would have."""
    tokens = about.texts("tokens")
    spelled = {"unknown": "unk_token", "padding": "pad_token"}
    config: Content = {"clean_up_tokenization_spaces": False}
    for name in NAMED:
        token_id = about.token_id(f"{name}_token_id")
        if token_id is not None and token_id < len(tokens):
            config[spelled.get(name, f"{name}_token")] = tokens[token_id]
    templates = about.under("tokenizer.chat_template")
    default = templates.text("")
    others = {
        key[1:]: templates.text(key) for key in templates.keys() if key[:1] == "." and key[1:]
    }
    if others and default is not None:
        named = {"default": default} | others
        config["chat_template"] = [
            {"name": name, "template": template} for name, template in named.items()
        ]
    elif default is not None:
        config["chat_template"] = default
    return config


def _content(file: GGUFFile) -> Content:
    about = Metadata(file.path.name, file.metadata, PREFIX)
    kind = about.text("model")
    if kind == "gpt2":
        return _byte_level(about)
    if kind == "llama":
        return _sentencepiece(about)
    raise about.wrong("model", "gpt2 or llama", f"no other can be converted exactly: {OWN}")


def _byte_level(about: Metadata) -> Content:
    tokens = _tokens(about)
    kinds = _kinds(about, tokens)
    words = find_words(about, OWN)
    vocab = {token: i for i, token in enumerate(tokens) if kinds[i] != UNUSED}
    added = _added(about, tokens, kinds)
    byte_tokens = byte_level(use_regex=True)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": words.normalizer,
        "pre_tokenizer": words.pre_tokenizer,
        "post_processor": _around(about, tokens, begins=words.begins),
        "decoder": byte_tokens,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": words.whole_words,
            "vocab": vocab,
            "merges": _merges(about, vocab),
        },
    }


def _merges(about: Metadata, vocab: dict[str, int]) -> list[list[str]]:
    merges = []
    for number, merge in enumerate(about.texts("merges")):
        pair = merge.split(" ")
        if len(pair) != 2 or not all(part in vocab for part in (*pair, "".join(pair))):
            raise CheckpointError(
                f"{about.file}: merge {number:,} is {quoted(merge, 60)}, expected two tokens that "
                f"together are a third; {AGAIN}"
            )
        merges.append(pair)
    if not merges:
        raise about.wrong("merges", "the merges of a byte-level tokenizer", OWN)
    return merges


def _sentencepiece(about: Metadata) -> Content:
    tokens = _tokens(about)
    kinds = _kinds(about, tokens)
    scores = about.numbers("scores", len(tokens))
    if scores is None:
        raise about.wrong("scores", f"{len(tokens):,} numbers")
    if _architecture(about).startswith("gemma"):
        tokens, kinds, scores = _as_gemma(tokens, kinds)
    pieces = [
        Piece(token, float(score), kind)
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    ]
    model = Model(
        pieces=pieces,
        model_type=BPE,
        byte_fallback=True,
        dummy_prefix=about.flag("add_space_prefix", True),
        remove_spaces=about.flag("remove_extra_whitespaces", False),
    )
    added = {token["id"]: token for token in _added(about, tokens, kinds)}
    return converted(about.file, model, added, _around(about, tokens, begins=True))


def _as_gemma(tokens: list[str], kinds: list[int]) -> tuple[list[str], list[int], Floats]:
    """Gemma's runs of spaces as pieces like others, and merges in the order of the pieces.

    So they are in its tokenizer.json. In the file the runs are tokens to be found as they are,
    which a run longer than all of them would tell apart, and their scores are not in order.
    """
    runs = {i for i, token in enumerate(tokens) if len(token) > 1 and set(token) <= {" ", SPACE}}
    spelled = [SPACE * len(token) if i in runs else token for i, token in enumerate(tokens)]
    plain = [PLAIN if i in runs else kind for i, kind in enumerate(kinds)]
    return spelled, plain, -np.arange(len(tokens), dtype=np.float32)


def _tokens(about: Metadata) -> list[str]:
    tokens = about.texts("tokens")
    if not tokens:
        raise about.wrong("tokens", "the tokens of the vocabulary")
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        twice = next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        raise CheckpointError(
            f"{about.file}: {PREFIX}tokens has {quoted(twice, 60)} twice, expected each token "
            f"once; it cannot be converted exactly: {OWN}"
        )
    return tokens


def _kinds(about: Metadata, tokens: list[str]) -> list[int]:
    """Of each token; where the file does not say, those with a name are control tokens."""
    kinds = about.numbers("token_type", len(tokens))
    if kinds is not None:
        return [int(kind) for kind in kinds]
    named = {about.token_id(f"{name}_token_id") for name in NAMED}
    return [CONTROL if i in named else PLAIN for i in range(len(tokens))]


def _added(about: Metadata, tokens: list[str], kinds: list[int]) -> list[Token]:
    """The tokens that are found in a text as they are."""
    found = [
        added_token(i, token, special=kinds[i] != USER_DEFINED)
        for i, token in enumerate(tokens)
        if kinds[i] in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    if _architecture(about) == "phi3" and about.text("model") == "llama":
        plain = ("<unk>", "<s>", "<|endoftext|>")  # the others take the spaces behind them
        for token in found:
            token["rstrip"] = token["content"] not in plain
    return found


def _architecture(about: Metadata) -> str:
    return about.under("general.").text("architecture") or ""


def _around(about: Metadata, tokens: list[str], *, begins: bool) -> Token | None:
    """What is put around a text; ``begins`` where the file does not say it."""
    ids = {token: i for i, token in enumerate(tokens)}

    def named(name: str, default: bool) -> str | None:
        token_id = about.token_id(f"{name}_token_id")
        wanted = about.flag(f"add_{name}_token", default)
        if not wanted or token_id is None:
            return None
        if token_id >= len(tokens):
            raise about.wrong(f"{name}_token_id", f"below {len(tokens):,}, the number of tokens")
        return tokens[token_id]

    return around(ids, named("bos", begins), named("eos", False))
