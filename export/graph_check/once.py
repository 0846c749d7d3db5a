"""A graph that was found to be one of ours is not inspected again, until it or the check changes.

What was found is remembered as ``verified`` remembers hashes, and for the same files.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..folder import ModelFolder
from ..manifest import DECODER
from ..verified import VerifiedFiles, file_identity


def check_graph_once(folder: ModelFolder, name: str = DECODER) -> None:
    """As ``check_graph``, whose modules are imported only where it has to look."""
    identity = _identity(folder, name)
    memory = VerifiedFiles.load()
    if identity is not None and identity in memory.identities:
        return
    from .graph import check_graph

    check_graph(folder, name)
    if identity is not None:
        memory.add(identity)
        memory.save()


def _identity(folder: ModelFolder, name: str) -> str | None:
    """Changes with the graph's file, all that the manifest says, and the files of this check.

    None where one of these is not to be had: of a manifest of version 1, in a frozen application.
    """
    checks = [file.stat() for file in sorted(Path(__file__).parent.glob("*.py"))]
    if folder.manifest.sha256 is None or not checks:
        return None
    code = repr([(check.st_size, check.st_mtime_ns) for check in checks])
    digest = hashlib.sha256(code.encode()).hexdigest()[:16]
    return f"{file_identity(folder.graph_file(name), folder.manifest.sha256)}:{name}:{digest}"
