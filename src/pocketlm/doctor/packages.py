"""Python and the packages that pocketlm asks for: there or not, and new enough.

What it asks for is in its own metadata, so that nothing is listed twice.
"""

from __future__ import annotations

import contextlib
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

from pocketlm.doctor.finding import OK, UNKNOWN, WARNING, WRONG, Finding
from pocketlm.export.frozen import is_frozen, to_install
from pocketlm.export.release import release

# What each extra is for, of those that a user may want on this machine.
EXTRAS = {
    "cli": "the command line",
    "export": "exporting and quantizing checkpoints",
    "hub": "downloading from the hub",
    "chat": "chat templates",
    "gguf": "files of llama.cpp",
    "grammar": "output in a form, such as JSON",
    "report": "reports as web pages",
}
REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:\[([^]]*)\])?\s*([^;]*)(?:;(.*))?")
OF_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")
AT_LEAST = re.compile(r">=\s*([\w.]+)")
RUNTIME = "onnxruntime"  # has a check of its own: it is a package by several names


@dataclass(frozen=True)
class Requirement:
    """A package that is asked for: by every installation, or by an extra."""

    name: str
    extras: tuple[str, ...]  # of the package itself
    floor: str | None  # the oldest version that will do
    extra: str | None

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Of a line of metadata, such as ``onnx>=1.21; extra == "export"``."""
        match = REQUIREMENT.match(text)
        assert match is not None, text
        name, extras, versions, marker = match.groups()
        floor, extra = AT_LEAST.search(versions), OF_EXTRA.search(marker or "")
        wanted = tuple(part.strip() for part in (extras or "").split(",") if part.strip())
        return cls(name, wanted, floor and floor[1], extra and extra[1])


def requirements() -> list[Requirement]:
    """Those of pocketlm; PackageNotFoundError where an application does not have its metadata."""
    return list(map(Requirement.parse, metadata.requires("pocketlm") or ()))


def installed(name: str) -> str | None:
    """The version of a package; None if it is not there."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    """Its version against the oldest that pocketlm runs on."""
    floor = None
    with contextlib.suppress(metadata.PackageNotFoundError):
        asked = AT_LEAST.search(str(metadata.metadata("pocketlm")["Requires-Python"]))
        floor = asked and asked[1]
    number = ".".join(map(str, version))
    where = "in a frozen application" if is_frozen() else sys.executable
    figures = {"version": number, "implementation": platform.python_implementation()}
    found = f"{number} ({platform.python_implementation()}, {platform.machine()}), {where}"
    if floor is not None and version < release(floor):
        found += f"; expected {floor} or newer"
        yield Finding("python", WRONG, found, f"install Python {floor} or newer", figures)
    else:
        yield Finding("python", OK, found, None, figures)


def check_packages(
    asked: Iterable[Requirement] | None = None,
    version_of: Callable[[str], str | None] = installed,
) -> Iterator[Finding]:
    """Versions of all that is installed of what pocketlm asks for."""
    found: dict[str, str] = {"pocketlm": version_of("pocketlm") or "?"}
    old: dict[str, str] = {}
    missing: dict[str, str] = {}
    wrong = False
    for requirement in requirements() if asked is None else asked:
        name = requirement.name
        if name.startswith(("pocketlm", RUNTIME)) or requirement.extra not in (None, *EXTRAS):
            continue
        version = version_of(name)
        if version is not None:
            found[name] = version
            if requirement.floor and release(version) < release(requirement.floor):
                old[name] = f'"{name}>={requirement.floor}"'
                wrong |= requirement.extra is None
        elif requirement.extra is None and not is_frozen():  # where metadata may be left out
            missing[name] = f'"{name}>={requirement.floor}"'
    texts = [", ".join(f"{name} {version}" for name, version in found.items())]
    texts += [f"too old: {', '.join(old)}"] * bool(old)
    texts += [f"missing: {', '.join(missing)}"] * bool(missing)
    state = WRONG if wrong or missing else WARNING if old else OK
    command = f"pip install {' '.join([*missing.values(), *old.values()])}"
    advice = None if state == OK else to_install(command)
    yield Finding("packages", state, "; ".join(texts), advice, {"versions": found})


def check_extras(
    asked: Iterable[Requirement] | None = None,
    version_of: Callable[[str], str | None] = installed,
) -> Iterator[Finding]:
    """Which extras are complete; one that is not is no fault, but may be wanted."""
    if is_frozen():
        found = "could not be checked: a frozen application does not say what it comes with"
        yield Finding("extras", UNKNOWN, found)
        return
    wanted = requirements() if asked is None else list(asked)
    have = [extra for extra in EXTRAS if not list(_lacking(extra, wanted, version_of))]
    missing = [extra for extra in EXTRAS if extra not in have]
    found = f"installed: {', '.join(have) or 'none'}"
    advice = None
    if missing:
        found += "; not: " + ", ".join(f"{extra} ({EXTRAS[extra]})" for extra in missing)
        advice = to_install(f'pip install "pocketlm[{",".join(missing)}]"')
    yield Finding("extras", OK, found, advice, {"installed": have, "missing": missing})


def _lacking(
    extra: str, asked: Iterable[Requirement], version_of: Callable[[str], str | None]
) -> Iterator[str]:
    """The packages of an extra, and of those that it brings, that are not there."""
    for requirement in asked:
        if requirement.extra == extra:
            if requirement.name == "pocketlm":
                for part in requirement.extras:
                    yield from _lacking(part, asked, version_of)
            elif version_of(requirement.name) is None:
                yield requirement.name
