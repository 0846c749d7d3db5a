"""What is measured is what NumPy makes of the whole model's activations, in whatever steps."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from checkpoint_files import write_checkpoint
from llama_checkpoints import llama_config, llama_tensors
from numpy.typing import NDArray

from pocketlm.export import publishing
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import NumericsError, PocketLMError, RequestError, StorageError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph import Blob, Weight
from pocketlm.export.lock import locked
from pocketlm.export.writing import export_model, open_decoder
from pocketlm.quantize.forecast import predict
from pocketlm.quantize.layerwise import split
from pocketlm.quantize.measuring import LOCK, measure
from pocketlm.quantize.statistics import STATE, Statistics, StatisticsError

CONFIG = llama_config("qwen3", num_hidden_layers=3)
TOKENS = np.random.default_rng(0).integers(0, 97, (6, 24))
IDENTITY = {"model": "a tiny one"}
LAYER = "layers.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The model that is measured here."""
    root = tmp_path_factory.mktemp("statistics")
    source = write_checkpoint(root / "source", CONFIG, llama_tensors(CONFIG))
    return export_model(open_checkpoint(source), root / "out")


@pytest.fixture(scope="module")
def measured(folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    """Its statistics; not to be written to."""
    return measure(model_of(folder), TOKENS, tmp_path_factory.mktemp("work"), IDENTITY, threads=1)


def model_of(folder: ModelFolder) -> ir.Model:
    return open_decoder(folder).model


def whole_model_activations(folder: ModelFolder) -> dict[str, NDArray[np.float64]]:
    """Every product's input and every present of one run of the whole graph, by value name."""
    model = onnx.load(folder.path / "model.onnx")
    names = {name for part in split(model_of(folder)) for name in part.products.values()}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    shape = (len(TOKENS), folder.shape.kv_heads, 0, folder.shape.head_size)
    past = {
        f"past_key_values.{i}.{kind}": np.empty(shape, np.float32)
        for i in range(folder.shape.num_layers)
        for kind in ("key", "value")
    }
    positions = np.broadcast_to(np.arange(TOKENS.shape[1]), TOKENS.shape)
    feeds = {"input_ids": TOKENS, "attention_mask": np.ones_like(TOKENS), "position_ids": positions}
    found = session.run(None, {**feeds, **past})
    wanted = [value.name for value in session.get_outputs()]
    return {name: array.astype(np.float64) for name, array in zip(wanted, found, strict=True)}


def test_hessians_are_those_of_the_whole_models_activations(
    folder: ModelFolder, measured: Statistics
) -> None:
    activations = whole_model_activations(folder)
    products = {w: x for part in split(model_of(folder)) for w, x in part.products.items()}
    assert set(measured.weights) == set(products) and "lm_head.weight" in products
    assert (measured.tokens, measured.window) == (TOKENS.size, 24)
    for weight, value in products.items():
        x = activations[value].reshape(TOKENS.size, -1)
        expected = x.T @ x / len(x)
        found = measured.hessian(weight)
        assert found is not None and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert measured.hessian("embed_tokens.weight") is None


def test_products_with_one_input_share_a_hessian(measured: Statistics) -> None:
    ids = [
        {measured.hessian_id(f"{LAYER}.{name}.weight") for name in names}
        for names in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.o_proj",),
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
        )
    ]
    assert all(len(found) == 1 for found in ids) and len(set.union(*ids)) == 4
    files = {file.name for file in measured.folder.glob("*.npy")}
    assert len(files) == 3 * 4 + 1 and not any("stream" in name for name in files)


@pytest.mark.parametrize("chunk_tokens", [1, 50, 10**6])
def test_statistics_do_not_depend_on_chunks(
    chunk_tokens: int, folder: ModelFolder, measured: Statistics, tmp_path: Path
) -> None:
    again = measure(
        model_of(folder), TOKENS, tmp_path, IDENTITY, threads=1, chunk_tokens=chunk_tokens
    )
    for weight in measured.weights:
        expected, found = measured.hessian(weight), again.hessian(weight)
        assert expected is not None and found is not None
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# Going on ----------------------------------------------------------------------------------------

# Measures over and over, each time in a fork that is killed one step later than the one before;
# prints how far each got. Steps: what is opened, renamed or removed in the folder, and every fsync.
CHILD = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph import Blob, Weight
from pocketlm.export.writing import open_decoder
from pocketlm.quantize.measuring import measure

folder, work = ModelFolder.open(sys.argv[1]), Path(sys.argv[2])
model = open_decoder(folder).model
left = None

def step():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def watch(event, arguments):
    if left is not None and event in ("open", "os.rename", "os.mkdir", "os.remove"):
        if str(arguments[0]).startswith(str(work)):
            step()

os.fsync = lambda handle: step() if left is not None else None
sys.addaudithook(watch)
killed = []
while True:
    child = os.fork()
    if child == 0:
        left = 6 * len(killed)
        tokens = np.array(json.loads(sys.argv[3]))
        measure(model, tokens, work, {"model": "a tiny one"}, threads=1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        break
    state = work / "statistics.json"
    finished = json.loads(state.read_text())["finished"] if state.exists() else None
    killed.append({"status": status, "finished": finished})
print(json.dumps(killed))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks, and kills with SIGKILL")
def test_a_run_killed_at_any_step_is_gone_on_with(
    folder: ModelFolder, measured: Statistics, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder.path), str(work), json.dumps(TOKENS.tolist())],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    killed = json.loads(done.stdout)
    assert len(killed) >= 5
    assert {state["status"] for state in killed} == {-signal.SIGKILL}
    finished = [-1 if state["finished"] is None else state["finished"] for state in killed]
    assert finished == sorted(finished) and len(set(finished)) >= 3
    assert contents(work) == contents(measured.folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class Stop(Exception):
    """Of an observer."""


def stop_after(parts: int) -> Callable[[int, int], None]:
    def observer(done: int, total: int) -> None:
        assert total == 5
        if done == parts:
            raise Stop

    return observer


def test_a_second_run_measures_only_what_is_left(
    folder: ModelFolder, measured: Statistics, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        measure(model_of(folder), TOKENS, tmp_path, IDENTITY, stop_after(2), threads=1)
    with pytest.raises(StatisticsError, match="found 2 of 5 parts of the model measured, expected"):
        Statistics.open(tmp_path)
    told: list[tuple[int, int]] = []
    measure(model_of(folder), TOKENS, tmp_path, IDENTITY, lambda *n: told.append(n), threads=1)
    assert told == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert contents(tmp_path) == contents(measured.folder)


def test_a_full_disk_is_told_and_what_was_finished_stays(
    folder: ModelFolder, measured: Statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Path] = []
    save = np.save

    def fills_up(file: Path, array: NDArray[np.float32]) -> None:
        if len(saved) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(file)
        save(file, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fills_up)
        with pytest.raises(StorageError, match=r"No space left.*; parts that were finished stay"):
            measure(model_of(folder), TOKENS, tmp_path, IDENTITY, threads=1)
    told: list[int] = []
    measure(model_of(folder), TOKENS, tmp_path, IDENTITY, lambda n, _: told.append(n), threads=1)
    assert told == [2, 3, 4, 5] and contents(tmp_path) == contents(measured.folder)


def test_a_disk_too_small_is_told_before_it_begins(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "free_space", lambda out: 1000)
    with pytest.raises(StorageError, match="found 1.00 kB free, expected at least .* kB"):
        measure(model_of(folder), TOKENS, tmp_path, IDENTITY)


@pytest.mark.parametrize(
    "identity, tokens, words",
    [
        ({"model": "another"}, TOKENS, r"another model \(a tiny one\), expected another;"),
        (IDENTITY, TOKENS[:5], r"another text \("),
        ({**IDENTITY, "rotation": "R1"}, TOKENS, r"another rotation \(none\), expected R1;"),
    ],
)
def test_statistics_of_something_else_are_refused(
    identity: dict[str, str], tokens: Any, words: str, folder: ModelFolder, measured: Statistics
) -> None:
    before = contents(measured.folder)
    with pytest.raises(StatisticsError, match=words):
        measure(model_of(folder), tokens, measured.folder, identity)
    assert contents(measured.folder) == before


def test_another_graph_under_the_same_name_is_refused(measured: Statistics, tmp_path: Path) -> None:
    config = CONFIG | {"intermediate_size": 96}
    source = write_checkpoint(tmp_path / "source", config, llama_tensors(config))
    other = export_model(open_checkpoint(source), tmp_path / "out")
    with pytest.raises(StatisticsError, match="statistics of another graph"):
        measure(model_of(other), TOKENS, measured.folder, IDENTITY)


def test_a_folder_of_other_files_or_in_use_is_refused(folder: ModelFolder, tmp_path: Path) -> None:
    with locked(tmp_path / LOCK, print):
        with pytest.raises(StatisticsError, match=r"found process \d+ measuring into it"):
            measure(model_of(folder), TOKENS, tmp_path, IDENTITY)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(StatisticsError, match="found letter.txt, expected statistics"):
        measure(model_of(folder), TOKENS, tmp_path, IDENTITY)
    assert contents(tmp_path) == {"letter.txt": b"mine"}


def test_damaged_folders_say_so(measured: Statistics, tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match=f"found no {STATE}, expected a folder of statistics"):
        Statistics.open(tmp_path)
    state = (measured.folder / STATE).read_text()
    for text, words in (
        (state.replace('"version": 1', '"version": 9'), "version 9, expected"),
        (state.replace('"stream"', '"streams"'), "found no complete record"),
        ("{", "JSON"),
    ):
        (tmp_path / STATE).write_text(text)
        with pytest.raises(StatisticsError, match=words):
            Statistics.open(tmp_path)
    (tmp_path / STATE).write_text(state)
    (tmp_path / "hessian-001-0.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(StatisticsError, match="hessian-001-0.npy: cannot be read"):
        Statistics.open(tmp_path).hessian("layers.0.self_attn.q_proj.weight")


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value, words",
    [
        (f"{LAYER}.mlp.up_proj.weight", np.nan, f"{LAYER}.mlp.up_proj.weight: found NaN"),
        ("embed_tokens.weight", np.inf, "embed_tokens.weight: found NaN or infinity among"),
        (f"{LAYER}.mlp.up_proj.weight", 3e38, f"in the input of {LAYER}.mlp.down_proj.weight"),
    ],
)
def test_what_is_not_finite_is_named(
    name: str, value: float, words: str, folder: ModelFolder, tmp_path: Path
) -> None:
    model = model_of(folder)
    weight = model.graph.initializers[name].const_value
    assert isinstance(weight, Weight)
    damaged = weight.read()
    damaged[int(TOKENS[TOKENS < 80][0])] = value
    weight.blob = Blob(lambda start, stop: damaged[start:stop])
    with pytest.raises(NumericsError, match=words):
        measure(model, TOKENS, tmp_path / "work", IDENTITY, threads=1)


@pytest.mark.parametrize(
    "tokens, words",
    [
        (TOKENS[0], r"tokens are int64 \(24,\), expected integers \(rows, window\)"),
        (TOKENS * 1.0, "tokens are float64"),
        (TOKENS + 1000, "found token id 1096, expected 0 to 96"),
        (TOKENS - 97, "found token id -97, expected 0 to 96"),
    ],
)
def test_tokens_that_are_none_are_refused(
    tokens: Any, words: str, folder: ModelFolder, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        measure(model_of(folder), tokens, tmp_path / "work", IDENTITY)
    assert not (tmp_path / "work").exists()


def test_windows_longer_than_the_context_are_told(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    tokens = np.zeros((1, 161), np.int64)
    with pytest.raises(PocketLMError, match="embedding: ONNX Runtime failed .*longer than the mo"):
        measure(model_of(tiny_folder), tokens, tmp_path, IDENTITY, threads=1)


def test_a_forecast_knows_the_disk(folder: ModelFolder, measured: Statistics) -> None:
    found = predict(model_of(folder), TOKENS.size)
    written = sum(file.stat().st_size for file in measured.folder.glob("*.npy"))
    streams = 2 * 2 * 4 * TOKENS.size * CONFIG["hidden_size"]
    assert written - 10_000 < found.disk_bytes <= written + streams
    assert found.seconds > 0 and found.memory_bytes > 0
