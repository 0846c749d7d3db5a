"""A text model inside one for images: its config is ``text_config``, its tensors have a prefix.

    ARCHITECTURE = Wrapped(text={"qwen2_5_vl_text": "qwen2"}, default="qwen2")

What belongs to the other parts (towers, projectors) is left out, by their names: a tensor of
neither is refused as any that config.json leaves no place for. Older files of some families have
the text model's fields beside the other parts' and not in ``text_config``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .decoder import Architecture
from .errors import CheckpointError
from .strict_json import shown

# Where the text model is, as transformers and those before it saved it; the longest first.
PREFIXES = (
    *("model.language_model.model.", "language_model.model.", "model.language_model."),
    *("model.text_model.", "language_model."),
)
OTHER_PARTS = (
    *("vision_tower.", "vision_model.", "visual.", "multi_modal_projector.", "connector."),
    *("image_newline", "embed_vision.", "mm_projector."),
)
PARTS = ("text_config", "vision_config", "audio_config")
# Fields that only the outer config may have, of those that say something of the text.
OUTER = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config")


@dataclass(frozen=True)
class Wrapped:
    """Which text models there are inside a family: ``model_type`` of text_config -> architecture.

    ``default`` is the one of a config that names none.
    """

    text: Mapping[str, str]
    default: str

    def architecture(
        self, config: dict[str, Any], find: Callable[[dict[str, Any]], Architecture[Any]]
    ) -> Architecture[Any]:
        """The text model's, which reads the outer config; ``find`` is given the inner one.

        CheckpointError for a text model that the family is not known to have.
        """
        found = find(self.inner(config))
        return replace(found, inner=self.inner, bare=_unwrapped(found.bare))

    def inner(self, config: dict[str, Any]) -> dict[str, Any]:
        """The text model's config."""
        text = config.get("text_config")
        if text is None:  # an older file, or one with nothing but defaults
            text = {name: value for name, value in config.items() if name not in PARTS}
            return text | {"model_type": self.default}
        if not isinstance(text, dict):
            raise CheckpointError(
                f"config.json: text_config is {shown(text, 80)}, expected an object; the file is "
                "damaged or belongs to another model"
            )
        kind = text.get("model_type", self.default)
        if not isinstance(kind, str) or self.text.get(kind, kind) not in self.known:
            raise CheckpointError(
                f"config.json: model_type of text_config is {shown(kind, 80)}, expected one of "
                f"{', '.join(sorted({*self.text, *self.known}))}; no other text model of this "
                "family can be exported"
            )
        outer = {name: config[name] for name in OUTER if name in config}
        return outer | text | {"model_type": self.text.get(kind, kind)}

    @property
    def known(self) -> set[str]:
        """The architectures that the text model may be."""
        return {self.default, *self.text.values()}


def _unwrapped(bare: Callable[[str], str | None]) -> Callable[[str], str | None]:
    def name_of(name: str) -> str | None:
        if name.removeprefix("model.").startswith(OTHER_PARTS):
            return None
        for prefix in PREFIXES:
            if name.startswith(prefix):
                return bare(name.removeprefix(prefix))
        return bare(name)

    return name_of
