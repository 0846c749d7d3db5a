"""A graph that was found to be one of ours is not inspected again, until it or the check changes.

What was found is remembered where ``verified`` remembers hashes, by what the graph's file holds: so
no other bytes are taken for those that were inspected.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..folder import ModelFolder
from ..manifest import DECODER
from ..verified import VerifiedFiles
from .graph_file import foreign, read_graph_file
from .onnx_file import GraphRefused


def checked_graph(folder: ModelFolder, name: str = DECODER) -> bytes:
    """The bytes of that graph, which ``check_graph`` lets pass; raises what that raises.

    Its modules are imported only where it has to look.
    """
    file = folder.graph_file(name)
    try:
        data = read_graph_file(file)
    except GraphRefused as refused:
        raise foreign(file, refused) from refused
    identity = _identity(folder, name, data)
    memory = VerifiedFiles.load()
    if identity is not None and identity in memory.identities:
        return data
    from .graph import check_graph

    check_graph(folder, name, data)
    if identity is not None:
        memory.add(identity)
        memory.save()
    return data


def _identity(folder: ModelFolder, name: str, data: bytes) -> str | None:
    """Changes with the graph, all that the manifest says, and the files of this check.

    None where one of these is not to be had: of a manifest of version 1, in a frozen application.
    """
    here = Path(__file__).parent
    checks = [file.stat() for part in (here, here.parent) for file in sorted(part.glob("*.py"))]
    if folder.manifest.sha256 is None or not checks:
        return None
    code = repr([(check.st_size, check.st_mtime_ns) for check in checks])
    parts = (name, folder.manifest.sha256, hashlib.sha256(data).hexdigest(), code)
    return f"graph:{hashlib.sha256(repr(parts).encode()).hexdigest()}"
