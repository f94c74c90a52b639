"""One HTML file that reads well on its own: prose, key figures, tables, charts and quoted replies.

The file needs no network and runs no script: a content security policy forbids both, because most of what it
shows is text from data sets and models, which nobody has checked. All text is escaped, characters that would
vanish or reorder a line are made visible, and charts are static images, one for light and one for dark pages.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import polars as pl

from probekit._chart_parts import data_url
from probekit._report_style import STYLE
from probekit._report_text import clipped, format_number, inline, plain, text_html, value_html
from probekit.charts import to_svg
from probekit.sources import replacing

if TYPE_CHECKING:
    from probekit.charts import Chart

__all__ = [
    "Block",
    "Excerpt",
    "Figure",
    "KeyFigure",
    "ReportError",
    "Section",
    "Table",
    "format_number",
    "write_report",
]

SHORT = 28  # characters up to which a cell is kept on one line
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class ReportError(ValueError):
    """A report that cannot be written as asked: a column that is not there, a block without words."""


@dataclass(frozen=True)
class Table:
    """A frame with a caption.

    percent: columns of shares, shown as 12.5%. decimals: digits after the point of other floats. labels:
    column -> heading; default the name with spaces. rows: at most so many are shown, which the caption says.
    intervals: column -> (its low, its high), shown as one, "12.5% (8.1 to 17.0)". By default <name>_low and
    <name>_high belong to the column <name>, and low and high to the column before them.

    Raises ReportError for an empty caption and for columns that the frame does not have.

    >>> frame = pl.DataFrame({"arm": ["filter"], "rate": [0.1], "low": [0.0], "high": [0.2]})
    >>> Table(frame, "Rates.").bounds()
    {'rate': ('low', 'high')}
    """

    frame: pl.DataFrame
    caption: str
    percent: Sequence[str] = ()
    decimals: int = 2
    labels: Mapping[str, str] = field(default_factory=dict)
    intervals: Mapping[str, tuple[str, str]] | None = None
    rows: int = 50

    def __post_init__(self) -> None:
        named = [
            *self.percent,
            *self.labels,
            *(name for column, both in self.bounds().items() for name in (column, *both)),
        ]
        if missing := [name for name in named if name not in self.frame.columns]:
            raise ReportError(f"The table {self.caption!r} has no column {missing[0]!r}.")
        if not self.caption.strip() or not self.frame.width:
            raise ReportError("A table needs at least one column and a caption that says what it shows.")

    def bounds(self) -> dict[str, tuple[str, str]]:
        """Column -> the columns of its low and high, which are shown with it."""
        if self.intervals is not None:
            return dict(self.intervals)
        names = self.frame.columns
        both = {name: (f"{name}_low", f"{name}_high") for name in names}
        found = {name: bounds for name, bounds in both.items() if set(bounds) <= set(names)}
        if {"low", "high"} <= set(names[1:]):
            found[names[names.index("low") - 1]] = ("low", "high")
        return found


@dataclass(frozen=True)
class Figure:
    """A chart with a caption and, if given, its numbers as a table that the reader can unfold.

    The alt text is the chart's `description`. Raises ReportError if it has none.
    """

    chart: Chart
    caption: str
    table: Table | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.chart.description, str) or not self.chart.description.strip():
            raise ReportError(
                f"The chart {self.caption!r} has no description; those who cannot see it need one."
            )


@dataclass(frozen=True)
class KeyFigure:
    """One number that matters: its name, its value as text, and a note such as the interval or the target."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Excerpt:
    """Quoted text that nobody has checked, such as prompt and replies: (label, text) in reading order."""

    parts: Sequence[tuple[str, str]]
    caption: str = ""


Block: TypeAlias = str | Table | Figure | Excerpt | Sequence[KeyFigure]
"""What a section holds. A text is prose: blank lines part paragraphs, backticks set `code`."""


@dataclass(frozen=True)
class Section:
    """A heading and the blocks under it. Raises ReportError if the blocks are not in a list."""

    title: str
    blocks: Sequence[Block]

    def __post_init__(self) -> None:
        if not isinstance(self.blocks, list | tuple):
            raise ReportError(
                f"The blocks of the section {self.title!r} must be in a list, even if it is one."
            )


def write_report(
    path: str | PathLike[str], *, title: str, sections: Sequence[Section], subtitle: str = ""
) -> Path:
    """Write a self-contained HTML page and return its path. The file appears whole or not at all.

    Raises ReportError if there is no title, no section or a block that is none, SourceError if the file
    cannot be written.

    >>> import tempfile
    >>> file = tempfile.mkdtemp() + "/report.html"
    >>> write_report(file, title="Demo", sections=[Section("One", ["Text."])]).name
    'report.html'
    """
    if not title.strip() or not sections:
        raise ReportError("A report needs a title and at least one section.")
    path = Path(path).expanduser()
    page = _page(title, subtitle, sections)
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    anchors = [f"section-{number}" for number in range(1, len(sections) + 1)]
    numbers = itertools.count(1)  # for the ids that tie a region to its caption
    main = "".join(
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{inline(section.title)}</h2>\n'
        + "\n".join(_block(block, numbers) for block in section.blocks)
        + "\n</section>\n"
        for anchor, section in zip(anchors, sections, strict=True)
    )
    links = "".join(
        f'<li><a href="#{anchor}">{inline(section.title)}</a></li>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    contents = f'<nav aria-label="Contents"><ol>{links}</ol></nav>\n' if len(sections) > 2 else ""
    below = f'<p class="subtitle">{inline(subtitle)}</p>\n' if subtitle else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="color-scheme" content="light dark">
<title>{plain(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{inline(title)}</h1>
{below}{contents}</header>
<main>
{main}</main>
</body>
</html>
"""


def _block(block: Block, numbers: Iterator[int]) -> str:
    match block:
        case str():
            paragraphs = (part.strip() for part in re.split(r"\n\s*\n", block))
            return "\n".join(f"<p>{inline(part)}</p>" for part in paragraphs if part)
        case Table():
            return f"<figure>{_table(block, numbers)}</figure>"
        case Figure():
            return _figure(block, numbers)
        case Excerpt():
            parts = "".join(
                f'<dt>{text_html(a)}</dt><dd dir="auto">{clipped(b, 1000)}</dd>' for a, b in block.parts
            )
            caption = f"<figcaption>{inline(block.caption)}</figcaption>" if block.caption else ""
            return f'<figure class="excerpt">{caption}<dl>{parts}</dl></figure>'
        case list() | tuple() if block and all(isinstance(one, KeyFigure) for one in block):
            return f'<dl class="keys">{"".join(map(_key_figure, block))}</dl>'
        case _:
            raise ReportError(
                f"A section cannot hold {type(block).__name__} as it is: give text, a Table, a Figure, an "
                "Excerpt or a list of KeyFigures. Frames and charts go into a Table or a Figure."
            )


def _key_figure(one: KeyFigure) -> str:
    note = f'<dd class="note">{inline(one.note)}</dd>' if one.note else ""
    return f'<div><dt>{inline(one.name)}</dt><dd class="value">{text_html(one.value)}</dd>{note}</div>'


def _figure(figure: Figure, numbers: Iterator[int]) -> str:
    light, dark = to_svg(figure.chart), to_svg(figure.chart, dark=True)
    size = re.search(r'<svg[^>]*? width="([\d.]+)" height="([\d.]+)"', light)
    shape = f' width="{float(size[1]):.0f}" height="{float(size[2]):.0f}"' if size else ""
    caption = f"caption-{next(numbers)}"
    alt = plain(str(figure.chart.description))
    more = ""
    if figure.table is not None:
        more = f"<details><summary>The numbers as a table</summary>{_table(figure.table, numbers)}</details>"
    return (
        f'<figure><div class="scroll" role="region" aria-labelledby="{caption}" tabindex="0"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{data_url(dark)}">'
        f'<img src="{data_url(light)}" alt="{alt}"{shape}></picture></div>'
        f'<figcaption id="{caption}">{inline(figure.caption)}</figcaption>{more}</figure>'
    )


def _table(table: Table, numbers: Iterator[int]) -> str:
    frame, bounds, caption = table.frame, table.bounds(), f"caption-{next(numbers)}"
    columns = [
        name for name in frame.columns if name not in {one for both in bounds.values() for one in both}
    ]
    kinds = {name: _kind(frame[name]) for name in columns}
    heads = "".join(
        f'<th scope="col" class="{kinds[name]}">{_heading(table, name, name in bounds)}</th>'
        for name in columns
    )
    body = []
    for row in frame.head(table.rows).iter_rows(named=True):
        cells = []
        for place, name in enumerate(columns):
            # a first column of words names its row
            head = place == 0 and kinds[name] != "number"
            tag = '<th scope="row"' if head else "<td"
            way = "" if kinds[name] == "number" else ' dir="auto"'
            shown = _cell(table, row, name, bounds.get(name))
            cells.append(f'{tag} class="{kinds[name]}"{way}>{shown}</{"th" if head else "td"}>')
        body.append(f"<tr>{''.join(cells)}</tr>\n")
    words = inline(table.caption)
    if frame.height > table.rows:
        words += f" The first {table.rows:,} of {frame.height:,} rows."
    return (
        f'<div class="scroll" role="region" aria-labelledby="{caption}" tabindex="0"><table>'
        f'<caption id="{caption}">{words}</caption>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{''.join(body)}</tbody></table></div>"
    )


def _kind(column: pl.Series) -> str:
    """The class of a column's cells: numbers stand right, short words are never broken, long ones are."""
    if column.dtype.is_numeric():
        return "number"
    if column.dtype == pl.String:
        return "words" if (column.str.len_chars() > SHORT).any() else "short"
    return "words" if column.dtype.is_nested() else "short"


def _heading(table: Table, name: str, has_interval: bool) -> str:
    words = inline(table.labels.get(name, name.replace("_", " ")))
    return words + (' <span class="below">95% interval</span>' if has_interval else "")


def _cell(table: Table, row: Mapping[str, Any], name: str, bounds: tuple[str, str] | None) -> str:
    def show(column: str) -> str:
        return value_html(row[column], percent=name in table.percent, decimals=table.decimals)

    if row[name] is None or bounds is None or row[bounds[0]] is None or row[bounds[1]] is None:
        return show(name)
    low, high = (show(bound).removesuffix("%") for bound in bounds)
    return f'{show(name)} <span class="interval">({low} to {high})</span>'
