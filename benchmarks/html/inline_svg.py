"""What Matplotlib draws, as an SVG element of an HTML page that has light and dark colours.

It draws with colours that stand for roles (text, grid, the third model); they leave here as CSS
variables of the page, so one drawing serves both. Text stays text, in the page's font: it is laid
out in DejaVu Sans, wider than what browsers choose, so that nothing collides. The same drawing
gives the same bytes. Text may be hostile; it is escaped.

    --fg --muted --grid --paper      text, axes, grid lines, the page
    --model-0 … --model-6            models, the reference first
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ...export.importing import importing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_COLOURS = 7
# What is drawn in these colours is drawn in the page's.
ROLES = {"#fe0001": "--fg", "#fe0002": "--muted", "#fe0003": "--grid", "#fe0004": "--paper"}
ROLES |= {f"#fe01{i:02x}": f"--model-{i}" for i in range(NUM_COLOURS)}
COLOUR = {role: colour for colour, role in ROLES.items()}
FG, MUTED, GRID, PAPER = (COLOUR[f"--{name}"] for name in ("fg", "muted", "grid", "paper"))
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.parse_math": False,
    "text.color": FG,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "legend.frameon": False,
}


def require_matplotlib() -> None:
    """Raises MissingExtraError where there is nothing to draw with."""
    with importing("the HTML report", "report"):
        import matplotlib  # noqa: F401


def draw_svg(
    name: str,
    draw: Callable[[Axes], None],
    pixels: tuple[float, float],
    title: str = "",
    description: str = "",
) -> str:
    """The SVG of what ``draw`` puts into empty axes; ``name`` makes its ids its own."""
    require_matplotlib()
    import matplotlib.style
    from matplotlib.figure import Figure

    # "default": whatever the user's matplotlibrc says. Hash: ids that are the same each time.
    style = matplotlib.style.context(["default", STYLE | {"svg.hashsalt": name}])
    with style, warnings.catch_warnings():
        # DejaVu lacks many scripts; the page's font need not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure((pixels[0] / 72, pixels[1] / 72), dpi=72, layout="constrained")
        draw(figure.subplots())
        written = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing, transparent=True)
    return _inline(written.getvalue(), name, pixels, title, description)


def _inline(
    document: bytes, name: str, pixels: tuple[float, float], title: str, description: str
) -> str:
    """Matplotlib's document as an element of a page: its roles, no namespaces, few ids."""
    root = ElementTree.fromstring(document)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _attribute(key, value) for key, value in element.items()
        }
    _clean(root, set(re.findall(r"#([\w.-]+)", " ".join(_values(root)))))
    width, height = (f"{side:g}" for side in pixels)
    root.attrib = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    if title:
        root.attrib |= {
            "class": "chart",
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-description",
        }
        for place, (tag, text) in enumerate((("title", title), ("description", description))):
            element = ElementTree.Element(tag if tag == "title" else "desc", id=f"{name}-{tag}")
            element.text = text
            root.insert(place, element)
    else:
        root.set("aria-hidden", "true")
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(name: str, value: str) -> str:
    """An attribute shorter, and in the page's colours and font."""
    value = " ".join(value.split())
    if name == "style":
        value = re.sub(r"font-family: [^;]*;? ?", "", value)
        return re.sub(r"#fe0[01]\w\w", lambda found: f"var({ROLES[found[0]]})", value)
    if name in ("d", "x", "y", "transform"):
        return re.sub(r"(\.\d\d)\d+", r"\1", value)
    return value


def _values(root: ElementTree.Element) -> list[str]:
    return [value for element in root.iter() for value in element.attrib.values()]


def _clean(root: ElementTree.Element, referenced: set[str]) -> None:
    """Takes out ids that nothing points to, and a style sheet that would reach the whole page."""
    for element in root.iter():
        if element.get("id") not in referenced:
            element.attrib.pop("id", None)
        element.text, element.tail = (element.text or "").strip() or None, None
        for child in list(element):
            if child.tag == "defs" and child.find("style") is not None:
                element.remove(child)
