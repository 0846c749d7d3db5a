"""A tokenizer as Llama 2's, around pieces and merges that a test has trained."""

from __future__ import annotations

import json
from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, processors


def as_llama2(
    trained: tokenizers.Tokenizer, more_pieces: Sequence[tuple[str, str]] = ()
) -> tokenizers.Tokenizer:
    """A "▁" before the text and for spaces, a <0xXX> token per byte, <s> put in front.

    ``more_pieces`` are further merges, whose results are pieces too.
    """
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += sorted(model["vocab"], key=model["vocab"].__getitem__)
    pieces += [first + second for first, second in more_pieces]
    library = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))},
            merges=[tuple(merge) for merge in [*model["merges"], *more_pieces]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return library
