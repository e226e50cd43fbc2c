"""What a build kept, as a Sankey picture: the rows of every stage, and those that it dropped by reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligner.files import whole_file
from aligner.plots import canvas

Stage = tuple[str, int, int, Mapping[str, int]]  # a name, rows in, rows kept, those dropped by reason


def draw_flow(panels: Mapping[str, Sequence[Stage]], path: str | Path) -> None:
    """Sankey pictures below each other, as a PNG: what the rows of each panel are, and its stages.

    Widths are shares of a panel's first stage. The smallest reasons of a stage go together, so that their names can be read.
    """
    figure, places = canvas((2.1 * max(map(len, panels.values())) + 1, 3.4 * len(panels)), len(panels))
    for axes, (unit, stages) in zip(places, panels.items(), strict=True):
        _draw_panel(axes, unit, stages)
    with whole_file(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=110)


def _draw_panel(axes: Any, unit: str, stages: Sequence[Stage]) -> None:
    """The flow of rows through the stages of one panel."""
    from matplotlib.sankey import Sankey

    axes.axis("off")
    axes.set_title(f"{stages[0][1]:,} {unit}, of which {stages[-1][2]:,} stay", fontsize=9, loc="left")
    sankey = Sankey(ax=axes, scale=1 / max(stages[0][1], 1), unit=None, gap=0.3, shoulder=0, head_angle=130)
    for number, (name, into, kept, dropped) in enumerate(stages):
        parts = _largest(dropped)
        sides = [-1 if place % 2 == 0 else 1 for place in range(len(parts))]
        sankey.add(
            flows=[into, *(-count for count in parts.values()), -kept],
            labels=["", *(f"{count:,} {why}" for why, count in parts.items()), ""],
            orientations=[0, *sides, 0],
            pathlengths=[0.4, *(0.3 + 0.25 * (place // 2) for place in range(len(parts))), 0.4],
            trunklength=1.9,
            prior=number - 1 if number else None,
            connect=(len(_largest(stages[number - 1][3])) + 1, 0) if number else (0, 0),
            facecolor=f"C{number % 10}",
            alpha=0.75,
            linewidth=0.4,
            patchlabel=f"{name}\n{kept:,} of {into:,}",
        )
    diagrams = sankey.finish()
    axes.set_adjustable("box")  # the limits hold, and the aspect too
    for diagram in diagrams:
        for text in (*diagram.texts, diagram.text):
            text.set_fontsize(7)


MOST_REASONS = 4  # of a stage, that a picture names


def _largest(dropped: Mapping[str, int]) -> dict[str, int]:
    """The largest reasons, and the others as one."""
    ranked = sorted(dropped.items(), key=lambda pair: -pair[1])
    parts = dict(ranked[:MOST_REASONS])
    rest = sum(count for _, count in ranked[MOST_REASONS:])
    return {**parts, "for other reasons": rest} if rest else parts
