"""How a byte-level tokenizer cuts a text into words, by the name that llama.cpp has for it.

A GGUF file has no pattern, only this name ("tokenizer.ggml.pre"), which stands for a tokenizer.json
that was published. What stands here is what that file says; a name whose file is not known to be
equal is refused. Source of the names: ``convert_hf_to_gguf_update.py`` of llama.cpp, which lists
the model of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..tokenizers.added_tokens import Token
from ..tokenizers.byte_alphabet import byte_level, split_by
from ..tokenizers.tiktoken import PATTERN as LLAMA3_PATTERN
from ..tokenizers.vocab_merges import QWEN2_PATTERN
from .metadata import Metadata

NFC = {"type": "NFC"}
O200K_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+SUFFIX|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*SUFFIX|"
)
O200K_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K_PATTERN = O200K_WORD.replace("SUFFIX", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?") + (
    r"\p{N}{1,3}|" + O200K_REST
)
TEKKEN_PATTERN = O200K_WORD.replace("SUFFIX", "") + r"\p{N}|" + O200K_REST


@dataclass(frozen=True)
class Words:
    """The parts of tokenizer.json that a name stands for."""

    pre_tokenizer: Token
    normalizer: Token | None = None
    whole_words: bool = False  # a word that is a token is taken at once, whatever the merges say
    begins: bool = False  # whether a text begins with a token, where the file does not say it


def digits_apart() -> Token:
    """GPT-2's words, with every digit one of its own."""
    digits = {"type": "Digits", "individual_digits": True}
    return {"type": "Sequence", "pretokenizers": [digits, byte_level(use_regex=True)]}


GPT2 = Words(byte_level(use_regex=True))
LLAMA3 = Words(split_by(LLAMA3_PATTERN), whole_words=True, begins=True)
WORDS = {
    "gpt-2": GPT2,
    "phi-2": GPT2,
    "olmo": replace(GPT2, normalizer=NFC),
    "smollm": Words(digits_apart()),
    "starcoder": Words(digits_apart()),
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "falcon3": LLAMA3,
    "dbrx": Words(split_by(LLAMA3_PATTERN)),
    "qwen2": Words(split_by(QWEN2_PATTERN), normalizer=NFC),
    "gpt-4o": Words(split_by(O200K_PATTERN)),
    "tekken": Words(split_by(TEKKEN_PATTERN), whole_words=True, begins=True),
}
# Files from before there were names, of an architecture with one tokenizer only.
BY_ARCHITECTURE = {"gpt2": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}


def find_words(about: Metadata, advice: str) -> Words:
    """What ``tokenizer.ggml.pre`` stands for; CheckpointError names those that are known."""
    architecture = about.under("general.").text("architecture") or ""
    name = about.text("pre", BY_ARCHITECTURE.get(architecture))
    if name not in WORDS:
        raise about.wrong(
            "pre",
            f"one of {', '.join(sorted(WORDS))}",
            f"how others cut a text into words is not known exactly: {advice}",
        )
    return WORDS[name]
