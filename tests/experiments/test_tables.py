"""A table has the same content in every format, and no format interprets a cell as markup."""

import csv
import io

import pytest
from rich.console import Console

from experiments.reports.tables import Cell, Column, Table

EVIL = "a|b_<&%$ \\ {x} ~^#"


@pytest.fixture
def table():
    rows = [
        ("heun", Cell("0.25 ± 0.03", strong=True, mark="*", about="p < 0.05", value=0.25)),
        (Cell(EVIL, link="b/report.html"), Cell("1.5e-4", mark="●")),
        ("nothing", "–"),
    ]
    return Table.of(("sampler", "fd ↓"), rows, numbers=("fd ↓",), title="Two columns")


def test_markdown(table):
    assert table.markdown() == [
        "| sampler | fd ↓ |",
        "|---|---|",
        r"| heun | **0.25 ± 0.03**\* |",
        r"| [a\|b_<&%$ \ {x} ~^#](b/report.html) | 1.5e-4 ● |",
        "| nothing | – |",
    ]


def test_html(table):
    text = table.html(sortable=True, kind="narrow")
    assert '<table class="narrow sortable">' in text
    assert '<td class="number" data-sort="0.25"><b>0.25 ± 0.03</b> <span title="p &lt; 0.05">*</span></td>' in text
    assert '<td><a href="b/report.html">a|b_&lt;&amp;%$ \\ {x} ~^#</a></td>' in text
    assert text.count("<button") == 2
    assert "<button" not in table.html()


def test_latex(table):
    lines = table.latex().splitlines()
    assert lines[0] == r"\begin{tabular}{lr}"
    assert lines[2] == r"sampler & fd $\downarrow$ \\"
    assert lines[4] == r"heun & $\mathbf{0.25} \pm 0.03^*$ \\"
    assert lines[5].startswith(r"a|b\_<\&\%\$ \textbackslash{} \{x\} \textasciitilde{}\textasciicircum{}\# & ")
    assert lines[5].endswith(r"$1.5 \cdot 10^{-4}\,\bullet$ \\")
    assert lines[6] == r"nothing & -- \\"


def test_csv_reads_back(table):
    found = list(csv.reader(io.StringIO(table.csv())))
    assert found == [["sampler", "fd ↓"], ["heun", "0.25 ± 0.03"], [EVIL, "1.5e-4"], ["nothing", "–"]]


def test_terminal(table):
    out = io.StringIO()
    table.print(Console(file=out, width=60))
    text = out.getvalue()
    for part in ("Two columns", "sampler", "0.25 ± 0.03*", EVIL, "1.5e-4●"):
        assert part in text


def test_markup_of_the_terminal_is_text():
    out = io.StringIO()
    Table.of(("[bold]a",), [("[red]x[/red]",), ("[/nothing]",)]).print(Console(file=out, width=60))
    assert "[red]x[/red]" in out.getvalue()


def test_columns_that_are_left_out(table):
    assert table.without("fd ↓").markdown()[2] == "| heun |"


def test_a_table_of_names_has_no_head():
    made = Table.of((Column("", names_row=True), Column("", kind="mono")), [("seed", 0)]).html()
    assert made == '<table><tbody><tr><th>seed</th><td class="mono">0</td></tr></tbody></table>'


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="a row of 1 cells in a table of 2 columns"):
        Table.of(("a", "b"), [("x",)])
