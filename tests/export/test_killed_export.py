"""An export killed with SIGKILL before any of its steps: no model is visible, a rerun is exact."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import write_checkpoint
from llama_checkpoints import llama_config, llama_tensors

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

# Exports over and over, each time in a fork that is killed one step later, until one lives to the
# end; prints what each left. Steps: what is opened or renamed beside OUT, every fsync, and every
# seventh piece of the weights, in the midst of a file.
CHILD = """
import json, os, signal, sys
from pathlib import Path
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import MANIFEST
from pocketlm.export.observer import Observer
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

source, out = sys.argv[1], Path(sys.argv[2])
left = None

def step():
    global left
    if left is not None:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

def watch(event, arguments):
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
        if str(arguments[0]).startswith(str(out.parent)):
            step()

def progress(done, total):
    global pieces
    pieces += 1
    if pieces % 7 == 0:
        step()

fsync = os.fsync
os.fsync = lambda handle: (step(), fsync(handle))
sys.addaudithook(watch)
killed = []
while True:
    child = os.fork()
    if child == 0:
        left, pieces = len(killed), 0
        observer = Observer(progress=progress)
        export_model(open_checkpoint(source), out, precision_of("int4"), observer=observer)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break
    killed.append({
        "status": status,
        "names": [path.name for path in out.parent.iterdir()],
        "complete": (out / MANIFEST).exists(),
    })
    if killed[-1]["complete"]:
        break
print(json.dumps(killed))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks, and kills with SIGKILL")
def test_an_export_killed_at_any_step_leaves_no_model_and_starts_over_cleanly(
    tmp_path: Path,
) -> None:
    config = llama_config()
    source = write_checkpoint(tmp_path / "in", config, llama_tensors(config), shards=3)
    (tmp_path / "place").mkdir()
    out = tmp_path / "place" / "out"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    killed = json.loads(done.stdout)
    assert len(killed) > 25
    assert {state["status"] for state in killed} == {-signal.SIGKILL}
    for state in killed:
        # Of all the runs before there is one leftover at most: each run collects what it finds.
        visible = [name for name in state["names"] if not name.startswith(".out.partial-")]
        assert len(state["names"]) <= 1 and visible == (["out"] if state["complete"] else [])
    # The last run lived to the end, or was killed when all was done.
    found = ModelFolder.open(out)
    found.verify()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    expected = export_model(open_checkpoint(source), tmp_path / "undisturbed", precision_of("int4"))
    assert found.manifest == expected.manifest
