"""Figures drawn once: inlined into a page that is light or dark, or saved as PNG and SVG for a paper.

A figure is drawn by a function of matplotlib axes and `Ink`, which names colours. For a file a name stands for its
light colour. In a page it stands for a colour that occurs nowhere else and is replaced by a CSS variable, so that the
reader's theme decides without another drawing.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

# Name: light, dark. `best` and `default` are two series, told apart by anybody (Okabe and Ito's blues; grey).
COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#15181d"),
    "card": ("#f6f7f9", "#1d2127"),
    "ink": ("#1b1f24", "#e8eaed"),
    "muted": ("#59606b", "#a3abb8"),
    "rule": ("#dfe3e8", "#333a44"),
    "accent": ("#0068a8", "#62b8f0"),
    "default": ("#757d89", "#939cab"),
    "crash": ("#b8480a", "#ff9a5c"),
}
LIGHT: dict[str, str] = {name: light for name, (light, _) in COLOURS.items()}
_STANDINS: dict[str, str] = {name: f"#5e0d{index:02x}" for index, name in enumerate(COLOURS)}

FONT_PX = 12.5
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # what a log says may hold dollars
    "font.size": FONT_PX,
    "axes.unicode_minus": False,
    "path.simplify": True,
}
_POINTS_INCH = 72  # an SVG of matplotlib's has that many units an inch
_TIP, _CRISP = "tip: ", "crisp"
_NUMBER = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"(?:^|url\()#([\w.-]+)")


class Ink:
    """Colours by name, and in a page what a mark says when it is pointed at."""

    __slots__ = ("_colours", "_page")

    def __init__(self, colours: Mapping[str, str], *, page: bool) -> None:
        self._colours, self._page = colours, page

    def __getitem__(self, name: str) -> str:
        return self._colours[name]

    def tip(self, text: str) -> str | None:
        """The `gid` that gives a mark this text."""
        return f"{_TIP}{plain(text)}" if self._page else None

    @property
    def crisp(self) -> str | None:
        """The `gid` of what has to meet its neighbour without a seam."""
        return _CRISP if self._page else None


Draw = Callable[["Axes", Ink], None]
Size = tuple[int, int]  # width and height in CSS pixels


def plain(text: object, most: int = 60) -> str:
    """One line of at most `most` characters that XML can hold."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    return line if len(line) <= most else line[: most - 1] + "…"


def inline_svg(draw: Draw, size: Size, prefix: str) -> str:
    """An `<svg>` element for HTML: colours are CSS variables, text has the page's font, ids begin with `prefix`."""
    root = ElementTree.fromstring(_saved(draw, size, "svg", Ink(_STANDINS, page=True), prefix).decode())  # noqa: S314
    _strip(root)
    _rename_ids(root, prefix)
    root.attrib.clear()
    width, height = size
    root.attrib |= {"viewBox": f"0 0 {width} {height}", "aria-hidden": "true", "focusable": "false"}
    text = ElementTree.tostring(root, encoding="unicode")
    for name, colour in _STANDINS.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def picture(draw: Draw, size: Size, suffix: str, name: str) -> bytes:
    """The figure as a file of its own, `png` or `svg`, in the light palette."""
    return _saved(draw, size, suffix, Ink(LIGHT, page=False), name)


def _saved(draw: Draw, size: Size, suffix: str, ink: Ink, salt: str) -> bytes:
    """Equal drawings give equal bytes."""
    import matplotlib as mpl  # slow to load, and only this needs it
    from matplotlib.figure import Figure

    saved = io.BytesIO()
    with mpl.rc_context({**_RC, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # browsers have it
        drawing: Drawing = Figure(
            figsize=(size[0] / _POINTS_INCH, size[1] / _POINTS_INCH), layout="constrained", facecolor="none"
        )
        axes = drawing.subplots()
        _dress(axes, ink)
        draw(axes, ink)
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        facecolor = "none" if suffix == "svg" else ink["paper"]
        drawing.savefig(saved, format=suffix, dpi=200, metadata=metadata, facecolor=facecolor)
    return saved.getvalue()


def _dress(axes: Axes, ink: Ink) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ink["rule"])
    axes.grid(visible=True, axis="y", color=ink["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=ink["muted"], labelcolor=ink["muted"], length=0, labelsize=FONT_PX)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(ink["muted"])
    axes.yaxis.labelpad = 8


def _strip(root: ElementTree.Element) -> None:
    """Takes out what a page has no use for: namespaces, metadata, the style of all elements, fonts, spare digits."""
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")) or not (child.attrib or len(child)):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        for name in list(element.attrib):
            value = element.attrib.pop(name)
            name = name.rpartition("}")[2]
            if name in ("d", "transform", "x", "y", "width", "height"):
                value = _NUMBER.sub(_shorter, " ".join(value.split()))
            if name == "style":
                value = _restyled(value)
            if not value.startswith("rotate(-0 "):
                element.attrib[name] = value


def _restyled(style: str) -> str:
    """The declarations less the font, of which the size stays; matplotlib writes it whole or in parts."""
    kept = [part.strip() for part in style.split(";") if not part.strip().startswith("font-family")]
    return ";".join(re.sub(r"^font: ([\d.]+px) .*", r"font-size: \1", part) for part in kept).replace(": ", ":")


def _shorter(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")


def _rename_ids(root: ElementTree.Element, prefix: str) -> None:
    """Ids that something refers to get the prefix, tips become titles, the others go: two figures would share them."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = {name for value in values for name in _REFERENCE.findall(value)}
    for element in root.iter():
        own = element.attrib.pop("id", "")
        for name, value in element.attrib.items():
            element.attrib[name] = _REFERENCE.sub(lambda found: found[0].replace("#", f"#{prefix}-"), value)
        if own.startswith(_TIP):
            title = ElementTree.Element("title")
            title.text = own.removeprefix(_TIP)
            element.insert(0, title)
        elif own == _CRISP:
            element.attrib["shape-rendering"] = "crispEdges"
        elif own in used:
            element.attrib["id"] = f"{prefix}-{own}"
