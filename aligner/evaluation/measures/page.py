"""The page of a measure, out of its JSON: one HTML file without scripts, with a bar for every system's gain."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from aligner.evaluation.measures.matrix import matrix_html
from aligner.evaluation.measures.table import ALIGNER, HEADS

ABOUT = "of answers that needed help and of answers that did not; the gain is over leaving the answers alone, balanced over both"
STYLE = """
  :root { color-scheme: light dark; }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
  table { border-collapse: collapse; margin: 1rem 0; }
  th, td { padding: .25rem .75rem; border-bottom: 1px solid #8885; text-align: right; }
  th:first-child, td:first-child { text-align: left; } .own { font-weight: 600; }
  .bar { width: 16rem; position: relative; } .bar i { position: absolute; top: .45rem; height: .9rem; background: #4c72b0; }
  .bar i.minus { background: #dd8452; } .verdict { padding: .5rem .75rem; border-left: .35rem solid #888; }
  img { max-width: 100%; background: #fff; } .helps { border-color: #1e8449; } .fooled, .null { border-color: #c0392b; }
"""


def page(report: Mapping[str, Any], picture: bytes = b"") -> str:
    """The page: for each part the verdict first, then the table with the controls. picture: a PNG of the matrix, if any."""
    heads = report.get("heads", HEADS)
    parts = "".join(_part(name, part, heads) for name, part in report["parts"].items())
    if picture:
        drawn = f"<img alt='matrix' src='data:image/png;base64,{b64encode(picture).decode()}'>"
        parts = f"{drawn}{matrix_html(report)}{_units(report)}{parts}"
    notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
    title = f"Aligner: {escape(report['measure'])}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>'
        f"<p>{escape(report['unit'])}, {escape(report.get('about', ABOUT))}, with 95 % intervals (paired bootstrap over "
        f"questions).</p>{parts}"
        f"<ul>{notes}</ul></html>\n"
    )


def _units(report: Mapping[str, Any]) -> str:
    """What each column of the matrix is."""
    items = "".join(f"<li>{escape(each['name'])}: {escape(each['unit'])}</li>" for each in report["columns"])
    return f"<ul>{items}</ul>"


def _part(name: str, part: Mapping[str, Any], two_heads: Sequence[str]) -> str:
    most = max(1e-9, *(abs(row["gain"]["value"]) for row in part["systems"]))
    heads = ("system", "answers", *two_heads, "gain", "", "Aligner ahead by")
    rows = "".join(_row(row, most) for row in part["systems"])
    head = "".join(f"<th>{text}</th>" for text in heads)
    own, gone = part["systems"][0], ""
    if share := own.get("gone"):
        exact, touched = _percent(own["exact"]), _percent(own["touched"])
        interval = f"{_percent(share['low'])} to {_percent(share['high'])}"
        gone = (
            f"<p>{_percent(share['value'])} of the damage is gone ({interval}); {exact} restored exactly; "
            f"{touched} of undamaged answers touched.</p>"
        )
    return (
        f"<h2>{escape(name or 'all')}</h2>"
        f"<p class='verdict {part['verdict']}'><b>{part['verdict']}</b>: {escape(part['says'])}.</p>"
        f"{gone}<table><tr>{head}</tr>{rows}</table>"
    )


def _row(row: Mapping[str, Any], most: float) -> str:
    gain = row["gain"]["value"]
    left, width = (50, 50 * gain / most) if gain >= 0 else (50 + 50 * gain / most, -50 * gain / most)
    bar = f"<td class='bar'><i class='{'' if gain >= 0 else 'minus'}' style='left:{left:.1f}%;width:{width:.1f}%'></i></td>"
    cells = [f"{row['answers']:,}", *(_number(row[name]) for name in ("needed", "not_needed")), _interval(row["gain"])]
    plain = "".join(f"<td>{cell}</td>" for cell in cells)
    ahead = _interval(row["aligner_ahead"]) if row["aligner_ahead"] else ""
    kind = "own" if row["system"] == ALIGNER else ""
    return f"<tr class='{kind}'><td>{escape(row['system'])}</td>{plain}{bar}<td>{ahead}</td></tr>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:+.3f} ({estimate['low']:+.3f} to {estimate['high']:+.3f})"
