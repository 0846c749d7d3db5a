"""Qwen2-VL: the text model is Qwen2; of text alone, its three positions are one.

Source: ``modeling_qwen2_vl.py`` of Hugging Face transformers for where its tensors are.
"""

from __future__ import annotations

from ..wrapped import Wrapped

ARCHITECTURE = Wrapped(text={"qwen2_vl_text": "qwen2"}, default="qwen2")
