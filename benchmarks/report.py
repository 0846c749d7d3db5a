"""One HTML file from the results of a bench: what ``pocketlm bench --html`` writes.

    python -m pocketlm.benchmarks.report results.json report.html

The results are what ``pocketlm bench --output json`` prints. The page needs nothing but itself: no
network, no script, no font; light or dark as the reader's system is, on paper and on a phone too.
Jinja2 fills ``html/templates/report.html``, escaping all text; ``html.page`` has the words and the
numbers, ``html.charts`` and ``html.tradeoffs`` the charts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..export.errors import PocketLMError, RequestError, StorageError, missing_extra
from ..export.strict_json import load_json_object, shown
from .bench import FORMAT
from .html.inline_svg import require_matplotlib

KEYS = {"reference", "circumstances", "models", "speed", "quality", "failed", "interrupted"}
TEMPLATES = Path(__file__).parent / "html" / "templates"
LARGEST_RESULTS = 50_000_000  # bytes; ten models with all samples are under 1 MB


def check_report(path: str | Path) -> None:
    """Whether ``write_report`` will be able to write there: to be called before the measuring.

    Raises MissingExtraError where a package is missing, and RequestError where ``path`` is a
    folder, its folder is not there, or nothing can be written to it.
    """
    _jinja2()
    require_matplotlib()
    target = _target(path)
    try:
        _check_target(path, target)
    except OSError as cause:
        raise RequestError(
            f"{path}: cannot be written ({cause.strerror}), expected a place that can; "
            "choose another, or change its permissions"
        ) from cause


def _target(path: str | Path) -> Path:
    """The file that is to be written: what a link points to, for the link is to stay."""
    return Path(os.path.realpath(path))


def _check_target(path: str | Path, target: Path) -> None:
    """Raises RequestError for what is in the way, and OSError for what the system refuses."""
    if target.is_dir():
        raise RequestError(
            f"{path}: found a folder, expected a file; add a name: {Path(path) / 'bench.html'}"
        )
    if target.exists() and not target.is_file():
        raise RequestError(f"{path}: found no regular file, expected one or none; choose another")
    if not target.parent.is_dir():
        found = "a file" if target.parent.exists() else "nothing"
        raise RequestError(
            f"{path}: found {found} at {target.parent}, expected a folder; make it first"
        )
    # Permissions alone do not tell: of a read-only file system, or to root.
    tempfile.TemporaryFile(dir=target.parent).close()
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is read-only")


def html(results: dict[str, Any]) -> str:
    """The page as text. The same results give the same page."""
    from .html.page import page

    environment = _jinja2().Environment(
        loader=_jinja2().FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=_jinja2().StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = page(results)
    fields = {field.name: getattr(shown, field.name) for field in dataclasses.fields(shown)}
    return str(environment.get_template("report.html").render(fields))


def write_report(results: dict[str, Any], path: str | Path) -> None:
    """Writes the page whole or not at all; what was there before is replaced.

    Raises what ``check_report`` does, and StorageError when the disk is full.
    """
    check_report(path)
    target = _target(path)
    content = html(results).encode("utf-8", "backslashreplace")
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    except OSError as cause:
        raise StorageError(
            f"{path}: cannot be written ({cause.strerror}), expected room for {len(content):,} "
            "bytes; free some space or choose another place"
        ) from cause
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_results(path: Path) -> dict[str, Any]:
    """The results in a JSON file; RequestError where they are something else."""
    results = load_json_object(path, LARGEST_RESULTS, RequestError)
    models = results.get("models")
    names = [model.get("name") for model in models] if isinstance(models, list) else []
    missing = sorted(KEYS - results.keys())
    if results.get("format") != FORMAT:
        found = f"format {results.get('format')!r:.40}, expected {FORMAT}"
    elif missing:
        found = f"no {', '.join(missing)}, expected all that a bench has"
    elif results["reference"] not in names:
        found = f"the reference {shown(results['reference'])}, expected one of the models"
    else:
        return results
    raise RequestError(
        f"{path}: found {found}; give a file made with: pocketlm bench MODEL... --output json"
    )


def _jinja2() -> Any:
    try:
        import jinja2
    except ImportError as cause:
        raise missing_extra("report", "the HTML report", cause) from cause
    return jinja2


def main() -> None:
    """Turns a saved result into a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="JSON that pocketlm bench --output json printed")
    parser.add_argument("report", type=Path, help="HTML file to write")
    arguments = parser.parse_args()
    try:
        write_report(read_results(arguments.results), arguments.report)
    except PocketLMError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
