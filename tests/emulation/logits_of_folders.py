"""Run by another process, perhaps emulated: saves the logits of model folders on some tokens.

    python logits_of_folders.py OUT.npz TOKENS.json FOLDER [FOLDER ...]

All tokens but the last few go through at once, those one by one: other kernels. A plain script in
one process, because what an emulated process starts runs natively.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.session import Session

SINGLE = 12  # tokens that go one by one


def logits_of(path: Path, token_ids: list[int]) -> NDArray[np.float32]:
    """Logits after every token: (S, V)."""
    session = Session(ModelFolder.open(path), threads=1)
    cache = session.new_cache()
    rows = [session.all_logits(token_ids[:-SINGLE], cache)]
    rows += [session.step([token], cache)[None].copy() for token in token_ids[-SINGLE:]]
    return np.concatenate(rows)


def main() -> None:
    """Reads the arguments, writes one array per folder, named as the folder."""
    out, tokens, *folders = map(Path, sys.argv[1:])
    token_ids = json.loads(tokens.read_text())
    arrays: dict[str, Any] = {folder.name: logits_of(folder, token_ids) for folder in folders}
    np.savez(out, **arrays)


if __name__ == "__main__":
    main()
