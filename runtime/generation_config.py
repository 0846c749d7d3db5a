"""generation_config.json: where a model's texts begin and end, and how its makers sample them.

    eos_token_id    an id, a list of ids, or null
    bos_token_id    likewise; without it a text begins with the smallest end token
    temperature, top_k, top_p, min_p, typical_p, repetition_penalty, no_repeat_ngram_size
                    defaults for these options
    do_sample       false: the default is greedy, whatever the temperature

Other fields are not for us. Source: ``GenerationConfig`` of transformers, where ``top_k`` 0 means
no limit, and ``no_repeat_ngram_size`` 0 too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..export.errors import ModelFolderError, RequestError
from ..export.sampling_ranges import sampling_defaults
from ..export.strict_json import LARGEST_CONFIG, load_json_object, shown


@dataclass(frozen=True)
class GenerationConfig:
    """What a model folder says about generating."""

    end_ids: frozenset[int]
    start_id: int | None  # what an empty prompt begins with
    sampling: Mapping[str, Any]  # keyword arguments of SamplingOptions; {} if it says nothing

    @staticmethod
    def read(file: Path) -> GenerationConfig:
        """Reads ``file``; ModelFolderError names the field that is not as it should be."""
        fields = load_json_object(file, LARGEST_CONFIG, ModelFolderError)
        end_ids = _ids(file, fields, "eos_token_id")
        starts = _ids(file, fields, "bos_token_id") or end_ids
        return GenerationConfig(end_ids, min(starts) if starts else None, _sampling(file, fields))


def _ids(file: Path, fields: Mapping[str, Any], name: str) -> frozenset[int]:
    value = fields.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for number in ids:
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ModelFolderError(
                f"{file}: {name} is {shown(value)}, expected a token id, a list of them or null; "
                "export the model again"
            )
    return frozenset(ids)


def _sampling(file: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return sampling_defaults(fields)
    except RequestError as error:
        raise ModelFolderError(f"{file}: {error}") from error
