"""Several processes: each loads its own model, and a fork of one that has a model ends well.

To free a graph of ONNX Runtime is to wait for its threads, of which a fork has none.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import pocketlm
from pocketlm.export.folder import ModelFolder

PATIENCE = 120.0  # of a test that fails

FORKED = """
import os, sys
import pocketlm

def forget():
    global model
    del model

def use():
    try:
        model.generate("a")
    except pocketlm.PocketLMError as error:
        assert "found a fork of it" in str(error)
        sys.exit(0)

def end_by_itself():
    pass

acts = [forget, use, lambda: model.close(), end_by_itself]
model = pocketlm.load(sys.argv[1], threads=2)
model.generate("a", max_tokens=2)
for act in acts:
    child = os.fork()
    if child == 0:
        act()
        sys.exit(0)
    print(os.waitpid(child, 0)[1])
print(model.generate("a", max_tokens=2, ignore_eos=True).finish_reason)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no fork")
def test_a_fork_forgets_its_parents_model_and_ends(tiny_folder: ModelFolder) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tiny_folder.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.stdout.split(), ended.stderr) == (["0"] * 4 + ["length"], "")


STARTED = """
import multiprocessing, sys
import pocketlm

def work(path, queue):
    with pocketlm.load(path, threads=2) as model:
        queue.put(model.generate("abc", temperature=0, max_tokens=5).token_ids)

if __name__ == "__main__":
    model = pocketlm.load(sys.argv[1], threads=2)
    expected = model.generate("abc", temperature=0, max_tokens=5).token_ids
    for method in sys.argv[2:]:
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=work, args=(sys.argv[1], queue))
        process.start()
        print(queue.get() == expected)
        process.join()
        print(process.exitcode)
"""


def test_every_way_to_start_a_process_takes_a_model_of_its_own(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(STARTED, "utf-8")
    methods = ["spawn"] if sys.platform == "win32" else ["spawn", "fork"]
    command = [sys.executable, "-W", "ignore", str(script), str(tiny_folder.path), *methods]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.stdout.split(), ended.stderr) == (["True", "0"] * len(methods), "")


def test_a_model_is_sent_to_no_other_process(tiny_model: pocketlm.Model) -> None:
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="give that the path, and load the model there"):
            send(tiny_model)
