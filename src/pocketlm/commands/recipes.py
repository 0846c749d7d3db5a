"""Recipes: small TOML files that say how a model is asked for something, to be copied and edited.

    prompt    text with places, such as {text}, that are filled in; the only one that must be there
    start     what comes before the examples; none unless given
    example   each example, with places too; without it there can be no examples
    stop      texts before the first of which an answer ends

Those that come with pocketlm are in its folder ``recipes``, and known by name: ``translate``, say.
A file of that name is ``./translate``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pocketlm.export.errors import RequestError
from pocketlm.export.strict_json import shown
from pocketlm.runtime.placeholders import check_places, fill

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

FIELDS = {"prompt": "a text", "start": "a text", "example": "a text", "stop": "a list of texts"}
LARGEST = 1 << 20  # bytes


def _print(context: click.Context, _: click.Parameter, name: str | None) -> None:
    if name is not None and not context.resilient_parsing:
        click.echo(find(name, ".toml").read_text(encoding="utf-8"), nl=False)
        context.exit()


print_recipe_option = click.option(
    "--print-recipe",
    metavar="NAME",
    is_eager=True,
    expose_value=False,
    callback=_print,
    help="Print a recipe that comes with pocketlm, assistant, sentiment or translate, to be copied "
    "and edited; and end.",
)


@dataclass(frozen=True)
class Recipe:
    """How a model is asked; ``read_recipe`` makes one."""

    prompt: str
    start: str = ""
    example: str = ""
    stop: tuple[str, ...] = ()

    def fill(self, values: Mapping[str, str], examples: Sequence[Mapping[str, str]] = ()) -> str:
        """The whole prompt; each example has values of its own beside ``values``."""
        shown = [fill(self.example, {**values, **example}) for example in examples]
        return "".join([fill(self.start, values), *shown, fill(self.prompt, values)])


def find(name: str, ending: str) -> Traversable:
    """The file ``name``, or that which comes with pocketlm: of both, ours if it has no ending."""
    from importlib import resources  # not above: verbs that may read a recipe mostly do not

    folder = resources.files("pocketlm") / "recipes"
    own = {entry.name: entry for entry in folder.iterdir() if entry.name.endswith(ending)}
    if f"{name}{ending}" in own:
        return own[f"{name}{ending}"]
    if Path(name).exists():
        return Path(name)
    if name not in own:
        raise RequestError(
            f"{name}: found no such file, expected one, or of ours {', '.join(sorted(own))}; "
            "correct the name"
        )
    return own[name]


def read_recipe(
    name: str,
    required: Collection[str],
    optional: Collection[str] = (),
    of_example: Collection[str] = (),
) -> Recipe:
    """A recipe whose prompt has the places ``required``, and may have ``optional`` ones.

    An example has those ``of_example`` too. Raises RequestError that names the file and what is
    wrong in it.
    """
    file = find(name, ".toml")
    recipe = Recipe(**_fields(file))
    check_places(f"{file}: prompt", recipe.prompt, required, optional)
    check_places(f"{file}: start", recipe.start, (), optional)
    if recipe.example:
        check_places(f"{file}: example", recipe.example, (*required, *of_example), optional)
    return recipe


def _fields(file: Traversable) -> dict[str, Any]:
    import tomllib

    with file.open("rb") as opened:
        data = opened.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise RequestError(f"{file}: found more than {LARGEST:,} bytes, expected a small recipe")
    try:
        fields = tomllib.loads(data.decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise RequestError(
            f"{file}: found no TOML ({error}), expected a recipe; copy one of ours and edit that"
        ) from error
    if "prompt" not in fields:
        raise RequestError(f"{file}: found no prompt, expected one; add prompt = '...'")
    for name, value in fields.items():
        if name not in FIELDS:
            raise RequestError(
                f"{file}: found {shown(name)}, expected {', '.join(FIELDS)}; correct the name"
            )
        texts = value if name == "stop" else [value]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise RequestError(f"{file}: {name} is {shown(value)}, expected {FIELDS[name]}")
    return {name: tuple(v) if name == "stop" else v for name, v in fields.items()}
