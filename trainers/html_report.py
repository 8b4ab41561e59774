"""A page of figures, tables and pictures, in one file that needs neither network nor scripts."""

from __future__ import annotations

import base64
import re
import shlex
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.schema import as_utf8
from datasets.storage import write_atomically

if TYPE_CHECKING:
    from markupsafe import Markup

OPTION = re.compile(r"(?<!\S)(--[a-z-]+( \d+)?)")
TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class Share:
    """A cell of a table: 0 to 1, shown as per cent on a bar of that length."""

    value: float


Cell = str | int | float | Share


@dataclass(frozen=True)
class Table:
    """Rows under a header, which may be empty; the first cell of each row names it. Long ones
    scroll, and are printed whole."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def is_number(self, column: int) -> bool:
        """Whether it stands at the right: nothing in it is text."""
        return column > 0 and not any(isinstance(row[column], str) for row in self.rows)


@dataclass(frozen=True)
class Picture:
    """A PNG, as its bytes or its path, and its alternative text."""

    png: Path | bytes
    alt: str

    @property
    def data(self) -> bytes:
        return self.png if isinstance(self.png, bytes) else self.png.read_bytes()

    @property
    def width(self) -> int:
        return int(struct.unpack(">I", self.data[16:20])[0])

    @property
    def height(self) -> int:
        return int(struct.unpack(">I", self.data[20:24])[0])

    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.data).decode()


@dataclass(frozen=True)
class Section:
    """A part of a report: a paragraph, a picture and a table, in that order, where there are any.

    folded: Only its title is seen until that is clicked; in print everything is.
    """

    title: str
    text: str = ""
    table: Table | None = None
    picture: Picture | None = None
    folded: bool = False


def write_report(
    path: Path,
    title: str,
    figures: dict[str, str],
    sections: Sequence[Section],
    command: Sequence[str] = (),
    note: str = "",
) -> None:
    """Writes the page, whole or not at all. Names may hold anything: they are shown as they are.

    figures: What is read first, by name. command: The words that make the same again, from
    `pipeline` on. note: What to know before that is done.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"shown": shown, "breakable": breakable, "with_options": with_options}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        figures=figures,
        sections=sections,
        command=shlex.join(command),
        note=note,
    )
    write_atomically(path, as_utf8(page))


def shown(cell: Cell) -> str:
    """The text of a cell: 1,200 and 0.1234 and 93.3 %."""
    if isinstance(cell, Share):
        return percent(cell.value, 1)
    if isinstance(cell, float):
        return f"{cell:.4f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def breakable(text: str) -> Markup:
    """Escaped, and where a line is too short, broken after one of `_/|` before any other letter."""
    from markupsafe import Markup, escape

    return Markup(re.sub("([_/|])", r"\1<wbr>", str(escape(text))))


def with_options(text: str) -> Markup:
    """Escaped, with every `--option` as code, which is not broken between lines."""
    from markupsafe import Markup, escape

    return Markup(OPTION.sub(r"<code>\1</code>", str(escape(text))))


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"
