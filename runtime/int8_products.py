"""Whether products of int8 need an option to be exact on this processor.

With AVX2 and no VNNI ONNX Runtime adds pairs of uint8 × int8 in 16 bits, where 255 · 127 · 2 does
not fit: wrong, and nothing says so. ``session.x64quantprecision`` makes it exact, and takes twice
as long, on processors that do not need it too. So a product at the limits is computed once, and the
option is set where that comes out wrong. Other programs that open a folder: docs/quantization.md.
"""

from __future__ import annotations

import base64
from functools import cache

import numpy as np

from ..export.genai import SESSION_OPTIONS
from ..export.manifest import INT8_DYNAMIC
from .engine import onnxruntime

# Formats with weights up to ±127, and what a graph of another runtime is said to be in.
WHOLE_RANGE = frozenset({"int8-channel", "int8-channel-asym", INT8_DYNAMIC})

# MatMulIntegerToFloat(x uint8 (2, 64), int8 (64, 16) of 127, scales of 1, zero point 0) -> y.
PROBE = base64.b85decode(
    b"2nssJ0SYV%0b~*ZcOnl%Z*FsRVQzF!W>aWkaAhhJ3I%pyY;|QS2M7TW14;pZpaBF5HwpoG3ITTt0dooga|!`^5&?N4"
    b"6is1tO?7NZZggd5WpY$+Mr?0kbUF=VZ*4AZX=8G4b8lvJ5&>{383+Op2SNd4N)SK*00000000mG00000001fr5CK8~"
    b"b4mmN0DwO#2oM570eVUS09q3Y0eBJ)3JeGW5(o+c2m%TM2tZ;J3ITZ%4hjqi0TKub0tf;M0tgU71PTBU6+#gT4P$R@"
    b"E^TRJa&L2QW^@n%"
)
EXACT = 64 * 255 * 127


@cache
def are_exact() -> bool:
    """Whether the largest numbers are multiplied right without the option; computed once."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(PROBE, options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.full((2, 64), 255, np.uint8)})
    return bool((np.asarray(y) == EXACT).all())


def options_for(formats: frozenset[str]) -> dict[str, str]:
    """Configuration of a session that runs a model with these formats on this processor."""
    return SESSION_OPTIONS if formats & WHOLE_RANGE and not are_exact() else {}
