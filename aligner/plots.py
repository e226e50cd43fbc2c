"""The pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligner.files import whole_file


def draw_loss(lines: Sequence[dict[str, Any]], title: str, path: str | Path) -> None:
    """The training and held-out loss over updates, from the lines of train_log.jsonl, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [(line["update"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["update"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        axes.plot(*zip(*train, strict=True), label="training", color="#4c72b0", linewidth=1.2)
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", label="held out", color="#dd8452", linewidth=1.6)
    axes.set(title=title, xlabel="update", ylabel="loss (nats per target token)")
    axes.grid(alpha=0.25)
    if train or held_out:
        axes.legend(frameon=False)
    with whole_file(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=130)
