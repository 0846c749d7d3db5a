"""Everything that opens or publishes a graph asks first whether it is one that we can have written.

What is refused is tested in ``test_graph_rules``, what the reader makes of bytes in
``test_onnx_file``, what is known of values in ``test_graph_facts``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from command_line import Run, assert_refused
from graph_folders import (
    Change,
    constant,
    folder_with,
    insert,
    load,
    set_attribute,
    set_place,
    traced_folder,
)
from onnx import ModelProto, TensorProto, helper
from traced_graphs import GPT2

from pocketlm.export.errors import CheckpointError, ModelFolderError
from pocketlm.export.float16_attention import float16_attention_graph
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph import Graph
from pocketlm.export.traced.contract import check_operators
from pocketlm.export.writing import export_model, open_decoder
from pocketlm.quantize.plan import plan_for
from pocketlm.runtime.session import Session

G = "GroupQueryAttention"


def hostile(folder: ModelFolder, to: Path, change: Change) -> ModelFolder:
    model = load(folder)
    change(model)
    return folder_with(folder, to, model.SerializeToString())


OPENERS: dict[str, Callable[[ModelFolder], Any]] = {
    "session": lambda folder: Session(folder, threads=1),
    "a session over other bytes": lambda folder: Session(folder, threads=1, graph=b"x"),
    "quantize": open_decoder,
    "float16": float16_attention_graph,
}


@pytest.mark.parametrize("opener", OPENERS)
def test_nothing_opens_a_graph_before_the_check(
    opener: str, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = hostile(tiny_folder, tmp_path / "copy", set_place(location="../secret"))
    with pytest.raises(ModelFolderError, match="foreign graphs are not opened"):
        OPENERS[opener](folder)


def test_a_foreign_graph_does_not_pass_for_one_of_ours(
    tiny_folder: ModelFolder, tmp_path: Path, run: Run
) -> None:
    folder = hostile(tiny_folder, tmp_path / "copy", set_place(location="../secret"))
    assert run("info", folder.path).code == 0
    assert_refused(run("info", folder.path, "--verify"), "foreign graphs are not opened")


GRAPHS: dict[str, Callable[[bytes], bytes]] = {
    "an empty graph": lambda data: b"",
    "a cut graph": lambda data: data[:-100],
    "half a graph": lambda data: data[: len(data) // 2],
    "another file": lambda data: b"PK\3\4" + data,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_quantizing_a_damaged_graph_is_bad_input(
    name: str, tiny_folder: ModelFolder, tmp_path: Path, run: Run
) -> None:
    data = GRAPHS[name]((tiny_folder.path / "model.onnx").read_bytes())
    folder = folder_with(tiny_folder, tmp_path / "copy", data)
    ended = run("quantize", folder.path, tmp_path / "out", "--to", "int8")
    assert_refused(ended, "model.onnx: found .*, expected")
    assert not (tmp_path / "out").exists()


def test_a_constant_outside_the_folder_is_not_published(tmp_path: Path, run: Run) -> None:
    growing = traced_folder(tmp_path / "growing", GPT2, rewrite=False)
    for number, place in enumerate(("/etc/hostname", "../secret", "model.onnx")):
        tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)
        change = partial(insert, operator="Constant", inputs=[], value=tensor)
        folder = hostile(growing, tmp_path / str(number), change)
        out = tmp_path / f"out-{number}"
        assert_refused(run("quantize", folder.path, out, "--to", "int8"), "'Constant'")
        assert not out.exists()


def exploding_functions(model: ModelProto) -> None:
    """Each calls the one before twice: 2^40 nodes once they are written out."""
    name, opsets = "Neg", [helper.make_opsetid("", 23), helper.make_opsetid("evil", 1)]
    for number in range(40):
        domain = "evil" if number else ""
        body = [
            helper.make_node(name, ["x"], ["y"], domain=domain),
            helper.make_node(name, ["y"], ["z"], domain=domain),
        ]
        name = f"F{number}"
        model.functions.append(helper.make_function("evil", name, ["x"], ["z"], body, opsets))
    model.opset_import.append(helper.make_opsetid("evil", 1))
    insert(model, name, ["input_ids"], domain="evil")


def endless_loop(model: ModelProto) -> None:
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), condition],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )
    insert(model, "Loop", ["", constant(model, "true", True, bool)], body=body)


RUN_ALL = """
import sys
from pocketlm import cli
for folder in sys.argv[1:]:
    try:
        cli.main(["run", folder, "a", "--max-tokens", "2"])
    except SystemExit as ended:
        print(ended.code)
"""


def test_graphs_that_killed_or_hung_the_process_end_with_one_line(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    """In a process of their own: opened unchecked, each of these ends it or never returns."""
    changes = {
        "heads": set_attribute(G, "num_heads", 1 << 32),
        "key heads": set_attribute(G, "kv_num_heads", 1 << 62),
        "functions": exploding_functions,
        "loop": endless_loop,
    }
    copies = [
        hostile(tiny_folder, tmp_path / name, change).path for name, change in changes.items()
    ]
    ended = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *copies], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "2\n" * len(copies))
    lines = ended.stderr.splitlines()
    for line, words in zip(
        lines,
        ("num_heads 4294967296", "kv_num_heads 46", "local functions", "a subgraph"),
        strict=True,
    ):
        assert line.startswith("pocketlm: ") and words in line


# Graphs that are made ----------------------------------------------------------------------------


def test_a_traced_operator_that_no_rule_knows_is_named_before_weights_are_written() -> None:
    g = Graph("other")
    x = g.input("x", np.float32, [1])
    g.output(g.Det(x), "y", np.float32, [])
    with pytest.raises(CheckpointError, match="the traced graph has the operator Det"):
        check_operators(g.model())


def test_what_the_check_refuses_is_not_published(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    decoder = open_decoder(tiny_folder)
    attention = next(item for item in decoder.model.graph if item.op_type == G)
    attention.attributes.add(ir.AttrInt64("local_window_size", 0))
    with pytest.raises(CheckpointError, match="the graph of this gpt2 has local_window_size 0"):
        export_model(decoder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_quantizing_a_graph_without_logits_says_so() -> None:
    g = Graph("no logits")
    g.output(g.Neg(g.input("x", np.float32, [1])), "scores", np.float32, [1])
    with pytest.raises(CheckpointError, match="the outputs scores, expected logits among them"):
        plan_for(g.model(), "int8")
