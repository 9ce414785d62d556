"""A report as plain text of 80 columns, and as HTML for a notebook: every table whole, nothing truncated."""

import html
import textwrap
from typing import TYPE_CHECKING

from medvitlib.errors import printable
from medvitlib.evaluation.findings import caveats, what_was_tested
from medvitlib.evaluation.inputs import percent
from medvitlib.evaluation.intervals import Estimate

if TYPE_CHECKING:
    from medvitlib.evaluation.result import Report

Table = list[list[str]]
"""Rows of cells, the header first; the first column names the row."""
WIDTH = 80
NAME = 28  # columns for the name of a row; a longer one continues on the next line


def as_text(report: "Report") -> str:
    """Render what was tested, each table and the caveats, no line longer than `WIDTH`."""
    caveat = {"initial_indent": "- ", "subsequent_indent": "  "}
    blocks = [
        *map(_filled, report.alerts),
        _filled(what_was_tested(report)),
        *(_aligned(part) for table in _tables(report) for part in _parts(table)),
        "\n".join(_filled(sentence, **caveat) for sentence in caveats(report)),
    ]
    return "\n\n".join(filter(None, blocks))


def as_html(report: "Report") -> str:
    """Render the same as `as_text`, as HTML."""
    tables = "".join(map(_html_table, _tables(report)))
    items = "".join(f"<li>{_escaped(sentence)}</li>" for sentence in caveats(report))
    first = "".join(f"<p>{_escaped(sentence)}</p>" for sentence in (*report.alerts, what_was_tested(report)))
    return f"{first}{tables}<ul>{items}</ul>"


def _tables(report: "Report") -> list[Table]:
    """All metrics; then the operating points of two classes, or the recall of each of more classes."""
    value = f"value [{percent(report.settings['confidence'])} interval]"
    decided = "metric" if report.positive is None else "metric, at 0.5"
    tables = [_estimates([decided, value, "images", "patients"], report.metrics)]
    if report.positive is None:
        return [
            *tables,
            _estimates(["class", f"recall {value.removeprefix('value ')}", "images", "patients"], report.per_class),
        ]
    points = report.operating_points
    rows = [["operating point", *points]]
    for key in dict.fromkeys(key for point in points.values() for key in point):
        rows.append([key, *(_cell(point.get(key, "")) for point in points.values())])
    return [*tables, rows]


def _estimates(header: list[str], estimates: dict[str, Estimate]) -> Table:
    rows = [[printable(name), str(e), str(e.n_images), _patients(e)] for name, e in estimates.items()]
    return [header, *rows]


def _patients(estimate: Estimate) -> str:
    return "unknown" if estimate.n_groups is None else str(estimate.n_groups)


def _cell(value: Estimate | float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _parts(table: Table) -> list[Table]:
    """The table, or several with some of its columns each, so that none is wider than `WIDTH`."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    parts, room = [[]], 0
    for column in range(1, len(widths)):
        if room < widths[column] + 1:
            parts.append([])
            room = WIDTH - min(widths[0], NAME)
        parts[-1].append(column)
        room -= widths[column] + 1
    return [[[row[0], *(row[column] for column in part)] for row in table] for part in parts if part]


def _aligned(table: Table) -> str:
    """Left-aligned names, right-aligned cells."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *cells in table:
        *before, last = textwrap.wrap(name, NAME) or [""]
        lines += before
        lines.append(
            f"{last:{min(widths[0], NAME)}}" + "".join(f" {c:>{w}}" for c, w in zip(cells, widths[1:], strict=True))
        )
    return "\n".join(line.rstrip() for line in lines)


def _filled(sentence: str, **indents: str) -> str:
    return textwrap.fill(printable(sentence), WIDTH, **indents)


def _html_table(table: Table) -> str:
    head, *body = [[html.escape(cell) for cell in row] for row in table]
    rows = "".join(f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, *cells in body)
    return f"<table><thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead><tbody>{rows}</tbody></table>"


def _escaped(text: str) -> str:
    return html.escape(printable(text))
