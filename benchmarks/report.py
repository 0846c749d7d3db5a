"""One HTML file from the results of a bench: what ``pocketlm bench --html`` writes.

    python -m pocketlm.benchmarks.report results.json report.html

The results are what ``pocketlm bench --output json`` prints. The page needs nothing but itself: no
network, no script, no font; light or dark as the reader's system is, on paper and on a phone too.
Jinja2 fills ``html/templates/report.html``, escaping all text; ``html.page`` has the words and the
numbers, ``html.charts`` and ``html.tradeoffs`` the charts.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from ..export.errors import PocketLMError, RequestError
from ..export.importing import importing
from ..export.output_file import OutputFile
from ..export.strict_json import load_json_object, shown
from .bench import FORMAT
from .html.inline_svg import require_matplotlib
from .programs import given_path

KEYS = {"reference", "circumstances", "models", "speed", "quality", "failed", "interrupted"}
TEMPLATES = Path(__file__).parent / "html" / "templates"
LARGEST_RESULTS = 50_000_000  # bytes; ten models with all samples are under 1 MB


def open_report(path: str | Path) -> OutputFile:
    """The file for a report, and whether one can be made: to be called before the measuring.

    Raises MissingExtraError where a package is missing, and RequestError where ``path`` cannot be
    written, or is a file that is no report.
    """
    _jinja2()
    require_matplotlib()
    return OutputFile(path, _is_report)


def _is_report(data: bytes) -> bool:
    """By the end of the title, which every version had."""
    return " – pocketlm bench</title>\n<style>".encode() in data


def html(results: dict[str, Any]) -> str:
    """The page as text. The same results give the same page."""
    from .html.page import page

    return filled("report.html", page(results))


def filled(template: str, shown: Any) -> str:
    """A template with the fields of a dataclass, text escaped."""
    environment = _jinja2().Environment(
        loader=_jinja2().FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=_jinja2().StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    fields = {field.name: getattr(shown, field.name) for field in dataclasses.fields(shown)}
    return str(environment.get_template(template).render(fields))


def write_report(results: dict[str, Any], file: OutputFile) -> None:
    """Writes the page whole or not at all; a report that was there before is replaced.

    Raises RequestError where another file came there meanwhile, and StorageError when the disk is
    full.
    """
    file.write(html(results).encode("utf-8", "backslashreplace"))


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
    with importing("the HTML report", "report"):
        import jinja2
    return jinja2


def main() -> None:
    """Turns a saved result into a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=given_path, help="JSON of pocketlm bench --output json")
    parser.add_argument("report", type=given_path, help="HTML file to write")
    arguments = parser.parse_args()
    try:
        write_report(read_results(arguments.results), open_report(arguments.report))
    except PocketLMError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
