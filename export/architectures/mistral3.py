"""Mistral Small 3.1 and its kin: the text model is Mistral.

Source: ``modeling_mistral3.py`` of Hugging Face transformers for where its tensors are.
"""

from __future__ import annotations

from ..wrapped import Wrapped

ARCHITECTURE = Wrapped(text={"mistral": "mistral"}, default="mistral")
