"""Where pocketlm keeps what it can make again. Standard library only."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path | None:
    """``$POCKETLM_CACHE``, or pocketlm's own among this platform's caches; None without HOME."""
    if chosen := os.environ.get("POCKETLM_CACHE"):
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "pocketlm"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "pocketlm"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "pocketlm"
