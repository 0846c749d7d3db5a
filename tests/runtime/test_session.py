"""A session: rows of logits, refused requests, forks, threads, folders that break the contract."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import in_a_fork
from model_folders import with_manifest
from numpy.typing import NDArray

from pocketlm.export.errors import ContextLengthError, ModelFolderError, PocketLMError, RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.session import Session

IDS = [int(number) for number in np.random.default_rng(3).integers(0, 300, 60)]


def copy_folder(folder: ModelFolder, to: Path, **decoder: int) -> ModelFolder:
    """A copy whose manifest has other sizes of the decoder."""
    shutil.copytree(folder.path, to)
    return with_manifest(to, replace(folder.manifest, decoder=replace(folder.shape, **decoder)))


def test_all_logits_equal_the_logits_of_single_steps(tiny_session: Session) -> None:
    # One row at a time and many at once are summed in different orders by the kernels.
    rows = tiny_session.all_logits(IDS, tiny_session.new_cache())
    cache = tiny_session.new_cache()
    steps = [tiny_session.step([token], cache) for token in IDS]
    np.testing.assert_allclose(rows, steps, rtol=0, atol=1e-4)
    assert rows.shape == (60, 300)


def test_step_gives_the_last_row_of_all_logits(tiny_session: Session) -> None:
    last = tiny_session.step(IDS, tiny_session.new_cache())
    rows = tiny_session.all_logits(IDS, tiny_session.new_cache())
    np.testing.assert_allclose(last, rows[-1], rtol=0, atol=1e-4)


def test_steps_and_all_logits_may_alternate(tiny_session: Session) -> None:
    cache, alone = tiny_session.new_cache(), tiny_session.new_cache()
    expected = [tiny_session.step([token], alone) for token in IDS[:8]]
    found = []
    for i, token in enumerate(IDS[:8]):
        if i % 2:
            found.append(tiny_session.all_logits([token], cache)[0])
        else:
            found.append(tiny_session.step([token], cache))
    np.testing.assert_array_equal(found, expected)


def test_all_logits_belong_to_the_caller(tiny_session: Session) -> None:
    first = tiny_session.all_logits(IDS, tiny_session.new_cache())
    copy = first.copy()
    tiny_session.all_logits(IDS[::-1], tiny_session.new_cache())
    np.testing.assert_array_equal(first, copy)


def test_all_logits_may_be_written_to_the_first_rows_of_an_array(tiny_session: Session) -> None:
    expected = tiny_session.all_logits(IDS, tiny_session.new_cache())
    array = np.full((len(IDS) + 2, expected.shape[1]), -1, np.float32)
    found = tiny_session.all_logits(IDS, tiny_session.new_cache(), array)
    assert np.shares_memory(found, array)
    np.testing.assert_array_equal(array[: len(IDS)], expected)
    assert (array[len(IDS) :] == -1).all()


@pytest.mark.parametrize(
    "ids, message",
    [
        ([], "found no token ids, expected at least one"),
        ([5, 300], "found token id 300, expected 0 to 299"),
        ([5, -1, 300], "found token id -1, expected 0 to 299"),
        ([2**70], f"found token id {2**70}, expected 0 to 299"),
        ([1] * 161, r"found 0 \+ 161 tokens, expected at most 160"),
    ],
)
def test_wrong_ids_are_refused_with_the_numbers(
    tiny_session: Session, ids: list[int], message: str
) -> None:
    cache = tiny_session.new_cache()
    for call in (tiny_session.step, tiny_session.all_logits):
        with pytest.raises(RequestError, match=message):
            call(ids, cache)
        assert cache.length == 0


def test_a_full_context_is_refused_and_stays_usable(tiny_session: Session) -> None:
    cache = tiny_session.new_cache()
    tiny_session.step([1] * 159, cache)
    with pytest.raises(ContextLengthError, match=r"found 159 \+ 2 tokens, expected at most 160"):
        tiny_session.step([1, 2], cache)
    tiny_session.step([1], cache)
    assert cache.length == 160
    cache.truncate(10)
    tiny_session.step([1], cache)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_refused_within_a_second(tiny_folder: ModelFolder) -> None:
    session = Session(tiny_folder, threads=2)
    cache = session.new_cache()
    session.step(IDS, cache)
    said = in_a_fork(lambda: (session.step([1], cache), None)[1], 1.0).decode()
    assert said.startswith("PocketLMError: this model was loaded by process")
    assert "load the model in the process that uses it" in said
    session.step([1], cache)  # the parent goes on


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_step_is_refused_too(tiny_folder: ModelFolder) -> None:
    session = Session(tiny_folder, threads=1)
    cache = session.new_cache()
    with session._lock:  # as another thread's step would hold it
        said = in_a_fork(lambda: (session.step([1], cache), None)[1], 1.0)
    assert said.startswith(b"PocketLMError: this model was loaded by process")


def test_threads_with_their_own_caches_get_solo_results(tiny_session: Session) -> None:
    prompts = [IDS * 2, IDS[::-1] * 2]

    def run(prompt: list[int]) -> list[NDArray[np.float32]]:
        cache = tiny_session.new_cache()
        rows = []
        for token in prompt:
            row = tiny_session.step([token], cache)
            time.sleep(1e-5)  # what the other thread needs to take its turn
            rows.append(row)
        return rows

    alone = [run(prompt) for prompt in prompts]
    together: list[list[NDArray[np.float32]]] = [[], []]

    def work(number: int) -> None:
        together[number] = run(prompts[number])

    workers = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    "layers, name", [(1, "past_key_values.1.key"), (3, "past_key_values.2.key")]
)
def test_another_number_of_layers_breaks_the_contract(
    tiny_folder: ModelFolder, tmp_path: Path, layers: int, name: str
) -> None:
    folder = copy_folder(tiny_folder, tmp_path / "copy", num_layers=layers)
    with pytest.raises(ModelFolderError) as caught:
        Session(folder, threads=1)
    message = str(caught.value)
    assert "model.onnx: found inputs or outputs that differ from the manifest in" in message
    assert name in message and "export the checkpoint again" in message


@pytest.mark.parametrize(
    "decoder",
    [{"vocab_size": 301}, {"kv_heads": 2}, {"head_size": 16}, {"num_layers": 2, "vocab_size": 299}],
)
def test_other_sizes_never_reach_the_kernel(
    tiny_folder: ModelFolder, tmp_path: Path, decoder: dict[str, int]
) -> None:
    folder = copy_folder(tiny_folder, tmp_path / "copy", **decoder)
    with pytest.raises(PocketLMError):
        session = Session(folder, threads=1)
        session.step([1, 2, 3], session.new_cache())


@pytest.mark.parametrize("name", ["vocab_size", "kv_heads", "head_size", "num_layers"])
def test_sizes_beyond_the_graph_are_refused_before_memory_is_allocated(
    tiny_folder: ModelFolder, tmp_path: Path, name: str
) -> None:
    folder = copy_folder(tiny_folder, tmp_path / "copy", **{name: (1 << 31) - 1})
    with pytest.raises(ModelFolderError, match=r"model\.onnx: .* export the checkpoint again"):
        Session(folder, threads=1)


def test_a_graph_that_cannot_be_opened_is_named(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    folder = copy_folder(tiny_folder, tmp_path / "copy")
    (folder.path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelFolderError, match=r"model\.onnx: found .* foreign graphs"):
        Session(folder, threads=1)


@pytest.mark.parametrize("threads", [0, 100_000])
def test_wrong_threads_are_refused(tiny_folder: ModelFolder, threads: Any) -> None:
    with pytest.raises(RequestError, match=rf"threads is {threads}, expected an integer from 1 to"):
        Session(tiny_folder, threads)


def test_threads_are_those_asked_for_or_found(tiny_folder: ModelFolder) -> None:
    assert Session(tiny_folder, 1).threads == 1
    assert Session(tiny_folder).threads >= 1


def test_loading_leaves_the_processors_arithmetic_alone(tiny_folder: ModelFolder) -> None:
    # A fresh process: ONNX Runtime changes the mode with the first session of a process only.
    program = """
import sys
from pocketlm import load
model = load(sys.argv[1])
model.generate("a", max_tokens=2)
assert 5e-324 * 1.0 > 0, "subnormal numbers are flushed to zero"
"""
    subprocess.run([sys.executable, "-c", program, tiny_folder.path], check=True)


@pytest.mark.parametrize("version", ["99.1", "9" * 5000])
def test_a_folder_for_a_newer_onnxruntime_is_refused(
    tiny_folder: ModelFolder, version: str
) -> None:
    manifest = replace(tiny_folder.manifest, minimum_onnxruntime=version)
    newer = replace(tiny_folder, manifest=manifest)
    with pytest.raises(ModelFolderError, match=f"expected {version} or newer; .*>={version}"):
        Session(newer)


def test_a_finished_generation_leaves_no_cache_behind(tiny_session: Session) -> None:
    cache = tiny_session.new_cache()
    tiny_session.step([1, 2, 3], cache)
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None
    assert np.isfinite(tiny_session.step([1, 2, 3], tiny_session.new_cache())).all()
