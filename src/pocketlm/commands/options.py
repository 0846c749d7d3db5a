"""Options that several verbs share, in groups, and what is done with them."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pocketlm.export.errors import RequestError
from pocketlm.export.importing import importing
from pocketlm.export.observer import SILENT, Observer
from pocketlm.export.quantities import parse_size
from pocketlm.export.regular_file import RegularFile
from pocketlm.export.utf8 import utf8
from pocketlm.quantize.precisions import (
    AUTOMATIC,
    BLOCK_SIZES,
    FULL,
    HEADS,
    PRECISIONS,
    PREFILL,
    Budget,
    Calibration,
)

if TYPE_CHECKING:
    from pocketlm.export.folder import ModelFolder
    from pocketlm.export.writing import Change
    from pocketlm.runtime.model import Model

LARGEST_FORM = 4_000_000  # bytes of a JSON schema or a grammar

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _group(*options: Decorator) -> Decorator:
    """One decorator for several options, in the order in which the help shows them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


class Place(click.Path):
    """A path; not an empty one, which pathlib would take for the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """click's own, for what is not blank."""
        if not str(value).strip():
            self.fail("found an empty name, expected a path; is a variable not set?", param, ctx)
        return super().convert(value, param, ctx)


def given(context: click.Context, name: str) -> bool:
    """Whether the parameter was given, and is not just what it is by default."""
    return context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)


debug_option = click.option("--debug", is_flag=True, help="Show the traceback of an error.")

precision_options = _group(
    click.option(
        "--block-size",
        type=click.Choice(BLOCK_SIZES),
        help="Weights that share one scale: smaller is closer to fp32, larger is faster. "
        "Default: 128 (int8-weight: 64). Of int8 only the head has blocks.",
    ),
    click.option(
        "--head",
        type=click.Choice(HEADS),
        help="Format of embedding and output head. Default: int8.",
    ),
    click.option(
        "--plan",
        type=Place(),
        metavar="FILE",
        help="Give every weight the format that FILE says, a plan that `pocketlm info MODEL "
        "--save-plan FILE` wrote, and perhaps you changed.",
    ),
    click.option(
        "--prefill",
        type=click.Choice([PREFILL]),
        help="Add a second set of weights, the linear layers in W8A8, with which long prompts and "
        "many texts at once are computed faster; of int8 the first is that already. It takes disk, "
        "and memory once it is used; --max-kl and --max-bytes are of the first set alone.",
    ),
)

calibration_options = _group(
    click.option(
        "--calibrate",
        multiple=True,
        metavar="dream|none|FILE",
        help="Choose roundings that make up for each other, on what the model dreams or on a text "
        "in UTF-8 (several: give it again); none rounds each weight to the nearest number. "
        "Default: dream for int4 if that takes at most 10 minutes and for --max-kl and "
        "--max-bytes, else none.",
    ),
    click.option(
        "--statistics",
        type=Place(),
        metavar="FOLDER",
        help="Keep in FOLDER what calibration measures, and go on from what is there: about as "
        "large as the model in fp32.",
    ),
    click.option(
        "--max-kl",
        type=float,
        metavar="NATS",
        help="Find the formats with the fewest bytes that keep this promise: the mean KL "
        "divergence from fp32, in nats per token, verified on tokens that were not calibrated on.",
    ),
    click.option(
        "--max-bytes",
        metavar="SIZE",
        help="Find the formats with the least KL divergence whose weights take at most SIZE, such "
        "as 80MB.",
    ),
)

writing_options = _group(
    click.option(
        "--force",
        is_flag=True,
        help="Replace OUT if it is a model folder with no other file in it.",
    ),
    click.option("--quiet", is_flag=True, help="Print neither plan, progress nor report."),
    debug_option,
)

# How tokens are chosen, and when a text ends: keyword arguments of ``Model.stream``.
sampling_options = _group(
    click.option("--max-tokens", type=int, default=256, show_default=True, help="Most new tokens."),
    click.option(
        "--max-seconds",
        type=float,
        metavar="SECONDS",
        help="End at the next token after so long. Default: no limit.",
    ),
    click.option(
        "--temperature",
        type=float,
        help="0 takes the likeliest token. Default: the model's own, else 0.8.",
    ),
    click.option(
        "--top-k",
        type=int,
        help="Sample from the K likeliest tokens, 0: from all. Default: the model's own, else all.",
    ),
    click.option(
        "--top-p",
        type=float,
        help="Sample from the likeliest tokens that together reach this probability. "
        "Default: the model's own, else 0.95.",
    ),
    click.option(
        "--min-p",
        type=float,
        help="Leave out tokens less likely than this share of the likeliest. "
        "Default: the model's own, else 0.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        help="Above 1 makes tokens that already appeared less likely. "
        "Default: the model's own, else 1.",
    ),
    click.option(
        "--typical-p",
        type=float,
        help="Sample from the tokens whose surprise is nearest to the expected one, that together "
        "reach this probability. Default: the model's own, else all.",
    ),
    click.option(
        "--frequency-penalty",
        type=float,
        default=0.0,
        show_default=True,
        help="Above 0 makes a token less likely each time that it was generated.",
    ),
    click.option(
        "--presence-penalty",
        type=float,
        default=0.0,
        show_default=True,
        help="Above 0 makes a token less likely once it was generated.",
    ),
    click.option(
        "--penalty-window",
        type=int,
        metavar="TOKENS",
        help="The last TOKENS are all that the three penalties look at.",
    ),
    click.option(
        "--no-repeat-ngram",
        "no_repeat_ngram_size",
        type=int,
        metavar="N",
        help="No N tokens in a row appear twice, 0: any. Default: the model's own, else any may.",
    ),
    click.option(
        "--logit-bias",
        multiple=True,
        metavar="ID=NUMBER",
        callback=lambda context, parameter, given: _biases(given),
        help="Add NUMBER to the logit of the token ID; -100 all but bans it. May be given several "
        "times.",
    ),
    click.option(
        "--min-tokens",
        type=int,
        default=0,
        show_default=True,
        help="No token that ends a text before so many.",
    ),
    click.option(
        "--ban",
        "banned_strings",
        type=utf8,
        multiple=True,
        metavar="TEXT",
        callback=lambda context, parameter, given: [unescape(text) for text in given] or None,
        help=r"Never write this text; \n and \t are understood. May be given several times.",
    ),
    click.option(
        "--ban-token",
        "banned_tokens",
        type=int,
        multiple=True,
        metavar="ID",
        help="Never choose the token ID. May be given several times.",
    ),
    click.option("--seed", type=int, help="Makes sampling repeatable on this machine."),
    click.option(
        "--stop",
        type=utf8,
        multiple=True,
        metavar="TEXT",
        help=r"End before this text; \n and \t are understood. May be given several times.",
    ),
    click.option("--ignore-eos", is_flag=True, help="Go on after an end-of-text token."),
)


def _forms(write: str) -> Decorator:
    """What form a text has, keyword arguments of ``Model.stream``; ``write`` begins their help."""
    return _group(
        click.option(
            "--json-schema",
            type=Place(),
            metavar="FILE",
            callback=lambda context, parameter, file: file and _text_of(file),
            help=f"{write} JSON that satisfies the schema in FILE. This, --regex, --choice and "
            "--grammar need the extra 'grammar'.",
        ),
        click.option(
            "--regex",
            type=utf8,
            metavar="PATTERN",
            help=f"{write} what this regular expression matches as a whole.",
        ),
        click.option(
            "--choice",
            "choices",
            type=utf8,
            multiple=True,
            metavar="A,B",
            callback=lambda context, parameter, given: (
                ",".join(given).split(",") if given else None
            ),
            help=f"{write} one of these; there may be more of them, or give it several times.",
        ),
        click.option(
            "--grammar",
            type=Place(),
            metavar="FILE",
            callback=lambda context, parameter, file: file and _text_of(file),
            help=f"{write} what the Lark grammar in FILE describes, from its rule start on.",
        ),
    )


form_options = _forms("Write")
answer_form_options = _forms("Answer every message with")

# In what loop tokens are computed: keyword arguments of ``Model.stream``.
loop_options = _group(
    click.option(
        "--lookup",
        is_flag=True,
        help="Guess that the text goes on as it did when it last said the same words: faster where "
        "it copies from itself or its prompt.",
    ),
    click.option(
        "--draft",
        metavar="MODEL",
        help="A smaller model with the same tokenizer, named as MODEL is, which guesses what comes "
        "next.",
    ),
    click.option(
        "--reproducible",
        is_flag=True,
        help="The tokens are those that `pocketlm batch` gives, bit by bit; up to a fifth slower.",
    ),
)

# What becomes of a text that outgrows the context: keyword arguments of ``Model.stream``.
context_options = _group(
    click.option(
        "--context",
        type=click.Choice(("error", "stop", "slide")),
        default="error",
        show_default=True,
        help="When the text outgrows the model's context: error refuses a longer prompt, and the "
        "text ends when the context is full; stop ends with a longer prompt at once; slide goes on "
        "with the first tokens and the newest.",
    ),
    click.option(
        "--keep",
        type=int,
        default=1,
        show_default=True,
        metavar="N",
        help="The first N tokens stay when the context slides.",
    ),
)

# How texts are cut to be scored: keyword arguments of ``measure_quality``.
window_options = _group(
    click.option(
        "--window",
        type=int,
        metavar="TOKENS",
        help="Tokens of a text that a model sees at once. Default: its context length, at most "
        "1024.",
    ),
    click.option(
        "--stride",
        type=int,
        metavar="TOKENS",
        help="Tokens from one window to the next: fewer give every token more context, and take "
        "longer. Default: half a window.",
    ),
    click.option(
        "--limit",
        type=int,
        metavar="TOKENS",
        help="Use the first tokens of each text only.",
    ),
    click.option(
        "--split",
        type=utf8,
        metavar="TEXT",
        callback=lambda context, parameter, text: None if text is None else unescape(text),
        help="What stands between the documents of a text, such as '<|endoftext|>'; each begins "
        r'anew; \n is understood. A .jsonl has one a line, in its field "text".',
    ),
)

system_option = click.option(
    "--system", type=utf8, metavar="TEXT", help="What the model is told before the conversation."
)

template_option = click.option(
    "--template-arg",
    "template_args",
    multiple=True,
    metavar="NAME=JSON",
    callback=lambda context, parameter, given: _template_args(given),
    help="Give the chat template the variable NAME, such as enable_thinking=false. May be given "
    "several times.",
)


def _template_args(given: Sequence[str]) -> dict[str, Any]:
    args: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name.isidentifier() or not equals or name in args:
            raise click.UsageError(
                f"found --template-arg {text}, expected a name, = and a value, each name once; "
                "such as enable_thinking=false"
            )
        try:
            args[name] = json.loads(utf8(value), parse_constant=int)  # which NaN is not
        except (ValueError, RecursionError) as error:
            raise click.UsageError(
                f"found --template-arg {text}, expected JSON after the =, such as false, 5 or "
                f"'\"a text\"' in quotes of the shell"
            ) from error
    return args


# How a repository on the hub is used: fields of ``HubOptions``, and keyword arguments of ``load``.
HUB_OPTIONS = {
    "revision": click.option(
        "--revision",
        metavar="NAME",
        help="Branch, tag or commit of a model on the hub. Default: main.",
    ),
    "offline": click.option(
        "--offline",
        is_flag=True,
        help="Never use the network (also: HF_HUB_OFFLINE=1): what is in the cache must do.",
    ),
    "keep_download": click.option(
        "--keep-download",
        is_flag=True,
        help="Keep the checkpoint in the cache until `pocketlm remove`. Otherwise it is removed "
        "after its export, and another precision downloads it again.",
    ),
}
hub_options = _group(*HUB_OPTIONS.values())

# How a model is opened: keyword arguments of ``load``, taken by ``open_model``.
MODEL_OPTIONS = {
    "threads": click.option("--threads", type=int, help="CPU threads. Default: the cores at hand."),
    "provider": click.option(
        "--provider",
        type=click.Choice(("auto", "cpu", "cuda")),
        default="auto",
        show_default=True,
        help="Where it runs; auto takes CUDA where it can be had.",
    ),
    "kv": click.option(
        "--kv",
        type=click.Choice(("auto", "fp32", "int8")),
        default="auto",
        show_default=True,
        help="What the KV cache holds: int8 takes a quarter of the memory and generates faster "
        "after a long text, but reads prompts slower unless there is a second set of weights for "
        "them; auto is fp32.",
    ),
    "prefill": click.option(
        "--prefill",
        type=click.Choice(("auto", "int8", "none")),
        default="auto",
        show_default=True,
        help="Which weights compute prompts and many rows: int8, the second set that `pocketlm "
        "export --prefill int8` writes, opened at first use; none, those that generate; auto takes "
        "int8 where the model has it and memory is free for it.",
    ),
    "precision": click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        help="For a checkpoint and the demo: the precision to export it in. Default: int8; for a "
        "model of the hub the one in the cache, if there is one.",
    ),
    "tokenizer": click.option(
        "--tokenizer", type=Place(), help="For a checkpoint without its own."
    ),
    "adapters": click.option(
        "--adapter",
        "adapters",
        multiple=True,
        metavar="DIR[:WEIGHT]",
        callback=lambda context, parameter, given: given or None,
        help="Folder of a LoRA adapter of peft, merged into a checkpoint. May be given several "
        "times, each with a weight as in lora/:0.5; default: 1, as it was trained.",
    ),
    "allow_foreign": click.option(
        "--allow-foreign",
        is_flag=True,
        help="MODEL is another runtime's: a folder with the ONNX graph of onnxruntime-genai, "
        "transformers.js or optimum, or the graph itself. It is checked first.",
    ),
    **HUB_OPTIONS,
}
model_options = _group(*MODEL_OPTIONS.values())


def _text_of(file: Path) -> str:
    """RequestError for a file that is no text."""
    with RegularFile(file, RequestError) as opened:
        data = opened.read(0, LARGEST_FORM + 1)
    if len(data) > LARGEST_FORM:
        raise RequestError(
            f"{file.name} has more than {LARGEST_FORM:,} bytes, expected a schema or a grammar; "
            "give the file that holds it"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise RequestError(
            f"{file.name} is not UTF-8 (byte {cause.start}), expected a schema or a grammar; "
            "give the file that holds it"
        ) from cause


def _biases(given: Sequence[str]) -> dict[int, float] | None:
    """{id: number} of ID=NUMBER; click's UsageError for other words."""
    found = {}
    for word in given:
        token, _, number = word.partition("=")
        try:
            found[int(token)] = float(number)
        except ValueError:
            raise click.UsageError(
                f"found --logit-bias {word}, expected a token id and a number, such as 50256=-100"
            ) from None
    return found or None


def chosen_change(
    precision: str | None,
    block_size: int | None,
    head: str | None,
    plan: Path | None,
    calibrate: tuple[str, ...],
    statistics: Path | None,
    max_kl: float | None,
    max_bytes: str | None,
    prefill: str | None,
) -> Change | None:
    """What ``precision_options`` and ``calibration_options`` ask for, None for fp32.

    RequestError, or click's UsageError, for what cannot be.
    """
    from pocketlm.quantize.plan import Plan
    from pocketlm.quantize.run import planned, precision_of, within

    given = {"--plan": plan, "--max-kl": max_kl, "--max-bytes": max_bytes}
    chosen = [name for name, value in given.items() if value is not None]
    others = {"a precision": precision, "--block-size": block_size, "--head": head}
    if len(chosen) > 1:
        raise click.UsageError(f"found {' and '.join(chosen)}, expected one of them")
    for name, value in others.items():
        if chosen and value is not None:
            reason = "in the plan" if plan is not None else "left to the search"
            raise click.UsageError(f"found {name} with {chosen[0]}, expected it {reason}")
    second = prefill is not None
    budget = _budget(max_kl, max_bytes)
    calibration = _calibration(calibrate, statistics)
    if calibration is None and (calibrate or statistics) and budget is not None:
        raise click.UsageError(
            f"found --calibrate none with {chosen[0]}, expected dream or a text: the search has to "
            "measure"
        )
    if budget is not None:
        return within(budget, calibration or Calibration(), prefill=second)
    if plan is not None:
        # What a plan promises was measured on the model that it was made for.
        asked = replace(Plan.read(plan), promise=None, calibration=None)
        return planned(asked, calibration, prefill=second)
    row = PRECISIONS[precision or FULL]
    if calibration is None and not calibrate and row.calibrated:
        calibration = AUTOMATIC
    if calibration is not None and row.name == FULL:
        raise click.UsageError(
            f"found --calibrate with {FULL}, expected it with a precision that rounds: there is "
            "nothing to choose"
        )
    return precision_of(row.name, block_size, head, calibration, prefill=second)


def _budget(max_kl: float | None, max_bytes: str | None) -> Budget | None:
    if max_kl is not None and not 0 < max_kl < math.inf:
        raise click.UsageError(
            f"found --max-kl {max_kl:g}, expected a number of nats above 0, such as 0.01; only "
            "fp32 loses nothing"
        )
    if max_kl is None and max_bytes is None:
        return None
    return Budget(max_kl, None if max_bytes is None else parse_size(max_bytes))


def _calibration(calibrate: tuple[str, ...], statistics: Path | None) -> Calibration | None:
    """What was asked for, None where nothing or ``none`` was."""
    words = [word for word in calibrate if word in ("dream", "none")]
    if words and len(calibrate) > 1:
        raise click.UsageError(
            f"found --calibrate {words[0]} with another, expected dream, none or files"
        )
    if words == ["none"] and statistics is not None:
        raise click.UsageError("found --statistics with --calibrate none, expected one of them")
    if words == ["none"] or not (calibrate or statistics):
        return None
    files = () if words else tuple(Path(file) for file in calibrate)
    for file in files:
        if not file.exists():  # now, and not after a download
            raise click.UsageError(
                f"found --calibrate {file}, expected dream, none or a text; there is no such file"
            )
    return Calibration(files, folder=statistics)


def open_model(path: str | Path | None, options: dict[str, Any]) -> Model:
    """``load`` with the values of ``model_options`` in ``options``, which are taken out of there.

    Download and export on the way are drawn on stderr if that is a terminal; a model that runs on
    the CPU although this ONNX Runtime is built for CUDA is told there in a line, and so is one that
    leaves its second set of weights out.
    """
    # Not above: help, and verbs that only write, need no ONNX Runtime.
    with importing("running a model", "cli"):
        from pocketlm.models.loading import load
        from pocketlm.runtime.providers import FallbackWarning

    chosen = {name: options.pop(name) for name in MODEL_OPTIONS if name in options}
    with _shown_exports() as observer, warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # printed below, as a line of ours
        model = load(path, observer=observer, **chosen)
    for told in (model.fallback, model.session.prefill_note):
        if told is not None:
            click.echo(f"pocketlm: {told}", err=True)
    return model


def open_folder(path: str | Path | None, **options: Any) -> ModelFolder:
    """``find_folder``, with download and export drawn as by ``open_model``."""
    from pocketlm.models.loading import find_folder

    with _shown_exports() as observer:
        return find_folder(path, observer=observer, **options)


def open_folders(
    models: Sequence[str | None], options: Sequence[dict[str, Any]]
) -> list[ModelFolder]:
    """``open_folder`` of each model with its own options.

    An option is for those of the models that have a use for it: it is refused, as it is for a
    single one, if that is none.
    """
    from pocketlm.models.reference import find_reference, unused_options

    references = [find_reference(model) for model in models]
    unused = [set(unused_options(*pair)) for pair in zip(references, options, strict=True)]
    refused = set.intersection(*unused)
    return [
        open_folder(model, **{k: v for k, v in given.items() if k not in left_out - refused})
        for model, given, left_out in zip(models, options, unused, strict=True)
    ]


def made_folder(name: str, precision: str | None = None) -> ModelFolder:
    """The model folder at a path, or that of a name in the cache; nothing is fetched for it.

    Raises ModelFolderError where there is none yet. The demo's is made.
    """
    from pocketlm.export.errors import HubError, ModelFolderError
    from pocketlm.export.folder import ModelFolder
    from pocketlm.models.reference import OnDisk, find_reference

    reference = find_reference(name)
    if isinstance(reference, OnDisk):
        return ModelFolder.open(reference.path)
    try:
        return open_folder(name, precision=precision, offline=True)
    except HubError as error:
        wanted = f" in {precision}" if precision else ""
        raise ModelFolderError(
            f"{name}: found no model of this name{wanted} in the cache, expected one that was made "
            f"before, or a model folder; make one with: pocketlm export {name} OUT"
        ) from error


@contextmanager
def _shown_exports() -> Iterator[Observer]:
    """Draws what ``load`` exports and downloads, if anything, on a terminal."""
    if not sys.stderr.isatty():
        yield SILENT
        return
    with ExitStack() as drawing:

        @cache
        def shown() -> Observer:
            # Imported only now: drawing and exporting cost memory that a run does not need.
            from pocketlm.commands import progress

            return drawing.enter_context(progress.shown(quiet=False))

        yield Observer(
            plan=lambda plan: shown().plan(plan),
            progress=lambda done, total: shown().progress(done, total),
            message=lambda text: shown().message(text),
            download=lambda name, total: shown().download(name, total),
        )


ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}


def unescape(text: str) -> str:
    r"""Backslash escapes of the shell's literal text: \n \t \r \\."""
    result, i = "", 0
    while i < len(text):
        pair = text[i : i + 2]
        result += ESCAPES.get(pair, text[i])
        i += 2 if pair in ESCAPES else 1
    return result
