"""Where ours stands: in every test, ours over the fastest peer of the same width.

    for a row of ours u and a row of a peer p, round by round: seconds of p / seconds of u

by way of pocketlm's plain row of that width, o, which is open beside both: (o/u) · (p/o), in which
o cancels where all three are of one round. Peers that lose more than ours do not count, where both
are known: as a row of random weights says nothing of that, it is looked up in the rows of the
checkpoints that were scored in the same run, by runtime and precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..intervals import Estimate, estimate
from .table import markdown_lines, ratio_text
from .trials import FIRST_TOKEN

OURS = "pocketlm"
FULL = "fp32"
CALIBRATED = (" imatrix", " data")  # what peers call those of a format that real weights gain by
LEGEND = (
    "Ours over the fastest peer of the same width (first token: its seconds over ours), median and "
    "interval of paired rounds, of the peers whose KL is not above ours where both are known; "
    "behind a slash over the fastest of all, where that is another."
)

Row = dict[str, Any]
Losses = Mapping[tuple[str, str], float]  # mean KL by runtime and precision


def losses(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """What was lost on the last checkpoint that was scored."""
    return {
        (row["peer"], row["precision"]): row["quality"]["against"]["kl"]["mean"]["value"]
        for one in results
        for row in one["rows"]
        if row.get("quality")
    }


def standings(one: dict[str, Any], known: Losses) -> list[dict[str, Any]]:
    """A dict for each row of ours and test: over whom, and the ratio, None without a peer."""
    found = []
    for row in one["rows"]:
        if row["peer"] == OURS and row["level"] != FULL:
            peers = [
                other
                for other in one["rows"]
                if other["level"] == row["level"] and other["peer"] != OURS
            ]
            known_here = {**known, **losses([one])}
            for test in (*one["tests"], FIRST_TOKEN):
                if _figures(row, test) is not None:
                    found.append(_standing(row, peers, test, known_here))
    return found


def _standing(row: Row, peers: Sequence[Row], test: str, known: Losses) -> dict[str, Any]:
    loss = _loss(row, known)
    fair = [
        peer
        for peer in peers
        if loss is None or (other := _loss(peer, known)) is None or other <= loss
    ]
    return {
        "level": row["level"],
        "precision": row["precision"],
        "kl": loss,
        "test": test,
        "best": _best(row, fair, test),
        "best_of_all": _best(row, peers, test),
    }


def _loss(row: Row, known: Losses) -> float | None:
    """Of a row that was not scored the least that its format loses: calibrated, it is as fast."""
    key = row["peer"], row["precision"]
    if row.get("quality"):
        return known[key]
    names = (row["precision"], *(row["precision"] + suffix for suffix in CALIBRATED))
    found = [known[row["peer"], name] for name in names if (row["peer"], name) in known]
    return min(found, default=None)


def _best(row: Row, peers: Sequence[Row], test: str) -> dict[str, Any] | None:
    """The peer that is the least behind or the most ahead."""
    ratios = [(ratio.median, place, ratio) for place, ratio in _ratios(row, peers, test)]
    if not ratios:
        return None
    _, place, ratio = min(ratios, key=lambda item: item[:2])
    peer = peers[place]
    return {"peer": peer["peer"], "precision": peer["precision"], "ratio": ratio.to_json()}


def _ratios(row: Row, peers: Sequence[Row], test: str) -> Iterator[tuple[int, Estimate]]:
    for place, peer in enumerate(peers):
        figures = _figures(peer, test)
        if figures is not None and figures["our_samples"]:
            yield place, estimate(_paired(_figures(row, test), figures))


def _paired(ours: Any, theirs: Any) -> list[float]:
    """Ours over theirs of every round; ``our_samples`` of the plain row are none: it is o."""
    plain = ours["our_samples"] or ours["samples"]
    return [
        (o / u) * (p / q)
        for u, o, p, q in zip(
            ours["samples"], plain, theirs["samples"], theirs["our_samples"], strict=False
        )
    ]


def _figures(row: Row, test: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = (
        row["first_token"] if test == FIRST_TOKEN else row["tests"].get(test)
    )
    return found


def standing_lines(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The cells of a table, its head first: a line for each row of ours, a column for each test."""
    found = [(one, line) for one in results for line in one.get("standings", ())]
    if not found:
        return []
    tests = list(dict.fromkeys(line["test"] for _, line in found))
    lines: dict[tuple[str, str], list[str]] = {}
    for one, line in found:
        start = [one["name"], line["level"], line["precision"], _loss_text(line["kl"])]
        cells = lines.setdefault((one["name"], line["precision"]), [*start, *[""] * len(tests)])
        cells[4 + tests.index(line["test"])] = _cell(line)
    return [["model", "width", "ours", "KL, 0.001 nats", *tests], *lines.values()]


def _loss_text(loss: float | None) -> str:
    return "" if loss is None else f"{1e3 * loss:.2f}"


def _cell(line: dict[str, Any]) -> str:
    best, most = line["best"], line["best_of_all"]
    if most is None:
        return ""
    if best == most:
        return _peer_text(most)
    return f"{'no peer' if best is None else _peer_text(best)} / {_peer_text(most)}"


def _peer_text(best: dict[str, Any]) -> str:
    return f"{ratio_text(best['ratio'])} {best['peer']} {best['precision']}"


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """The table and its legend, "" without figures."""
    if not (lines := standing_lines(results)):
        return ""
    rules = ["---"] * len(lines[0])
    return f"{markdown_lines([lines[0], rules, *lines[1:]])}\n\n{LEGEND}"
