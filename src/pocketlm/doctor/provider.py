"""Where models run: on the CPU, and on CUDA if there is what it needs."""

from __future__ import annotations

from collections.abc import Iterator

from pocketlm.doctor.finding import OK, WARNING, Finding


def check_provider() -> Iterator[Finding]:
    """Asks the driver, and loads CUDA's libraries, where this ONNX Runtime is built for it."""
    from pocketlm.runtime.providers import ON_CPU, ON_CUDA, cuda_obstacle, has_cuda_build

    built, obstacle = has_cuda_build(), cuda_obstacle(())
    figures = {"providers": [ON_CPU] if obstacle else [ON_CUDA, ON_CPU], "cuda_build": built}
    if obstacle is None:
        yield Finding("provider", OK, "cuda and cpu", None, figures)
    elif built:
        found = f"cpu; not cuda: found {obstacle.found}, expected {obstacle.expected}"
        yield Finding("provider", WARNING, found, obstacle.advice, figures)
    else:
        yield Finding("provider", OK, f"cpu; not cuda: {obstacle.found}", None, figures)
