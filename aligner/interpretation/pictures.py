"""The pictures of `aligner interpret`, out of its figures; how they are drawn stands in `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligner.plots import Interval, draw_depth, draw_lines, draw_scan


def draw_pictures(folder: Path, figures: Mapping[str, Any], scans: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy by depth, the ratio against alpha, and the heat map, as PNGs."""
    series = {
        f"{reading['name']}, {way}": [_interval(each) for each in values]
        for reading in figures["readings"]
        for way, values in reading["accuracy"].items()
        if way == reading["way"] or reading is figures["readings"][0]
    }
    draw_depth(series, folder / "accuracy.png")
    lines, models = {}, iter(("#4c72b0", "#55a868", "#8172b3", "#937860"))
    for effect in figures["effects"]:
        colour = (
            "#c0392b"
            if effect["kind"] == "chosen"
            else next(models, "#999999")
            if effect["kind"] == "model"
            else "#bbbbbb"
        )
        if effect["kind"] in ("chosen", "model") or effect["name"].endswith("random 1"):
            line, values = effect["line"], [_interval(point["ratio"]) for point in effect["points"]]
            name = f"{effect['name']}: R² {line['r2']['value']:.2f}"
            lines[name] = values, line["slope"], line["intercept"], colour
    draw_lines(figures["settings"]["alphas"], lines, folder / "effect.png")
    draw_scan([(each["question"][:110], each["tokens"], each["scores"]) for each in scans], folder / "scan.png")


def _interval(estimate: Mapping[str, float]) -> Interval:
    return estimate["value"], estimate["low"], estimate["high"]
