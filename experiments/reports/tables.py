"""Tables: written once, shown on a terminal, in Markdown, in HTML, in LaTeX and as comma-separated values.

    table = Table.of(("sampler", "FID"), [("heun", 2.9), ("euler", Cell("5.1 ± 0.2", value=5.1))], numbers=("FID",))
    table.print()                      # rich, on a terminal
    table.markdown()                   # lines of a page
    table.html(sortable=True)          # for reports/style.py, which has its looks and its sorting
    table.latex(), table.csv()         # booktabs; a spreadsheet

A cell is a text, a number, or a `Cell`, which can be strong, carry a mark, have a link, or sort by another value than
its text. Every renderer escapes the markup of its language.
"""

import csv
import dataclasses
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import rich.table
from rich.console import Console
from rich.text import Text

_TEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "→": r"$\rightarrow$", "±": r"$\pm$", "–": "--", "−": "$-$",
}  # fmt: skip
_TEX_MARKS = {"*": "^*", "●": r"\,\bullet"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
      text: the text shown.
      strong: whether it is highlighted, for example as the best of its column.
      mark: a sign after the text: ●, *.
      about: the meaning of the mark, shown on hover.
      link: target of a link, relative to the page.
      value: value to sort the column by, if the text is no plain number.
      drawn: HTML in place of the text, made by the caller from escaped parts; the other renderers show the text.
    """

    text: str
    strong: bool = False
    mark: str = ""
    about: str = ""
    link: str = ""
    value: float | None = None
    drawn: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: its title, whether it holds numbers (aligned right), its class in HTML, a title as HTML."""

    title: str
    number: bool = False
    kind: str = ""
    drawn: str = ""
    names_row: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Columns, and rows with one cell per column."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""

    @classmethod
    def of(
        cls,
        columns: Iterable[str | Column],
        rows: Iterable[Iterable[Any]],
        *,
        numbers: Sequence[str] = (),
        title: str = "",
    ) -> "Table":
        """Make a table from titles and plain values; `numbers` are the titles of right-aligned columns.

        Raises:
          ValueError: the number of cells in a row differs from the number of columns.
        """
        made = tuple(one if isinstance(one, Column) else Column(one, number=one in numbers) for one in columns)
        cells = tuple(tuple(one if isinstance(one, Cell) else Cell(_text(one)) for one in row) for row in rows)
        wrong = next((row for row in cells if len(row) != len(made)), None)
        if wrong is not None:
            raise ValueError(f"a row of {len(wrong)} cells in a table of {len(made)} columns: {wrong}")
        return cls(columns=made, rows=cells, title=title)

    def without(self, *titles: str) -> "Table":
        """The table without some columns."""
        kept = [i for i, column in enumerate(self.columns) if column.title not in titles]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return dataclasses.replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows)

    @property
    def _headless(self) -> bool:
        return not any(column.title or column.drawn for column in self.columns)

    def terminal(self, **options: Any) -> rich.table.Table:
        """The table for a console of rich; `options` are those of `rich.table.Table`."""
        options.setdefault("show_header", not self._headless)
        made = rich.table.Table(title=Text(self.title) if self.title else None, **options)
        for i, column in enumerate(self.columns):
            justify = "right" if column.number else "left"
            made.add_column(Text(column.title), justify=justify, no_wrap=column.names_row or (column.number and i > 0))
        for row in self.rows:
            made.add_row(*(Text(f"{cell.text}{cell.mark}", style="bold" if cell.strong else "") for cell in row))
        return made

    def print(self, console: Console | None = None, **options: Any) -> None:
        """Print the table on a terminal; in a log, in the same form without colours."""
        (console or Console(highlight=False)).print(self.terminal(**options))

    def markdown(self) -> list[str]:
        """The table as lines of Markdown."""
        lines = [_markdown_row(column.title for column in self.columns), "|" + "---|" * len(self.columns)]
        for row in self.rows:
            lines.append(_markdown_row(_in_markdown(cell) for cell in row))
        return lines

    def html(self, *, sortable: bool = False, kind: str = "") -> str:
        """A `table` element; with `sortable` a click on a title sorts by that column."""
        head = ""
        if not self._headless:
            head = "".join(_html_title(column, sortable=sortable) for column in self.columns)
            head = f"<thead><tr>{head}</tr></thead>"
        body = "".join(
            "<tr>" + "".join(_html_cell(cell, column) for cell, column in zip(row, self.columns, strict=True)) + "</tr>"
            for row in self.rows
        )
        names = " ".join(filter(None, (kind, "sortable" if sortable else "")))
        attribute = f' class="{names}"' if names else ""
        return f"<table{attribute}>{head}<tbody>{body}</tbody></table>"

    def latex(self) -> str:
        """A tabular for booktabs, with numbers in mathematics and strong cells in bold."""
        form = "".join("r" if column.number else "l" for column in self.columns)
        lines = [
            rf"\begin{{tabular}}{{{form}}}",
            r"\toprule",
            " & ".join(_in_tex(column.title) for column in self.columns) + r" \\",
            r"\midrule",
        ]
        for row in self.rows:
            cells = (_tex_cell(cell, column) for cell, column in zip(row, self.columns, strict=True))
            lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def csv(self) -> str:
        """Comma-separated values, with a line of titles first."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.title for column in self.columns])
        writer.writerows([cell.text for cell in row] for row in self.rows)
        return out.getvalue()


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _in_markdown(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|").replace("\n", " ")
    text = f"[{text}]({cell.link})" if cell.link else text
    mark = {"": "", "*": "\\*"}.get(cell.mark, f" {cell.mark}")
    return (f"**{text}**" if cell.strong else text) + mark


def _html_title(column: Column, *, sortable: bool) -> str:
    kind = " ".join(filter(None, ("number" if column.number else "", column.kind)))
    attribute = f' class="{kind}"' if kind else ""
    text = column.drawn or html.escape(column.title)
    if sortable and text:
        text = f'<button type="button" title="sort by this column">{text}</button>'
    return f'<th scope="col"{attribute}>{text}</th>'


def _html_cell(cell: Cell, column: Column) -> str:
    kind = " ".join(filter(None, ("number" if column.number else "", column.kind)))
    attributes = f' class="{kind}"' if kind else ""
    attributes += "" if cell.value is None else f' data-sort="{cell.value!r}"'
    text = cell.drawn or html.escape(cell.text)
    text = f'<a href="{html.escape(cell.link)}">{text}</a>' if cell.link else text
    text = f"<b>{text}</b>" if cell.strong else text
    if cell.mark:
        title = f' title="{html.escape(cell.about)}"' if cell.about else ""
        text += f" <span{title}>{html.escape(cell.mark)}</span>"
    tag = "th" if column.names_row else "td"
    return f"<{tag}{attributes}>{text}</{tag}>"


def _in_tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def _tex_cell(cell: Cell, column: Column) -> str:
    mark = _TEX_MARKS.get(cell.mark, "")
    mean, plus_minus, half = cell.text.partition(" ± ")
    if not column.number or not any(letter.isdigit() for letter in mean):
        text = _in_tex(cell.text)
        return (rf"\textbf{{{text}}}" if cell.strong else text) + (f"${mark}$" if mark else "")
    mean = mean.replace("−", "-").replace(",", "{,}")
    if "e" in mean:
        digits, _, power = mean.partition("e")
        mean = rf"{digits} \cdot 10^{{{int(power)}}}" if power.lstrip("+-").isdigit() else _in_tex(mean)
    text = rf"\mathbf{{{mean}}}" if cell.strong else mean
    return f"${text}{plus_minus.replace('±', chr(92) + 'pm')}{half}{mark}$"
