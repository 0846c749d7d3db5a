"""All checks, one after the other; one that fails takes nothing from the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pocketlm.doctor.cache import check_cache, check_disk, check_locks, check_models
from pocketlm.doctor.cores import check_cores
from pocketlm.doctor.finding import Finding, unchecked
from pocketlm.doctor.memory import check_memory
from pocketlm.doctor.onnxruntime_build import check_onnxruntime
from pocketlm.doctor.packages import check_extras, check_packages, check_python
from pocketlm.doctor.processor import check_processor
from pocketlm.doctor.provider import check_provider
from pocketlm.doctor.self_test import check_demo
from pocketlm.doctor.telemetry import check_telemetry

Check = Callable[[], Iterator[Finding]]

SELF_TEST = "self-test"
# What is checked, in this order: the name is that of a finding if it cannot be.
CHECKS: dict[str, Check] = {
    "python": check_python,
    "packages": check_packages,
    "extras": check_extras,
    "onnxruntime": check_onnxruntime,
    "telemetry": check_telemetry,
    "processor": check_processor,
    "cores": check_cores,
    "memory": check_memory,
    "cache": check_cache,
    "disk": check_disk,
    "models": check_models,
    "locks": check_locks,
    "provider": check_provider,
    SELF_TEST: check_demo,
}


def examine(*, self_test: bool = True, checks: Mapping[str, Check] = CHECKS) -> Iterator[Finding]:
    """Yields what is found as it is found; raises nothing.

    Everything but ``self_test`` is a matter of moments. That runs the demo for about two seconds,
    more where the demo has to be exported first, which leaves no model on the disk.
    """
    for name, check in checks.items():
        if self_test or name != SELF_TEST:
            yield from _isolated(name, check)


def _isolated(name: str, check: Check) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:
        yield unchecked(name, error)
