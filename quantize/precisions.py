"""Names of what a person can ask for; lean, so that a command line can list them at no cost."""

from __future__ import annotations

FULL = "fp32"
PRECISIONS = (FULL, "int8", "int8-weight", "int4")
BLOCK_SIZES = (32, 64, 128)
HEADS = (FULL, "int8", "int4")
DEFAULT_BLOCK = {"int8": 128, "int8-weight": 64, "int4": 128}
