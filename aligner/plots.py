"""Plots as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from aligner.files import whole_file

Interval = tuple[float, float, float]  # value, low, high
SIDES = {"answers": "#dd8452", "corrections": "#4c72b0"}


def draw_loss(lines: Sequence[dict[str, Any]], title: str, path: str | Path | BinaryIO) -> None:
    """The training and held-out loss over updates, from the lines of train_log.jsonl, as a PNG."""
    train = [(line["update"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["update"], line["eval_loss"]) for line in lines if line.get("eval_loss") is not None]
    figure, axes = canvas()
    if train:
        axes.plot(*zip(*train, strict=True), label="training", color="#4c72b0", linewidth=1.2)
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", label="held out", color="#dd8452", linewidth=1.6)
    axes.set(title=title, xlabel="update", ylabel="loss (nats per target token)")
    save(figure, axes, path)


def draw_gate(points: Sequence[Any], chosen: Any, path: str | Path) -> None:
    """What each threshold of the gate would do (`serving.gate.Point`), and the chosen one, as a PNG."""
    figure, axes = canvas()
    thresholds = [point.threshold for point in points]
    axes.plot(thresholds, [point.left_alone for point in points], label="answers left alone", color="#4c72b0")
    axes.plot(thresholds, [point.missed for point in points], label="changes missed", color="#dd8452")
    if chosen:
        axes.axvline(
            chosen.threshold, color="#555555", linestyle="--", linewidth=1, label=f"chosen: {chosen.threshold:.3f}"
        )
    axes.set(title="What the gate leaves alone", xlabel="threshold (nats a token)", ylabel="share", ylim=(-0.02, 1.02))
    save(figure, axes, path)


def draw_sweep(names: Sequence[str], series: Mapping[str, Sequence[float | None]], path: str | Path | BinaryIO) -> None:
    """Figures of several Aligners, one after another, such as the checkpoints of a run, as a PNG."""
    figure, axes = canvas()
    for name, values in series.items():
        axes.plot(range(len(names)), [float("nan") if value is None else value for value in values], "o-", label=name)
    axes.set(title="Along the Aligners", ylabel="nats per token, or share")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    save(figure, axes, path)


def draw_costs(points: Mapping[str, tuple[Interval, Interval]], gain: str, path: str | Path | BinaryIO) -> None:
    """Systems by what an answer costs in tokens and what is gained by it, with the intervals of both, as a PNG.

    points: of a system its cost and its gain, each as value, low, high.
    """
    figure, axes = canvas()
    for number, (name, (cost, gained)) in enumerate(points.items()):
        errors = [[[value - low], [high - value]] for value, low, high in (cost, gained)]
        marks = {"fmt": "os^Dv"[number // 10 % 5], "color": f"C{number % 10}", "capsize": 2, "markersize": 6}
        axes.errorbar(cost[0], gained[0], xerr=errors[0], yerr=errors[1], label=name, **marks)
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set(title="Help against cost", xlabel="tokens an answer, read and written", ylabel=gain, xscale="log")
    axes.legend(frameon=False, fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    save(figure, axes, path, legend=False)


def draw_rounds(rounds: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """The held-out measure round by round beside its control, and help against harm where it was measured, from each upstream to
    the same with the Aligner behind it (the paper's figure 6), as a PNG."""
    figure, axes = canvas((7, 4))
    numbers = [each["round"] for each in rounds]
    for key, label, mark in (
        ("lead", "the Aligner's corrections", "o-"),
        ("shuffled_lead", "those of other questions", "s--"),
    ):
        values = [each[key] for each in rounds]
        errors = [[v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]]
        axes.errorbar(numbers, [v["value"] for v in values], yerr=errors, fmt=mark, capsize=3, label=label)
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set(title="Held-out questions", xlabel="round", ylabel="log p(correction) - log p(answer), nats")
    axes.set_xticks(numbers)
    if all({"help", "harmless"} <= each.get("upstream", {}).keys() for each in rounds):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        figure.set_size_inches(12, 4)
        axes.set_subplotspec(figure.add_gridspec(1, 2)[0])
        axes = figure.add_subplot(figure.add_gridspec(1, 2)[1])
        _draw_help_and_harm(axes, rounds)
    save(figure, axes, path)


def _draw_help_and_harm(axes: Any, rounds: Sequence[Mapping[str, Any]]) -> None:
    """A point for each upstream, and an arrow from it to the same with the Aligner."""
    points = {
        key: [(each[key]["help"]["value"], each[key]["harmless"]["value"]) for each in rounds]
        for key in ("upstream", "with_aligner")
    }
    axes.plot(*zip(*points["upstream"], strict=True), "o-", color=SIDES["answers"], label="upstream")
    axes.plot(*zip(*points["with_aligner"], strict=True), "^", color=SIDES["corrections"], label="upstream + Aligner")
    for each, start, end in zip(rounds, points["upstream"], points["with_aligner"], strict=True):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#888888"})
        axes.annotate(f" {each['round']}", start)
    axes.set(
        title="Help against harm", xlabel="help: safe prompts answered", ylabel="harmless: unsafe prompts declined"
    )


def draw_histogram(counts: Sequence[int], path: str | Path | BinaryIO) -> None:
    """How many corrections are how similar to their answers, from equal bins of 0 to 1, as a PNG."""
    figure, axes = canvas()
    width = 1 / len(counts)
    axes.bar([width * (place + 0.5) for place in range(len(counts))], counts, width=0.9 * width, color="#4c72b0")
    axes.set(title="How much was changed", xlabel="similarity of answer and correction", ylabel="pairs", xlim=(0, 1))
    save(figure, axes, path)


def draw_shift(before: Sequence[float], after: Sequence[float], name: str, path: str | Path | BinaryIO) -> None:
    """The distribution of a judge's scores of changed answers and of their corrections, with their means, as a PNG."""
    figure, axes = canvas()
    low, high = min(*before, *after), max(*before, *after)
    for label, scores in (("answers", before), ("corrections", after)):
        mean, colour = sum(scores) / len(scores), SIDES[label]
        bins = {"bins": 40, "range": (low, high if high > low else low + 1)}
        axes.hist(scores, alpha=0.55, color=colour, label=f"{label}, mean {mean:.2f}", **bins)
        axes.axvline(mean, color=colour, linestyle="--", linewidth=1.2)
    axes.set(title="Scores before and after", xlabel=f"score, {name}", ylabel="changed answers")
    save(figure, axes, path)


def draw_plane(
    before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]], path: str | Path | BinaryIO
) -> None:
    """Changed answers and their corrections by helpfulness and harmlessness, and how their mean moved (the paper's figure 2), as a
    PNG."""
    figure, axes = canvas()
    means = []
    for label, points in (("answers", before), ("corrections", after)):
        across, up = zip(*points, strict=True)
        means.append((sum(across) / len(across), sum(up) / len(up)))
        axes.scatter(across, up, s=9, alpha=0.35, linewidths=0, color=SIDES[label])
        mean = f"{label}, mean ({means[-1][0]:.2f}, {means[-1][1]:.2f})"
        axes.scatter(*means[-1], s=90, edgecolors="white", color=SIDES[label], zorder=3, label=mean)
    axes.annotate("", means[1], means[0], arrowprops={"arrowstyle": "->", "linewidth": 1.5}, zorder=4)
    axes.set(title="Scores before and after", xlabel="helpfulness (reward)", ylabel="harmlessness (minus cost)")
    save(figure, axes, path)


def draw_matrix(
    columns: Sequence[str],
    panels: Sequence[tuple[str, Sequence[str], Sequence[Sequence[tuple[float, str, bool]]]]],
    path: str | Path,
) -> None:
    """Matrices below each other, as a PNG. A panel has its title, its rows' names, and of each cell a colour (-1 to 1), its text
    and whether it is framed."""
    count = sum(len(rows) for _, rows, _ in panels)
    figure, axes = canvas((1.25 * len(columns) + 1.6, 0.55 * count + 0.9 * len(panels)), len(panels))
    for place, (title, rows, cells) in zip(axes, panels, strict=True):
        place.imshow(
            [[colour for colour, _, _ in row] for row in cells], cmap="RdBu_r", vmin=-1.7, vmax=1.7, aspect="auto"
        )
        for down, row in enumerate(cells):
            for across, (_, text, framed) in enumerate(row):
                place.text(across, down, text, ha="center", va="center", fontsize=7)
                if framed:
                    corner = (across - 0.5, down - 0.5)
                    place.add_patch(_rectangle(corner))
        place.set_title(title, fontsize=9, loc="left")
        place.set_xticks(range(len(columns)), columns, fontsize=8)
        place.set_yticks(range(len(rows)), rows, fontsize=8)
        place.tick_params(length=0)
    figure.supxlabel(
        "coloured: apart from asking for nothing, by its interval; framed: the objective's own measure", fontsize=8
    )
    with whole_file(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=130)


def draw_depth(series: Mapping[str, Sequence[Interval]], path: str | Path) -> None:
    """Shares layer by layer (from 1), each with its interval as a band, and chance as a line, as a PNG."""
    figure, axes = canvas((8, 4.2))
    for number, (name, values) in enumerate(series.items()):
        share, low, high = zip(*values, strict=True)
        places = range(1, len(values) + 1)
        axes.plot(places, share, ".-", label=name, color=f"C{number}", linewidth=1.4)
        axes.fill_between(places, low, high, color=f"C{number}", alpha=0.12, linewidth=0)
    axes.axhline(0.5, color="#555555", linestyle="--", linewidth=1)
    axes.set(title="Told apart, by depth", xlabel="layer", ylabel="share of held-out rows", ylim=(0, 1.02))
    save(figure, axes, path)


def draw_lines(
    alphas: Sequence[float], series: Mapping[str, tuple[Sequence[Interval], float, float, str]], path: str | Path
) -> None:
    """Means with intervals against alpha, each with its line, as a PNG. series: the means, the line's slope and intercept, and a
    colour."""
    figure, axes = canvas((8, 4.8))
    for name, (values, slope, intercept, colour) in series.items():
        mean, low, high = zip(*values, strict=True)
        errors = [[m - x for m, x in zip(mean, low, strict=True)], [x - m for m, x in zip(mean, high, strict=True)]]
        axes.errorbar(alphas, mean, yerr=errors, fmt="o", color=colour, capsize=2, markersize=4, label=name)
        axes.plot(alphas, [intercept + slope * alpha for alpha in alphas], color=colour, linewidth=1.2)
    axes.set(
        title="How far corrections are from their answers",
        xlabel="alpha (units of the residual's norm)",
        ylabel="Levenshtein ratio, tokens",
    )
    axes.legend(frameon=False, fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    save(figure, axes, path, legend=False)


def draw_scan(panels: Sequence[tuple[str, Sequence[str], Sequence[Sequence[float]]]], path: str | Path) -> None:
    """Heat maps of layers (upwards) by tokens, below each other, as a PNG. A panel has its title, its tokens, and a row of scores
    for each layer, from the first."""
    figure, axes = canvas((9, 3.4 * len(panels)), len(panels))
    for place, (title, tokens, scores) in zip(axes, panels, strict=True):
        image = place.imshow(
            scores, cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto", origin="lower", extent=_cells(scores)
        )
        place.set_title(title, fontsize=9, loc="left", parse_math=False)  # a text may hold dollars
        place.set_xticks(range(len(tokens)), tokens, fontsize=7, rotation=45, ha="right", parse_math=False)
        place.set_ylabel("layer")
        place.yaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=place, label="copying - 0 - correcting")
    with whole_file(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=130)


def _cells(scores: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Where an image of layers from 1 and tokens from 0 lies."""
    return -0.5, len(scores[0]) - 0.5, 0.5, len(scores) + 0.5


def _rectangle(corner: tuple[float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.8)


def canvas(size: tuple[float, float] = (7, 4), rows: int = 0) -> tuple[Any, Any]:
    """A figure with one plot, or with `rows` of them below each other in a list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, squeeze=False)[:, 0] if rows else figure.add_subplot()


def save(figure: Any, axes: Any, path: str | Path | BinaryIO, legend: bool = True) -> None:
    """Write a figure as a PNG, whole or not at all."""
    axes.grid(alpha=0.25)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    with whole_file(path, "wb") if isinstance(path, str | Path) else nullcontext(path) as stream:
        figure.savefig(stream, format="png", dpi=130)
