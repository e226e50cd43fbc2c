"""The matrix of the objectives out of the figures: for a terminal, a README and the page; its picture is drawn in plots.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from aligner.evaluation.measures.controls import IDENTITY

Report = Mapping[str, Any]


def shown_systems(report: Report) -> list[str]:
    """The systems whose matrix says something: not that of leaving the answers alone, which is the same in every row."""
    return [name for name in report.get("matrix", {}) if name != IDENTITY]


def table(report: Report, system: str) -> list[list[str]]:
    """A system's matrix as cells: the columns' names first, then a row for what is asked for."""
    matrix = report["matrix"][system]
    names = [column["name"] for column in report["columns"]]
    rows = [[what, *(_cell(cells[name]["mean"]) for name in names)] for what, cells in matrix["rows"].items()]
    return [["asked for", *names], *rows]


def matrix_lines(report: Report) -> Iterator[str]:
    """The matrices for a terminal, means alone."""
    for system in shown_systems(report):
        heads, *rows = table(report, system)
        cells = [heads, *([what, *(cell.partition(" ")[0] for cell in others)] for what, *others in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        yield f"{system}, {report['matrix'][system]['answers']:,} answers:"
        for what, *others in cells:
            figures = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
            yield f"  {what:<{widths[0]}}  {'  '.join(figures)}"


def matrix_markdown(report: Report) -> Iterator[str]:
    """The matrices as a README shows them."""
    for system in shown_systems(report):
        heads, *rows = table(report, system)
        yield f"**What is asked for, and what becomes of {report['matrix'][system]['answers']:,} answers**: {system}"
        yield from ("", _line(heads), "|" + "---|" * len(heads), *map(_line, rows), "")
    if "columns" in report:
        yield from (f"- {column['name']}: {column['unit']}" for column in report["columns"])


def matrix_html(report: Report) -> str:
    """The matrices as tables; an objective's own measure is in bold."""
    return "".join(_table_html(report, system) for system in shown_systems(report))


Cell = tuple[float, str, bool]


def picture_panels(report: Report) -> list[tuple[str, list[str], list[list[Cell]]]]:
    """What is drawn of each system: its name, the rows' names, and of each cell its difference from asking for nothing, where it is
    one (over the column's largest, -1 to 1), its text, and whether it is the objective's own measure."""
    columns, panels = [column["name"] for column in report["columns"]], []
    rows = {system: report["matrix"][system]["rows"] for system in shown_systems(report)}
    every = [cells for own in rows.values() for cells in own.values()]
    largest = {name: max([1e-9, *(abs(_shift(cells[name])) for cells in every)]) for name in columns}
    for system, own in rows.items():
        drawn = [
            [(_shift(cells[name]) / largest[name], _short(cells[name]), _own(report, what, name)) for name in columns]
            for what, cells in own.items()
        ]
        panels.append((f"{system} ({report['matrix'][system]['answers']:,} answers)", list(own), drawn))
    return panels


def _shift(cell: Mapping[str, Any]) -> float:
    """By how much a cell differs from that of asking for nothing; 0 where its interval reaches 0."""
    apart = cell.get("against_nothing", {"value": 0.0, "low": 0.0, "high": 0.0})
    return float(apart["value"]) if apart["low"] > 0 or apart["high"] < 0 else 0.0


def _own(report: Report, what: str, name: str) -> bool:
    return any(column["name"] == name and what in (column["more"], column["less"]) for column in report["columns"])


def _short(cell: Mapping[str, Any]) -> str:
    mean = cell["mean"]
    return f"{_number(mean['value'])}\n{_number(mean['low'])} to {_number(mean['high'])}"


def _cell(mean: Mapping[str, float]) -> str:
    return f"{_number(mean['value'])} ({_number(mean['low'])} to {_number(mean['high'])})"


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no -0.00


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table_html(report: Report, system: str) -> str:
    heads, *rows = table(report, system)
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr><td>{escape(what)}</td>"
        + "".join(
            f"<td class='{'own' if _own(report, what, name) else ''}'>{cell}</td>"
            for name, cell in zip(heads[1:], cells, strict=True)
        )
        + "</tr>"
        for what, *cells in rows
    )
    return f"<h3>{escape(system)}, {report['matrix'][system]['answers']:,} answers</h3><table><tr>{head}</tr>{body}</table>"
