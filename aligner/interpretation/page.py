"""The page of `aligner interpret`, out of its figures: one HTML file without scripts or a network, its pictures inside."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from aligner.quality.edits import diff

STYLE = """
  :root { color-scheme: light dark; --out: light-dark(#c0392b, #ec7063); --in: light-dark(#1e8449, #58d68d); }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.5rem; } img { max-width: 100%; background: #fff; }
  table { border-collapse: collapse; margin: 1rem 0; } .scroll { overflow-x: auto; }
  th, td { padding: .25rem .75rem; border-bottom: 1px solid #8885; text-align: right; vertical-align: top; }
  th:first-child, td:first-child { text-align: left; } td.text { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; }
  del { color: var(--out); background: #c0392b22; } ins { color: var(--in); background: #1e844922; text-decoration: none; }
  .own { font-weight: 600; }
"""
MARKS = {"=": "{}", "-": "<del>{}</del>", "+": "<ins>{}</ins>"}
CAPTIONS = {
    "accuracy": "Told apart: held-out rows whose correction lies further along the direction than their answer, by depth",
    "effect": "Adding the direction: distance of corrections from their answers",
    "scan": "Where it is decided: each token of a correction along the direction, layer by layer",
}


def page(figures: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page: what was read in words, the pictures, the tables, and answers at several alphas as diffs."""
    title = f"Inside {escape(figures['name'])}"
    drawn = "".join(
        f"<h2>{escape(CAPTIONS[name])}</h2><img alt='{escape(CAPTIONS[name])}' "
        f"src='data:image/png;base64,{b64encode(picture).decode()}'>"
        for name, picture in pictures.items()
    )
    said = "".join(f"<p>{escape(line)}</p>" for line in figures["summary"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f"initial-scale=1\"><meta http-equiv='content-security-policy' content=\"default-src 'none'; style-src 'unsafe-inline'; "
        f'img-src data:"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>{said}{drawn}'
        f"<h2>Every sweep over alpha</h2><div class='scroll'>{_sweeps(figures)}</div>"
        f"{''.join(map(_example, figures['examples']))}</html>\n"
    )


def _sweeps(figures: Mapping[str, Any]) -> str:
    """A row for every direction that was added: its line, and the ratio at each alpha."""
    alphas = figures["settings"]["alphas"]
    head = "".join(
        f"<th>{name}</th>" for name in ("direction", "rows", "R²", "95 %", "slope", *(f"{a:+g}" for a in alphas))
    )
    body = "".join(_sweep(each) for each in figures["effects"])
    return f"<table><tr>{head}</tr>{body}</table>"


def _sweep(effect: Mapping[str, Any]) -> str:
    line = effect["line"]
    r2 = line["r2"]
    interval = f"{r2['low']:.2f} to {r2['high']:.2f}"
    ratios = [f"{point['ratio']['value']:.2f}" for point in effect["points"]]
    cells = [f"{effect['rows']:,}", f"{r2['value']:.2f}", interval, f"{line['slope']:+.2f}", *ratios]
    own = " class='own'" if effect["kind"] == "chosen" else ""
    return f"<tr{own}><td>{escape(effect['name'])}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _example(example: Mapping[str, Any]) -> str:
    """One answer, as it stands and as corrected at every alpha."""
    rows = "".join(
        f"<tr><td>{each['alpha']:+g}</td><td>{each['ratio']:.2f}</td>"
        f"<td class='text'>{_diff(example['answer'], each['text'])}</td></tr>"
        for each in example["corrections"]
    )
    return (
        f"<h2>One answer at {len(example['corrections'])} alphas</h2><p class='own'>{escape(example['question'])}</p>"
        f"<table><tr><th>alpha</th><th>ratio</th><th>the correction, as a diff from the answer</th></tr>{rows}</table>"
    )


def _diff(answer: str, corrected: str) -> str:
    return "".join(MARKS[kind].format(escape(text)) for kind, text in diff(answer, corrected))


def markdown_lines(figures: Mapping[str, Any]) -> Sequence[str]:
    """The sweeps as a README shows them."""
    alphas = figures["settings"]["alphas"]
    heads = ["direction added", "rows", "R2 (95 %)", "slope", *(f"{alpha:+g}" for alpha in alphas)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for effect in figures["effects"]:
        r2, slope = effect["line"]["r2"], effect["line"]["slope"]
        cells = [
            effect["name"],
            f"{effect['rows']}",
            f"{r2['value']:.2f} ({r2['low']:.2f} to {r2['high']:.2f})",
            f"{slope:+.2f}",
        ]
        cells += [f"{point['ratio']['value']:.2f}" for point in effect["points"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
