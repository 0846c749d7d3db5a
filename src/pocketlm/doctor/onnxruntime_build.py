"""ONNX Runtime: whole, new enough, and one build alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pocketlm.doctor.finding import OK, WRONG, Finding, of_error
from pocketlm.doctor.packages import installed
from pocketlm.export.errors import MissingExtraError
from pocketlm.export.folder import MINIMUM_ONNXRUNTIME
from pocketlm.export.frozen import to_install
from pocketlm.export.release import release

NAME = "onnxruntime"
# Packages that lie in one folder of this name: installed together, one is on top of the other.
BUILDS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
    "ort-nightly",
    "ort-nightly-gpu",
)


def check_onnxruntime() -> Iterator[Finding]:
    """Imports it, which nothing before did where the command line asks."""
    try:
        from pocketlm.runtime.engine import onnxruntime
    except MissingExtraError as error:
        yield of_error(NAME, WRONG, error)
        return
    place = Path(onnxruntime.__file__).parent
    yield judged(builds(), onnxruntime.__version__, place)


def builds() -> dict[str, str]:
    """The packages of it that are installed, with their versions; there should be one."""
    return {name: version for name in BUILDS if (version := installed(name))}


def judged(packages: Mapping[str, str], version: str, place: Path) -> Finding:
    """What is to be said of the packages installed, and of what was imported."""
    figures = {"version": version, "packages": dict(packages), "minimum": MINIMUM_ONNXRUNTIME}
    listed = " and ".join(f"{name} {found}" for name, found in packages.items())
    if len(packages) > 1:
        everything = f"pip uninstall -y {' '.join(packages)}"
        return Finding(
            NAME,
            WRONG,
            f"{listed}, which are in one folder, {place}; expected one of them",
            to_install(f"{everything} && pip install {_wanted(packages)}"),
            figures,
        )
    if packages and release(version) not in map(release, packages.values()):
        return Finding(
            NAME,
            WRONG,
            f"{version} of {place} was imported, but {listed} is installed",
            "import pocketlm before what brings the other one, or take that off the path "
            f"(PYTHONPATH, sys.path): {place.parent}",
            figures,
        )
    if release(version)[:2] < release(MINIMUM_ONNXRUNTIME):
        name = next(iter(packages), NAME)
        return Finding(
            NAME,
            WRONG,
            f"{version}, expected {MINIMUM_ONNXRUNTIME} or newer",
            to_install(f'pip install "{name}>={MINIMUM_ONNXRUNTIME}"'),
            figures,
        )
    package = "" if tuple(packages) in ((), (NAME,)) else f" ({', '.join(packages)})"
    return Finding(NAME, OK, f"{version}{package}", None, figures)


def _wanted(packages: Mapping[str, str]) -> str:
    """The one that does more than the plain one is the one that somebody chose."""
    return next((name for name in packages if name != NAME), NAME)
