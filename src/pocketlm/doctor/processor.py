"""The processor, and what its instructions mean for each precision.

What decides: the kernels of ONNX Runtime's MLAS. W8A8 (int8) multiplies integers, by AMX or VNNI
where there is one; MatMulNBits (int4, int8-weight) has kernels in 8 bits for AVX2 and up, none for
AMX; benchmarks/NOTES.md and docs/quantization.md have what was measured.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterator

from pocketlm.doctor.finding import OK, UNKNOWN, WARNING, Finding
from pocketlm.quantize.precisions import FULL
from pocketlm.runtime.processor import deciding, processor

VNNI = ("avx512_vnni", "avx_vnni")
SMALL = {
    "int8-weight": "the closest to fp32 of those that are smaller",
    "int4": "the fewest bytes, so that single tokens come fastest",
}
SLOW = "a small model is what is fast enough here"


def check_processor() -> Iterator[Finding]:
    """Its name and features; then each precision."""
    name, flags = processor()
    features = deciding(flags)
    known = ", ".join(features) or ("none of those that help" if flags else "not told here")
    figures = {"name": name, "features": features if flags else None}
    yield Finding("processor", OK, f"{name}; instructions: {known}", None, figures)
    yield from precisions(features if flags else None, _exact(), platform.machine())


def precisions(
    features: Collection[str] | None, exact: bool | None, machine: str
) -> Iterator[Finding]:
    """What they mean; None are not known. ``exact`` is what ``int8_products.are_exact`` found."""
    if machine.lower() in ("x86_64", "amd64", "i686", "x86"):
        yield _float32(features)
        yield _integers(features, exact)
        yield from (_packed(name, features) for name in SMALL)
    else:
        yield from _other(features or (), exact)


def _float32(features: Collection[str] | None) -> Finding:
    if features is None:
        return _not_told(FULL)
    if "avx512f" in features:
        return Finding(FULL, OK, "products of 16 numbers at a time, by AVX-512")
    if "avx2" in features:
        return Finding(FULL, OK, "products of 8 numbers at a time, by AVX2")
    return Finding(FULL, WARNING, "slow: no AVX2", SLOW)


def _integers(features: Collection[str] | None, exact: bool | None) -> Finding:
    """W8A8. What was computed counts more than what the processor claims."""
    tried = {True: "; tried, and exact", False: "", None: "; not tried"}[exact]
    figures = {"exact": exact}
    if exact is False:
        return Finding(
            "int8",
            WARNING,
            "no VNNI: the fast products overflow, so that pocketlm asks for exact ones, which take "
            "twice as long",
            "take --precision int4, or int8-weight",
            figures,
        )
    if features is None:
        return Finding("int8", OK, f"products of integers{tried}", None, figures)
    if "amx_int8" in features:
        found = "products of integers by AMX: by far the fastest for prompts"
    elif any(name in features for name in VNNI):
        found = "products of integers by VNNI: the fastest for prompts"
    else:
        found = f"slow: products of integers without VNNI{tried}"
        advice = "take --precision int4, or int8-weight" if "avx2" in features else SLOW
        return Finding("int8", WARNING, found, advice, figures)
    return Finding("int8", OK, f"{found}{tried}", None, figures)


def _packed(name: str, features: Collection[str] | None) -> Finding:
    """MatMulNBits."""
    if features is None:
        return _not_told(name)
    if "avx2" not in features:
        return Finding(name, WARNING, "slow: no AVX2, so that products are of float32", SLOW)
    kind = "AVX-512" if "avx512f" in features else "AVX2"
    if VNNI[0] in features or (kind == "AVX2" and VNNI[1] in features):
        kind += " with VNNI"
    unused = ", not by AMX" if "amx_int8" in features else ""
    return Finding(name, OK, f"products in 8 bits by {kind}{unused}: {SMALL[name]}")


def _other(features: Collection[str], exact: bool | None) -> Iterator[Finding]:
    """ARM and what else there is: pocketlm is tried there, its speed has not been measured."""
    names = {"asimddp": "dot products", "i8mm": "i8mm"}
    kinds = " and ".join(text for feature, text in names.items() if feature in features)
    by = f" by {kinds}" if kinds else ""
    yield Finding(FULL, OK, "products of float32; speed not measured on such processors")
    if exact is False:
        yield _integers(features, exact)
    else:
        tried = "; tried, and exact" if exact else "; not tried"
        yield Finding("int8", OK, f"products of integers{by}{tried}", None, {"exact": exact})
    yield from (Finding(name, OK, f"products in 8 bits{by}: {SMALL[name]}") for name in SMALL)


def _not_told(name: str) -> Finding:
    return Finding(name, UNKNOWN, "could not be checked: only Linux tells what a processor has")


def _exact() -> bool | None:
    """None where ONNX Runtime cannot be asked, of which its own check tells."""
    try:
        from pocketlm.runtime.int8_products import are_exact

        return are_exact()
    except Exception:
        return None
