"""The same checkpoint through llama.cpp, CTranslate2, OpenVINO GenAI and others, beside pocketlm.

    python -m pocketlm.benchmarks.peers --shape gpt2-124m --shape llama-1b
    python -m pocketlm.benchmarks.peers --checkpoint gpt2/ --peer llama_cpp --precision int4

Every peer gets an environment of its own, made once (gigabytes, and minutes of compiling for
llama.cpp); conversions of a checkpoint are kept as well. Shapes have random weights: enough for
speed, and for the check that all run the same model. Needs the extra "export" and a system with
select() on pipes, so not Windows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...export.errors import PocketLMError, RequestError
from ...export.folder import ModelFolder, cache_folder
from ..machine import OthersUse, busy_sentence, describe_machine
from ..shapes import SHAPES, write_checkpoint
from ..speed import GENERATION, PROMPT, Choice
from .conversions import Contender, Peer, convert, known_peers, our_peer
from .environments import PeerError
from .measure import Entry, Options, judge, measure_level
from .process import ANSWER_SECONDS
from .table import markdown, rows

LEVELS = ("fp32", "int8", "int4")
STORED = {"llama": "BF16", "gpt2": "F32"}  # as the real ones are published
LEVEL_BYTES = {"fp32": 4.0, "int8": 1.5, "int4": 1.0}  # per weight, embeddings left wide included


@dataclass
class Run:
    """One checkpoint through all: what is asked for, and what came of it so far."""

    name: str
    checkpoint: Path
    arguments: argparse.Namespace
    peers: Sequence[Peer]
    entries: list[Entry] = field(default_factory=list)
    others: list[OthersUse] = field(default_factory=list)
    interrupted: bool = False

    def __post_init__(self) -> None:
        self.root: Path = self.arguments.folder
        self.load_before = os.getloadavg()[0]
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.reference = convert(our_peer(), "fp32", self.checkpoint, self.root, None)
        folder = ModelFolder.open(self.reference.folder)
        self.shape, self.parameters = folder.shape, folder.manifest["num_parameters"]
        choice = Choice(
            _listed(self.arguments.prompt),
            _listed(self.arguments.generation),
            depths=self.arguments.depth or [0],
            threads=[self.arguments.threads],
        )
        self.options = Options(
            choice.tests(self.shape.context_length),
            self.arguments.threads,
            self.arguments.rounds,
            self.root / "logs",
            self.arguments.timeout,
            say if not self.arguments.quiet else lambda message: None,
        )
        self.options.logs.mkdir(parents=True, exist_ok=True)

    def measure(self) -> None:
        """Level by level, then the check. Ctrl-C ends it with what is complete."""
        entries: list[Entry] = []
        try:
            for level in self.arguments.precision or LEVELS:
                entries = self._prepare(level)
                self.entries += entries
                others = measure_level(entries, self.shape.vocab_size, self.options)
                self.others += others
                if self.arguments.discard:
                    self._discard(entries)
                entries = []
            reference = Entry("pocketlm", "fp32", "fp32", self.reference)
            judge(reference, self.entries, self.shape.vocab_size, self.options)
        except KeyboardInterrupt:
            self.interrupted = True
            for entry in entries:
                entry.fail(PeerError("interrupted"))

    def _prepare(self, level: str) -> list[Entry]:
        """Ours of this level, then the peers' precisions, converted or with the reason why not."""
        ours = self._convert(our_peer(), level, None)
        entries = [Entry("pocketlm", level, level, ours)]
        for peer in self.peers:
            for precision in (name for name, of in peer.precisions.items() if of == level):
                entry = Entry(peer.name, precision, level)
                entries.append(entry)
                try:
                    entry.contender = self._convert(peer, precision, ours.folder)
                except PeerError as error:
                    entry.fail(error)
        return entries

    def _convert(self, peer: Peer, precision: str, our_folder: Path | None) -> Contender:
        self.options.on_progress(f"{peer.name} {precision}: converting, unless it is kept")
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        # Converters write float32 first.
        needed = self.parameters * (LEVEL_BYTES["fp32"] + LEVEL_BYTES[peer.precisions[precision]])
        if free < needed:
            raise PeerError(
                f"not converted: found {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB; "
                "make room, or use --discard"
            )
        return convert(peer, precision, self.checkpoint, self.root, our_folder)

    def _discard(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.contender is not None and entry.contender.folder != self.reference.folder:
                shutil.rmtree(entry.contender.folder)

    def results(self) -> dict[str, Any]:
        """What ``--output json`` prints of it."""
        worst = max(self.others, key=lambda use: use.other_cores + use.stolen_cores, default=None)
        return {
            "name": self.name,
            "parameters": self.parameters,
            "circumstances": {
                **describe_machine(self.arguments.threads),
                "started": self.started,
                "load_average": {"before": self.load_before, "after": os.getloadavg()[0]},
                "others": None if worst is None else asdict(worst),
                "busy": busy_sentence(worst, self.load_before),
                "repetitions": self.options.rounds,
            },
            "interrupted": self.interrupted,
            "rows": rows(self.entries, self.options.tests, self.parameters),
        }

    def text(self) -> str:
        """The table with its circumstances."""
        found = self.results()
        machine = found["circumstances"]
        lines = [
            f"{self.name}: {self.parameters / 1e6:.0f} M weights, {machine['threads']} threads, "
            f"{self.options.rounds} rounds, on {machine['cpu']} "
            f"({', '.join(machine['features'])}), {machine['cores']} cores, "
            f"load average {machine['load_average']['before']:.1f} before",
            f"{machine['busy']}\n" if machine["busy"] else "",
            markdown(found["rows"], self.options.tests),
        ]
        return "\n".join(lines)


def _listed(count: int | None) -> list[int] | None:
    return None if count is None else [count]


def say(message: str) -> None:
    """One line of progress."""
    print(f"{datetime.now():%H:%M:%S} {message}", file=sys.stderr, flush=True)


def shape_checkpoint(root: Path, name: str) -> Path:
    """The checkpoint of a shape, made once and kept."""
    folder = root / "checkpoints" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            dtype = STORED[SHAPES[name]["model_type"]]
            write_checkpoint(Path(temporary) / name, name, dtype=dtype).rename(folder)
    return folder


def chosen_peers(names: Sequence[str] | None) -> list[Peer]:
    """The peers of these names, all by default. RequestError lists the known."""
    known = known_peers()
    for name in names or ():
        if name not in known:
            raise RequestError(f"found the peer {name!r}, expected one of {', '.join(known)}")
    return [known[name] for name in names or known]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketlm.benchmarks.peers", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--shape", action="append", choices=SHAPES, help="random weights of this shape; repeatable")
    add("--checkpoint", type=Path, help="a folder of safetensors to measure as well")
    add("--peer", action="append", metavar="NAME", help="only this one; repeatable")
    add("--precision", action="append", choices=LEVELS, help="only this level; repeatable")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--rounds", type=int, default=9)
    add("--prompt", type=int, help=f"tokens of the prefill test, 0 for none; {PROMPT}")
    add("--generation", type=int, help=f"tokens generated, 0 for none; {GENERATION}")
    add("--depth", type=int, action="append", help="tokens before a generation; repeatable")
    add("--folder", type=Path, help="for environments, checkpoints and conversions; in the cache")
    add("--timeout", type=float, default=ANSWER_SECONDS, help="seconds for one answer of a peer")
    add("--discard", action="store_true", help="remove each conversion when it is measured")
    add("--output", choices=("md", "json"), default="md")
    add("--json", type=Path, help="also write the results to this file")
    add("--quiet", action="store_true", help="no progress on stderr")
    found = parser.parse_args(arguments)
    if not found.shape and found.checkpoint is None:
        parser.error("found neither --shape nor --checkpoint, expected one of them")
    if found.folder is None:
        found.folder = (cache_folder() or Path(tempfile.gettempdir())) / "peers"
    found.folder = found.folder.absolute()
    return found


def run(arguments: argparse.Namespace) -> int:
    """Measures all that is asked for; the exit code."""
    peers = chosen_peers(arguments.peer)
    checkpoints = {name: None for name in arguments.shape or ()}
    if arguments.checkpoint is not None:
        checkpoints[arguments.checkpoint.name] = arguments.checkpoint.absolute()
    results = []
    for name, given in checkpoints.items():
        one = Run(name, given or shape_checkpoint(arguments.folder, name), arguments, peers)
        one.measure()
        results.append(one.results())
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")
        if arguments.output == "md":
            print(one.text(), end="\n\n", flush=True)
        if one.interrupted:
            break
    if arguments.output == "json":
        print(json.dumps(results, indent=1))
    return 130 if results[-1]["interrupted"] else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; an error of ours is one line on stderr."""
    try:
        return run(parse(arguments))
    except PocketLMError as error:
        print(f"peers: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
