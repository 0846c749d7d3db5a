"""What is meant when a model is asked for by name: the demo, a place on this disk, or the hub.

    demo, or no name at all    the model that comes with pocketlm
    a path that exists         a model folder or a checkpoint
    org/name, org/name@main    a repository on the hub, at a revision
    name                       the one repository in the cache whose last word it is

What exists on this disk comes first: ./org/name hides org/name of the hub, and ./demo the demo if
it holds a model or a checkpoint. What can only be a path (./x, ../x, /x, ~/x, x/, a/b/c, C:x, a\\b,
and every ``pathlib.Path``) never goes to the hub. An empty name is refused: it is a variable that
was not set, and not the demo.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pocketlm.export.errors import CheckpointError, RequestError
from pocketlm.export.folder import MANIFEST
from pocketlm.export.strict_json import quoted

DEMO = "demo"
EXPECTED = 'a model folder, a checkpoint, org/name of the hub, or "demo"'
HUB_HOSTS = ("huggingface.co", "hf.co")  # and that of HF_ENDPOINT
# Models that the hub once had under a single word, which people still type.
LEGACY_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
# How what can only be a path begins: ./ ../ / ~ and, as Windows spells them, .\ ..\ \\ C:\
_PATH = re.compile(r"\.{1,2}[/\\]|/|~|\\\\|[A-Za-z]:[/\\]")
_MOST_NEAR = 3
_MOST_NEIGHBOURS = 10_000  # names of a folder that are compared with a mistyped one


@dataclass(frozen=True)
class Demo:
    """The model that comes with pocketlm."""

    def __str__(self) -> str:
        return "the demo model"


@dataclass(frozen=True)
class OnDisk:
    """A path that exists: a model folder, a checkpoint, or what will be refused as neither."""

    path: Path

    def __str__(self) -> str:
        return "a model folder" if self.is_made else "a model on this disk"

    @property
    def is_made(self) -> bool:
        """Whether it is a model folder, or others' ONNX that must be refused as such."""
        if os.path.isfile(self.path / MANIFEST) or self.path.suffix == ".onnx":
            return True
        if any(self.path.glob("*.safetensors")):
            return False
        return any(self.path.glob("*.onnx")) or any(self.path.glob("onnx/*.onnx"))

    @property
    def is_foreign(self) -> bool:
        """Whether it has a graph, or is one, and is no model folder of ours."""
        return self.is_made and not os.path.isfile(self.path / MANIFEST)


@dataclass(frozen=True)
class OnHub:
    """A repository on the hub."""

    repository: str  # org/name
    revision: str | None  # as the name has it: a branch, tag or commit


Reference = Demo | OnDisk | OnHub


def foreign_path(reference: Reference) -> Path:
    """Where another runtime's model is; RequestError for what is none on this disk."""
    if isinstance(reference, OnDisk) and reference.is_foreign:
        return reference.path
    advice = "leave it out"
    if isinstance(reference, OnHub):
        advice = f"download it first: hf download {reference.repository} --local-dir DIR"
    raise RequestError(
        f"allow_foreign is given for {reference}, expected it only for a folder on this disk with "
        f"the ONNX graph of another runtime; {advice}"
    )


def find_reference(name: str | Path | None) -> Reference:
    """What ``name`` means, as the module docstring says; looks at this disk, never at the network.

    Raises RequestError for an empty name or the address of a page, and CheckpointError for what is
    neither there nor a name on the hub; both say what to write instead.
    """
    if name is None:
        return Demo()
    if not isinstance(name, str):
        if (found := _existing(Path(name))) is None:
            raise _nothing_at(str(name), "; a name on the hub is given as a string")
        return OnDisk(found)
    if not name.strip():
        raise RequestError(
            f"model: found an empty name, expected {EXPECTED}; for the demo model write demo; is "
            "a variable not set?"
        )
    found = _existing(Path(name))
    if found is not None and (name != DEMO or _holds_a_model(found)):
        return OnDisk(found)
    return Demo() if name == DEMO else _elsewhere(name)


def names_model(word: str) -> bool:
    """Whether ``word`` alone is a model rather than a prompt, or was meant to be one.

    That is the demo, a path that exists or can be nothing else, the address of a page of the hub,
    and a full name that is in the cache.
    """
    if word == DEMO or _existing(Path(word)) is not None:
        return True
    if re.search(r"\s", word):
        return False
    if _PATH.match(word) or _page(word) is not None:
        return True
    return "/" in word and bool(hub_name(word) and _cached(word.partition("@")[0]))


def hub_name(word: str) -> str | None:
    """``word`` if it reads org/name or org/name@revision, what stands for it, or None."""
    if re.search(r"\s", word):  # a prompt, mostly
        return None
    from pocketlm.export.hub import split_name

    return word if split_name(word) else LEGACY_NAMES.get(word)


def nothing_here(name: str) -> str:
    """That ``name`` is no path either, for errors of the hub, and which ones are like it."""
    near = list(_near(Path(name)))
    question = f" - did you mean {_either(near)}?" if near else ""
    return f"nor is there a folder {Path(name).absolute()}{question}"


def unused_options(reference: Reference, options: Mapping[str, Any]) -> dict[str, str]:
    """Those of ``options`` (of ``load``) that would do nothing here, and for what they are."""
    expected: dict[str, str] = {}
    if not isinstance(reference, OnHub):
        expected |= dict.fromkeys(("revision", "keep_download"), "one on the hub (org/name)")
    if isinstance(reference, OnDisk) and reference.is_made:
        expected["tokenizer"] = "a checkpoint: a model folder has its own"
        expected["adapters"] = "a checkpoint: they are merged before it becomes a model folder"
        if reference.is_foreign and options.get("allow_foreign"):
            del expected["tokenizer"]
    return {name: what for name, what in expected.items() if options.get(name) not in (None, False)}


def check_options(reference: Reference, options: Mapping[str, Any]) -> None:
    """Raises RequestError for one of ``options`` that is empty or would do nothing."""
    for name in ("revision", "tokenizer"):
        if options.get(name) is not None and not str(options[name]).strip():
            raise RequestError(f"{name} is empty, expected its name; leave it out")
    for name, what in unused_options(reference, options).items():
        value = options[name]
        found = "given" if isinstance(value, bool) else quoted(str(value))
        raise RequestError(
            f"{name} is {found} for {reference}, expected it only for {what}; leave it out"
        )


# What is not on this disk -------------------------------------------------------------------------


def _existing(path: Path) -> Path | None:
    """``path``, or what its ~ stands for, if it exists."""
    try:
        if path.exists():
            return path
        home = path.expanduser()
        return home if home != path and home.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, or nobody's home
        return None


def _holds_a_model(path: Path) -> bool:
    """Whether ``path`` is, or was to be, a model folder or a checkpoint."""
    if not path.is_dir():
        return True
    files = (MANIFEST, "config.json", "*.safetensors", "*.bin", "*.onnx")
    return any(any(path.glob(file)) for file in files)


def _elsewhere(name: str) -> Reference:
    """What a name means that is no path here; raises as ``find_reference``."""
    from pocketlm.export.hub import split_name  # not above: a model folder needs none of this

    if (page := _page(name)) is not None:
        raise RequestError(f"{quoted(name, 200)}: {page}")
    if split := split_name(name):
        return OnHub(*split)
    if _PATH.match(name) or "/" in name or "\\" in name:
        raise _nothing_at(name)
    cached = _cached(name)
    if len(cached) == 1:
        return OnHub(cached[0], None)
    raise _unknown_word(name, cached)


def _unknown_word(name: str, cached: list[str]) -> CheckpointError:
    found = "no path and no model in the cache of this name"
    if cached:
        found = f"{len(cached)} models in the cache of this name"
        advice = f"write {_either(cached)}"
    elif name in LEGACY_NAMES:
        advice = f"on the hub it is {LEGACY_NAMES[name]}: write that"
    elif near := list(_near(Path(name), DEMO)):
        advice = f"did you mean {_either(near)}?"
    else:
        advice = "check the path; a name on the hub is written org/name"
    return CheckpointError(f"{quoted(name, 200)}: found {found}, expected {EXPECTED}; {advice}")


def _nothing_at(name: str, more: str = "") -> CheckpointError:
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # nobody's home
        path = path.expanduser()
    if near := list(_near(path)):
        advice = f"did you mean {_either(near)}?"
    elif _existing(path.parent) is None:
        advice = f"there is no folder {path.parent} either: check the path"
    else:
        advice = "check the path"
    return CheckpointError(
        f"{quoted(name, 200)}: found nothing at this path, expected a model folder or a "
        f"checkpoint; {advice}{more}"
    )


def _near(path: Path, *others: str) -> Iterator[str]:
    """Paths beside ``path``, and ``others``, that begin so or are spelled almost so."""
    from difflib import get_close_matches
    from itertools import islice

    neighbours: list[str] = []
    with contextlib.suppress(OSError, ValueError):  # no folder, or no name of one
        neighbours += [file.name for file in islice(path.parent.iterdir(), _MOST_NEIGHBOURS)]
    names = [*sorted(neighbours), *others]
    longer = [name for name in names if path.name and name.startswith(path.name)]
    close = get_close_matches(path.name, names, cutoff=0.7)
    for match in list(dict.fromkeys([*longer, *close]))[:_MOST_NEAR]:
        yield str(path.with_name(match)) if match in neighbours else match


def _either(names: list[str]) -> str:
    return " or ".join(names)


def _cached(word: str) -> list[str]:
    """The repositories in the cache that are called ``word`` or whose last word it is."""
    from pocketlm.export.cache_folder import cache_folder
    from pocketlm.models import store

    root = cache_folder()
    names = [repository.name for repository in store.repositories(root)] if root else []
    return [name for name in names if word in (name, name.rpartition("/")[2])]


def _page(name: str) -> str | None:
    """What is wrong with the address of a page, and what to write; None for what is none."""
    scheme, is_address, rest = name.partition("://")
    host, _, path = (rest if is_address else name).partition("/")
    if scheme.lower() == "hf" and is_address:
        path = rest
    elif not host or host.lower().removeprefix("www.") not in (*HUB_HOSTS, _endpoint_host()):
        if not is_address or scheme.lower() not in ("http", "https", "ftp", "s3", "file"):
            return None
        return (
            f"found an address that is not of the hub, expected {EXPECTED}; download what is there "
            "and name its folder"
        )
    return f"found the address of a page, expected org/name; {_advice_for_page(path)}"


def _endpoint_host() -> str:
    return urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower()


def _advice_for_page(path: str) -> str:
    from pocketlm.export.hub import DEFAULT_REVISION, split_name

    words = [unquote(word) for word in re.split(r"[?#]", path)[0].strip("/").split("/")]
    if words[0] in ("datasets", "spaces"):
        return f"that is one of the {words[0]}, choose a model"
    repository = LEGACY_NAMES.get(words[0]) or "/".join(words[:2])
    split = split_name(repository)
    if split is None:
        return "write the last two words of the model's own page"
    if words[2:3] and words[2] in ("tree", "blob", "resolve", "commit") and len(words) > 3:
        revision = words[3]
        repository += f"@{revision}" if revision != DEFAULT_REVISION else ""
    return f"write {repository}"
