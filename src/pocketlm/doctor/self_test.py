"""The demo model, run: its tokens, the rule of rows, and its speed.

A precision that is in the cache is taken from there; the others are exported to a temporary folder,
which takes half a second each and the extra "export".
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketlm.doctor.finding import OK, UNKNOWN, WARNING, WRONG, Finding, unchecked
from pocketlm.doctor.golden import GOLDEN, TEXT, faults
from pocketlm.doctor.onnxruntime_build import builds
from pocketlm.export.cache_folder import cache_folder
from pocketlm.export.errors import CheckpointError, ResourceError, StorageError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.frozen import is_frozen, to_install
from pocketlm.export.importing import importing
from pocketlm.export.memory import free_bytes
from pocketlm.export.quantities import number_text, size_text
from pocketlm.models.reference import DEMO
from pocketlm.quantize.precisions import PRECISIONS

if TYPE_CHECKING:
    from pocketlm.runtime.model import Model

TOKENS, ROWS, SPEED = "tokens", "rows", "speed"
DEFAULT = "int8"
IN_ROWS = ("int8", "int4")  # of the two kinds of products
# Texts of different lengths that are computed together, in characters of TEXT; and tokens of each.
LENGTHS, FEW = (15, 60, 110, 180, 240), 6
MANY = 64  # tokens that are timed
LOW = 0.02  # of the read bandwidth: where a model of this size is far below what others do

Demo = Mapping[str, "Model | Exception"]


def check_demo() -> Iterator[Finding]:
    """Opens the demo in every precision that can be had, and looks at all three."""
    with opened_demo() as demo:
        yield tokens(demo)
        yield rows(demo)
        yield speed(demo)


@contextmanager
def opened_demo() -> Iterator[dict[str, Model | Exception]]:
    """Precision -> the demo, or what keeps it from being opened."""
    from pocketlm.runtime.model import Model

    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="pocketlm-", ignore_cleanup_errors=True)
        place = Path(stack.enter_context(temporary))
        found: dict[str, Model | Exception] = {}
        for precision in PRECISIONS:
            try:
                folder = demo_folder(precision, place / precision)
                found[precision] = Model(folder, provider="cpu", prefix_cache_bytes=0)
            except Exception as error:
                found[precision] = error
        yield found
        found.clear()  # before their folders go


def demo_folder(precision: str, out: Path) -> ModelFolder:
    """The one that ``load`` would open if it is made, else one made at ``out``."""
    from pocketlm.models.loading import find_folder
    from pocketlm.models.local import demo_checkpoint, demo_model

    if precision == DEFAULT and is_frozen():  # which may bring it
        return find_folder(DEMO)
    cache = cache_folder()
    if cache is not None and (made := demo_model(precision).find(cache)):
        return made
    with importing("exporting a checkpoint", "export"):
        from pocketlm.export.checkpoint import open_checkpoint
        from pocketlm.export.writing import export_model
        from pocketlm.quantize.run import precision_of
    return export_model(open_checkpoint(demo_checkpoint()), out, precision_of(precision))


# Tokens ------------------------------------------------------------------------------------------


def tokens(demo: Demo) -> Finding:
    """Whether each precision finds the stored tokens likeliest."""
    lacking = {name: model for name, model in demo.items() if _is_lacking(model)}
    tried = {name: tokens_fault(demo[name]) for name in demo if name not in lacking}
    right = [name for name, fault in tried.items() if fault is None]
    wrong = {name: fault for name, fault in tried.items() if fault is not None}
    figures = {"right": right, "wrong": list(wrong), "not_tried": list(lacking)}
    said = [f"{', '.join(right)}: the stored ones, at {len(GOLDEN)} places"] * bool(right)
    said += [f"{name}: {fault}" for name, fault in wrong.items()]
    said += [f"not tried: {', '.join(lacking)}"] * bool(lacking)
    if wrong:
        mend = to_install(f"pip install --force-reinstall {' '.join(builds()) or 'onnxruntime'}")
        advice = f"{mend}; if it stays, report this, and take a precision that is right"
        return Finding(TOKENS, WRONG, "; ".join(said), advice, figures)
    told = [unchecked(TOKENS, error) for error in lacking.values() if isinstance(error, Exception)]
    if not right:
        return told[0]
    return Finding(TOKENS, OK, "; ".join(said), told[0].advice if told else None, figures)


def tokens_fault(model: Model | Exception) -> str | None:
    """What is wrong with the tokens of a model, or with what should have been one."""
    if isinstance(model, Exception):
        return str(model)
    try:
        decode, ids = model.tokenizer.decode, model.tokenizer.encode(TEXT)
        found = list(faults(model.session, ids))
    except Exception as error:
        return str(error)
    if not found:
        return None
    place, token = found[0]
    return (
        f"{len(found)} of {len(GOLDEN)} are not the stored ones: after "
        f"{decode(ids[place - 5 : place])!r} comes {decode([token])!r}, expected "
        f"{decode([GOLDEN[place]])!r}"
    )


def _is_lacking(model: Model | Exception) -> bool:
    """Whether that there is no model is no fault, or that of the disk or of memory alone."""
    if isinstance(model, CheckpointError):
        return is_frozen()
    return isinstance(model, ImportError | StorageError | ResourceError)


# Rows --------------------------------------------------------------------------------------------


def rows(demo: Demo) -> Finding:
    """Whether a text's tokens, and their probabilities, are those that it has alone."""
    models = {name: demo[name] for name in IN_ROWS if name in demo}
    tried = {name: rows_fault(m) for name, m in models.items() if not isinstance(m, Exception)}
    wrong = {name: fault for name, (_, fault) in tried.items() if fault is not None}
    figures = {"groups": {name: group for name, (group, _) in tried.items()}, "wrong": list(wrong)}
    if wrong:
        found = "; ".join(f"{name}: {fault}" for name, fault in wrong.items())
        return Finding(ROWS, WRONG, found, "report this; until then run one text a time", figures)
    if not tried:
        return Finding(ROWS, UNKNOWN, "could not be checked: no model to try", None, figures)
    said = "; ".join(f"{name} {_group_text(group)}" for name, (group, _) in tried.items())
    found = f"a text has the tokens that it has alone, bit by bit ({said})"
    return Finding(ROWS, OK, found, None, figures)


def rows_fault(model: Model) -> tuple[int | None, str | None]:
    """The group in whose multiples rows are computed, and what is wrong with what comes of it."""
    try:
        different = company_shows(model)
        group = model.row_group
    except Exception as error:
        return None, str(error)
    if different:
        many = f"{len(different)} of {len(LENGTHS)} texts"
        return group, f"what is computed beside them changes {many}"
    return group, None


def company_shows(model: Model) -> list[int]:
    """The numbers of the texts of which a token or its logprob is another one in company."""
    options: dict[str, Any] = {"temperature": 0, "max_tokens": FEW, "ignore_eos": True}
    options |= {"logprobs": True}
    texts = [TEXT[:length] for length in LENGTHS]
    together = {found.index: found for found in model.generate_many(texts, **options)}
    different = []
    for number, text in enumerate(texts):
        alone = model.generate(text, reproducible=True, **options)
        beside = together[number]
        if (alone.token_ids, alone.logprobs) != (beside.token_ids, beside.logprobs):
            different.append(number)
    return different


def _group_text(group: int | None) -> str:
    if group is None:
        return "each by itself"
    return "in any number of rows" if group == 1 else f"in multiples of {group} rows"


# Speed -------------------------------------------------------------------------------------------


def speed(
    demo: Demo,
    bandwidth: Callable[[int], float] | None = None,
    watching: Callable[[], Callable[[], str | None]] | None = None,
) -> Finding:
    """Tokens a second, against how fast memory can be read; a figure, and no benchmark.

    ``watching`` begins to watch what others use of the processor, and gives what ends it and says
    so if that is too much.
    """
    model = demo.get(DEFAULT)
    if model is None or isinstance(model, Exception):
        found = f"could not be checked: the demo does not run in {DEFAULT}"
        return Finding(SPEED, UNKNOWN, found)
    busy = (watching or _watching)()
    rate, threads = _decode_rate(model), model.session.threads
    read = rate * model.folder.weights_bytes
    figures = dict[str, float | None](
        tokens_per_second=round(rate, 1), threads=threads, read_bytes_per_second=None
    )
    found = (
        f"{number_text(rate)} tokens/s of the demo in {DEFAULT} with {threads} "
        f"thread{'s' * (threads != 1)}, which is {size_text(read)} of weights a second"
    )
    try:
        roof = (bandwidth or _bandwidth)(threads)
    except ImportError as error:
        return Finding(SPEED, OK, f"{found}; how fast memory is read: {error}", None, figures)
    figures["read_bytes_per_second"] = round(roof)
    found += (
        f"; memory is read at {size_text(roof)} a second, so that a model of 1 GB writes at most "
        f"{number_text(roof / 1e9, 2)} tokens/s"
    )
    if told := busy():
        why, _, advice = told.partition("; ")
        return Finding(SPEED, WARNING, f"{found}; {why}", advice, figures)
    if read < LOW * roof:
        advice = "give it all cores, and look at what is said of the processor above"
        return Finding(SPEED, WARNING, f"{found}; far less than memory allows", advice, figures)
    return Finding(SPEED, OK, found, None, figures)


def _watching() -> Callable[[], str | None]:
    """Nothing is said where psutil is missing, or an application comes without what watches."""
    try:
        from pocketlm.benchmarks.machine import CpuWatch, busy_sentence, load_average
    except ImportError:
        return lambda: None
    watch, load = CpuWatch(), load_average()
    return lambda: busy_sentence(watch.stop(), load)


def _decode_rate(model: Model) -> float:
    """The better of two: what the machine can do."""
    results = [
        model.generate(TEXT[:60], temperature=0, max_tokens=MANY, ignore_eos=True) for _ in range(2)
    ]
    return max(result.timings.decode_rate for result in results)


def _bandwidth(threads: int) -> float:
    from pocketlm.benchmarks.speed.bandwidth import array_bytes, last_level_cache, read_bandwidth

    free = free_bytes()
    if free is None:
        return read_bandwidth(threads)
    return read_bandwidth(threads, array_bytes(last_level_cache(), free))
