"""Gemma 3 from 4B on: the text model is the one of ``gemma3_text``.

Source: ``modeling_gemma3.py`` of Hugging Face transformers for where its tensors are.
"""

from __future__ import annotations

from ..wrapped import Wrapped

ARCHITECTURE = Wrapped(text={"gemma3_text": "gemma3_text"}, default="gemma3_text")
