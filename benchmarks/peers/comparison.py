"""One checkpoint through ours and all peers: levels, then the check that it is one model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...export.folder import ModelFolder
from ..exported_variants import LEVELS, export_options, level_of, spelled
from ..machine import OthersUse, busy_sentence, describe_machine, load_average
from ..shapes import SHAPES, write_checkpoint
from ..speed.measure import SpeedGrid
from .conversions import Contender, Peer, convert, our_peer, reference_peer
from .environments import PeerError
from .measure import Checks, Entry, OnProgress, Options, checks, judge, measure_level
from .process import ANSWER_SECONDS
from .scoring import Scoring, Texts, scoring
from .table import rows
from .trials import trials

STORED = {"llama": "BF16", "gpt2": "F32"}  # as the real ones are published
LEVEL_BYTES = {"fp32": 4.0, "int8": 1.5, "int4": 1.0}  # per weight, embeddings left wide included


@dataclass(frozen=True)
class Settings:
    """What to compare, and how."""

    root: Path  # environments, checkpoints, conversions and logs are kept in here
    peers: Sequence[Peer]
    grid: SpeedGrid  # of tests, with one number of threads
    levels: Sequence[str] = LEVELS
    rounds: int = 9
    answer_seconds: float = ANSWER_SECONDS
    discard: bool = False  # removes a level's conversions when it is measured
    texts: Texts | None = None  # to compare what is lost on; none: speed only
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict)  # more of ours
    many_rows: int = 0  # that decode together
    starts: int = 0  # of a fresh process each
    own_bench: bool = False  # also runs the benchmark of a peer that has one
    on_progress: OnProgress = lambda message: None


@dataclass
class Comparison:
    """One checkpoint through all, and what came of it so far."""

    name: str
    checkpoint: Path
    settings: Settings
    entries: list[Entry] = field(default_factory=list)
    others: list[OthersUse] = field(default_factory=list)
    interrupted: bool = False
    quality: dict[str, Any] | None = None  # the texts, and how they were cut

    def __post_init__(self) -> None:
        """Exports our fp32, which judges the others and knows the shape."""
        settings = self.settings
        self.load_before = load_average()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        ours = convert(our_peer(), "fp32", self.checkpoint, settings.root)
        self.reference = Entry("pocketlm", "fp32", "fp32", replace(ours, peer=reference_peer()))
        self.folder = folder = ModelFolder.open(ours.folder)
        self.shape, self.parameters = folder.shape, folder.manifest.num_parameters
        if settings.texts is not None:
            settings.texts.plan(folder)
        logs = settings.root / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.options = Options(
            trials(settings.grid, self.shape.context_length, settings.many_rows),
            settings.grid.threads[0],
            settings.rounds,
            logs,
            settings.answer_seconds,
            settings.on_progress,
            settings.starts,
            settings.own_bench,
        )

    def measure(self) -> None:
        """Level by level, then the check. Ctrl-C ends it with the rounds that are complete."""
        with ExitStack() as stack:
            try:
                scored = self._scoring(stack)
                context = self.shape.context_length
                found = checks(self.reference, self.shape.vocab_size, context, self.options)
                for level in self.settings.levels:
                    self._measure_level(level, found, scored)
                judge(self.reference, self.entries, self.options)
            except KeyboardInterrupt:
                self.interrupted = True

    def _scoring(self, stack: ExitStack) -> Scoring | None:
        """Our fp32's logits on the texts, if there are any, kept until ``stack`` ends."""
        if (texts := self.settings.texts) is None:
            return None
        made = scoring(texts, self.folder, self.reference, self.options, self.settings.root)
        scored = stack.enter_context(made)
        self.quality = scored.describe()
        return scored

    def _measure_level(self, level: str, found: dict[str, Checks], scored: Scoring | None) -> None:
        entries = self._prepare(level)
        self.entries += entries
        try:
            self.others += measure_level(entries, self.shape.vocab_size, found, self.options)
            if scored is not None:
                for entry in entries:
                    if entry.failure is None:
                        scored.score(entry)
        except KeyboardInterrupt:
            for entry in entries:
                if entry.failure is None and not any(entry.samples.values()):
                    entry.fail(PeerError("interrupted"))
            raise
        if self.settings.discard:
            self._discard(entries)

    def _prepare(self, level: str) -> list[Entry]:
        """Ours of this level, then the peers' precisions, converted or with the reason why not."""
        ours = self._convert(our_peer(), level, None)
        entries = [Entry("pocketlm", level, level, ours, ours.weights_bytes)]
        for name, options in self.settings.variants.items():
            if level_of(options) == level:
                contender = self._convert_variant(options, level)
                entries.append(Entry("pocketlm", name, level, contender, contender.weights_bytes))
        for peer in self.settings.peers:
            known = {**peer.precisions, **(peer.calibrated if self.settings.texts else {})}
            for precision in (name for name, of in known.items() if of == level):
                entry = Entry(peer.name, precision, level)
                entries.append(entry)
                try:
                    converted = peer.same.get(precision, precision)
                    contender = self._convert(peer, converted, ours.folder)
                    entry.contender = replace(contender, precision=precision)
                    entry.weights_bytes = entry.contender.weights_bytes
                except PeerError as error:
                    entry.fail(error)
        return entries

    def _convert_variant(self, options: Sequence[str], level: str) -> Contender:
        """Those that differ in how they are run only share a folder."""
        exported = spelled(export_options(options))
        if exported == spelled(["--precision", level]):
            contender = self._convert(our_peer(), level, None)
        else:
            contender = self._convert(our_peer({exported: level}), exported, None)
        given = spelled(options)
        return replace(contender, peer=our_peer({given: level}), precision=given)

    def _convert(self, peer: Peer, precision: str, our_folder: Path | None) -> Contender:
        self.settings.on_progress(f"{peer.name} {precision}: converting, unless it is kept")
        per_weight = LEVEL_BYTES[peer.level(precision)]
        if peer.requirements is not None:  # other converters write float32 first
            per_weight += LEVEL_BYTES["fp32"]
        return convert(
            peer,
            precision,
            self.checkpoint,
            self.settings.root,
            our_folder,
            needed_bytes=self.parameters * per_weight,
        )

    def _discard(self, entries: Sequence[Entry]) -> None:
        assert self.reference.contender is not None
        kept = self.reference.contender.folder
        folders = {entry.contender.folder for entry in entries if entry.contender is not None}
        for folder in folders - {kept}:
            shutil.rmtree(folder)

    def results(self) -> dict[str, Any]:
        """What ``--output json`` prints of it."""
        worst = max(self.others, key=lambda use: use.other_cores + use.stolen_cores, default=None)
        return {
            "name": self.name,
            "parameters": self.parameters,
            "circumstances": {
                **describe_machine(self.options.threads),
                "started": self.started,
                "load_average": {"before": self.load_before, "after": load_average()},
                "others": None if worst is None else asdict(worst),
                # Without rounds nothing was timed.
                "busy": busy_sentence(worst, self.load_before) if self.options.rounds else None,
                "repetitions": self.options.rounds,
            },
            "interrupted": self.interrupted,
            "quality": self.quality,
            "tests": [test.name for test in self.options.tests],
            "rows": rows(self.entries, self.options.tests, self.parameters),
        }


def shape_checkpoint(root: Path, name: str) -> Path:
    """The checkpoint of a shape, made once and kept."""
    folder = root / "checkpoints" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            dtype = STORED[SHAPES[name]["model_type"]]
            write_checkpoint(Path(temporary) / name, name, dtype=dtype).rename(folder)
    return folder
