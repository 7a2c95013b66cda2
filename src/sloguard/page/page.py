"""What a page is made of, and its HTML: one file with its style, script and figures inside, that asks for nothing else.

Text of a page is text. It comes from logs, configs and files, so all of it is escaped; only the figures, which
`canvas.py` draws, go in as they are. The policy in the head (CSP) lets nothing load, and no script run but the page's.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from sloguard import __version__
from sloguard.errors import SpecError
from sloguard.page.canvas import COLOURS, Draw, Size, inline_svg, picture
from sloguard.report.files import write_bytes_atomic

PANEL: Size = (480, 290)
FORMATS = ("svg", "png")


@dataclass(frozen=True, slots=True)
class Figure:
    """`name` is that of its files, `label` what a reader who can't see it is told, `title` stands above it."""

    kind: ClassVar[str] = "figure"
    name: str
    title: str
    label: str
    draw: Draw
    size: Size = PANEL
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """Side by side as far as there is room; `small` ones three in a row."""

    kind: ClassVar[str] = "figures"
    figures: tuple[Figure, ...]
    small: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied as it stands."""

    kind: ClassVar[str] = "code"
    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Cell:
    """`sort` is what it is sorted by, where that is not its text; `mark` names a status, which has its own sign."""

    text: str
    sort: float | None = None
    code: bool = False
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """Of numbers, or `wide`: of texts that need room."""

    name: str
    number: bool = False
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` have a cell for each column. One that is `sortable` gets buttons in its head; `filter` names the column
    whose values can be chosen from. `strong` are the rows to be seen first.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = False
    filter: str = ""
    strong: frozenset[int] = frozenset()

    @property
    def choices(self) -> list[str]:
        at = next((i for i, column in enumerate(self.columns) if column.name == self.filter), None)
        return [] if at is None else sorted({row[at].text for row in self.rows})


@dataclass(frozen=True, slots=True)
class Case:
    """Something that went wrong: what, how often and where, the line that says so, and what to do."""

    kind: ClassVar[str] = "case"
    title: str
    detail: str
    quote: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Beside:
    """A figure and the table of what it shows, next to each other where there is room."""

    kind: ClassVar[str] = "beside"
    blocks: tuple[Figures, Table]


@dataclass(frozen=True, slots=True)
class More:
    """What is folded away."""

    kind: ClassVar[str] = "more"
    summary: str
    blocks: tuple[Block, ...]


Block = Figures | Text | Code | Table | Case | Beside | More


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`tone` is good or bad; `notices` are what a reader must know of the figures."""

    tone: str
    headline: str
    text: str
    tiles: tuple[Tile, ...] = ()
    notices: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    subtitle: str
    verdict: Verdict
    sections: tuple[Section, ...] = ()

    @property
    def figures(self) -> list[Figure]:
        return list(_figures([*self.verdict.blocks, *(b for section in self.sections for b in section.blocks)]))


def _figures(blocks: Sequence[Block]) -> Iterator[Figure]:
    for block in blocks:
        if isinstance(block, Figures):
            yield from block.figures
        elif isinstance(block, Beside | More):
            yield from _figures(block.blocks)


def render(page: Page, *, live: bool = False) -> str:
    """The page as one HTML file. Equal pages give equal text. One that is `live` asks for itself again where it came
    from, when it is told to (`live.py`).
    """
    scripts = [_asset(name) for name in ("script.js", *(["live.js"] if live else []))]
    return _template().render(
        page=page,
        live=live,
        version=__version__,
        colours=COLOURS,
        style=Markup(_asset("style.css")),  # noqa: S704 - a file of this package
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - files of this package
        hashes=[f"sha256-{_sha256(script)}" for script in scripts],
        svg=lambda figure: Markup(inline_svg(figure.draw, figure.size, figure.name)),  # noqa: S704 - canvas escapes it
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _template() -> Template:
    """With autoescape, and no name taken for granted."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_asset("page.html.j2"))


def _asset(name: str) -> str:
    return files("sloguard.page").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def write_figures(page: Page, directory: Path) -> list[Path]:
    """Each figure as SVG and PNG, in light colours. Raises SpecError where `directory` can't be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"can't be made ({error.strerror})"
        raise SpecError("--figures", str(directory), problem, "Give a directory that can be written.") from error
    written: list[Path] = []
    for figure in page.figures:
        for suffix in FORMATS:
            path = directory / f"{figure.name}.{suffix}"
            write_bytes_atomic(path, picture(figure.draw, figure.size, suffix, figure.name))
            written.append(path)
    return written
