"""What a model folder of another runtime holds: its graph, and what its configurations say.

    genai_config.json  model.onnx  model.onnx.data  tokenizer.json           onnxruntime-genai
    config.json  tokenizer.json  onnx/model.onnx  onnx/model_q4.onnx  …      transformers.js
    config.json  tokenizer.json  model.onnx  model.onnx_data                 optimum

A folder with several graphs is read as its plain one; another is chosen by naming its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..checkpoint import load_config
from ..errors import CheckpointError
from ..strict_json import LARGEST_CONFIG, load_json_object, quoted

GENAI_CONFIG = "genai_config.json"
GRAPHS_FOLDER = "onnx"
PLAIN = (f"{GRAPHS_FOLDER}/model.onnx", "model.onnx")
NO_WEIGHTS = (".json", ".jinja", ".md", ".txt", ".model", ".py")
# Of a decoder -> where config.json has it, by any of the names, and where genai_config.json has it.
SIZES = {
    "hidden_size": (("hidden_size", "n_embd"), "hidden_size"),
    "num_heads": (("num_attention_heads", "n_head"), "num_attention_heads"),
    "head_size": (("head_dim",), "head_size"),
    "context_length": (("max_position_embeddings", "n_positions", "n_ctx"), ""),
}


@dataclass(frozen=True)
class ForeignFolder:
    """One graph of a folder, and what lies beside it."""

    path: Path
    graph: Path
    config: dict[str, Any]  # with model_type
    generation_config: dict[str, Any]
    sizes: dict[str, int]  # those of ``SIZES`` that are said

    @property
    def files(self) -> tuple[Path, ...]:
        """The graph, what may be its weights, and the configurations that were read.

        Weights lie beside the graph, and may have any name.
        """
        names = ("config.json", "generation_config.json", GENAI_CONFIG)
        configs = [self.path / name for name in names if (self.path / name).is_file()]
        near = sorted(file for file in self.graph.parent.glob("*") if file.is_file())
        others = [file.name for file in near if file.suffix == ".onnx" and file != self.graph]
        beside = [
            file
            for file in near
            if file != self.graph
            and file.suffix not in NO_WEIGHTS
            and not file.name.startswith(tuple(others))
        ]
        return (self.graph, *beside, *configs)


def open_foreign(path: str | Path) -> ForeignFolder:
    """The folder ``path``, or the one of the graph that is named; raises CheckpointError."""
    path = Path(path).absolute()
    folder = path
    if path.suffix == ".onnx" and path.is_file():
        folder = path.parent.parent if path.parent.name == GRAPHS_FOLDER else path.parent
    genai = _genai_config(folder)
    decoder = genai.get("decoder")
    decoder = decoder if isinstance(decoder, dict) else {}
    graph = path if folder != path else _graph(folder, decoder)
    config = load_config(folder / "config.json") if (folder / "config.json").is_file() else {}
    model_type = config.get("model_type", genai.get("type"))
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"{folder}: found no model_type, expected config.json or {GENAI_CONFIG} that says it; "
            "get the folder again, whole"
        )
    file = folder / "generation_config.json"
    generation = load_config(file) if file.is_file() else _ends(genai)
    return ForeignFolder(
        path=folder,
        graph=graph,
        config=config | {"model_type": model_type},
        generation_config=generation,
        sizes=_sizes(config, genai, decoder),
    )


def _genai_config(folder: Path) -> dict[str, Any]:
    file = folder / GENAI_CONFIG
    if not file.is_file():
        return {}
    found = load_json_object(file, LARGEST_CONFIG, CheckpointError).get("model")
    return found if isinstance(found, dict) else {}


def _graph(folder: Path, decoder: dict[str, Any]) -> Path:
    named = decoder.get("filename")
    if named is not None:
        place = PurePosixPath(named) if isinstance(named, str) else PurePosixPath()
        if place.is_absolute() or ".." in place.parts or "\\" in str(named) or not place.parts:
            raise CheckpointError(
                f"{folder / GENAI_CONFIG}: found the file name {quoted(str(named))}, expected a "
                "graph in this folder; the file is damaged or harmful"
            )
        return folder / place
    for name in PLAIN:
        if (folder / name).is_file():
            return folder / name
    names = sorted(str(file.relative_to(folder)) for file in folder.glob("**/*.onnx"))
    raise CheckpointError(
        f"{folder}: found {', '.join(names[:5]) or 'no graph'}, expected {' or '.join(PLAIN)}; "
        "name the file of the graph instead"
    )


def _ends(genai: dict[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: genai[name] for name in names if name in genai}


def _sizes(
    config: dict[str, Any], genai: dict[str, Any], decoder: dict[str, Any]
) -> dict[str, int]:
    """As far as they are said; what they are wrong in, the graph's check finds."""
    said: dict[str, Any] = {}
    for size, (names, genai_name) in SIZES.items():
        found = [config[name] for name in names if config.get(name) is not None]
        said[size] = found[0] if found else decoder.get(genai_name)
    if said["context_length"] is None:
        said["context_length"] = genai.get("context_length")
    sizes = {name: size for name, size in said.items() if isinstance(size, int) and size > 0}
    if "head_size" not in sizes and sizes.keys() >= {"hidden_size", "num_heads"}:
        sizes["head_size"] = sizes["hidden_size"] // sizes["num_heads"]
    return sizes
