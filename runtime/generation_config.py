"""generation_config.json: where a model's texts begin and end, and how its makers sample them.

    eos_token_id    an id, a list of ids, or null
    bos_token_id    likewise; without it a text begins with the smallest end token
    temperature, top_k, top_p, min_p, typical_p, repetition_penalty, no_repeat_ngram_size
                    defaults for these options
    do_sample       false: the default is greedy, whatever the temperature

Ids that the vocabulary has not are ignored: GPT-2's 50256 stays behind in many a smaller model, and
-1 means none to some.
Other fields are not for us. Source: ``GenerationConfig`` of transformers, where ``top_k`` 0 means
no limit, and ``no_repeat_ngram_size`` 0 too.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..export.errors import ModelFolderError
from ..export.sampling_ranges import sampling_defaults
from ..export.strict_json import LARGEST_CONFIG, load_json_object, shown


@dataclass(frozen=True)
class GenerationConfig:
    """What a model folder says about generating."""

    end_ids: frozenset[int]
    start_id: int | None  # what an empty prompt begins with
    sampling: Mapping[str, Any]  # keyword arguments of SamplingOptions; {} if it says nothing

    @staticmethod
    def read(file: Path, vocab_size: int) -> GenerationConfig:
        """Reads ``file``; ModelFolderError names the field that holds no token ids.

        Sampling that no call could take is left out with a warning.
        """
        fields = load_json_object(file, LARGEST_CONFIG, ModelFolderError)
        end_ids = _ids(file, fields, "eos_token_id", vocab_size)
        starts = _ids(file, fields, "bos_token_id", vocab_size) or end_ids
        sampling, wrong = sampling_defaults(fields)
        for problem in wrong:
            warnings.warn(f"{file}: {problem}", stacklevel=2)
        return GenerationConfig(end_ids, min(starts) if starts else None, sampling)


def _ids(file: Path, fields: Mapping[str, Any], name: str, vocab_size: int) -> frozenset[int]:
    value = fields.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for number in ids:
        if type(number) is not int:
            raise ModelFolderError(
                f"{file}: {name} is {shown(value)}, expected a token id, a list of them or null; "
                "export the model again"
            )
    return frozenset(number for number in ids if 0 <= number < vocab_size)
