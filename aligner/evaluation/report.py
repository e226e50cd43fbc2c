"""The report: an HTML file that opens from the disk and needs no network. The models' texts are in it as data, shown as text.

Of many pairs the file holds the figures of all and the texts of the first; the other texts lie in files beside it, which the
page reads when it shows them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from aligner.evaluation.figures import KINDS
from aligner.evaluation.judging import Verdict
from aligner.evaluation.pairs import Pair
from aligner.files import remove_folder, whole_folder, write_text
from aligner.parsing import json_value
from aligner.plots import draw_histogram, draw_loss, draw_plane, draw_shift, draw_sweep
from aligner.quality.edits import diff, edits
from aligner.readers.rows import read_rows
from aligner.records import DataError, UserError

PAGE = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
IN_THE_PAGE = 2_000  # pairs whose texts are in the page itself: it opens and is searched at once
IN_A_FILE = 500  # pairs of each file beside it


def write_report(
    path: Path,
    report: dict[str, Any],
    pairs: Sequence[Pair],
    verdicts: Sequence[Verdict],
    curves: list[dict[str, Any]] | None = None,
) -> None:
    """Write the page: the tables, the pictures, and every pair as a diff with its verdicts."""
    judged: dict[int, list[Verdict]] = {id(pair): [] for pair in pairs}
    for each in verdicts:
        judged[id(each.pair)].append(each)
    rows = sorted(((_row(pair, judged[id(pair)]), pair) for pair in pairs), key=lambda row: _worst_first(row[0]))
    texts = [_texts(pair, judged[id(pair)]) for _, pair in rows]
    beside = texts[IN_THE_PAGE:]
    folder = f"{path.stem}-{hashlib.sha256(json.dumps(beside).encode()).hexdigest()[:8]}" if beside else ""
    if beside:
        _write_beside(path.with_name(folder), beside)
    shown = {"rows": [row for row, _ in rows], "texts": texts[:IN_THE_PAGE], "in_a_file": IN_A_FILE, "folder": folder}
    data = {**report, **shown, "pictures": _pictures(report, verdicts, curves)}
    write_text(path, PAGE.replace("DATA", _as_script(data)))
    for earlier in path.parent.glob(f"{path.stem}-{'?' * 8}"):
        if earlier.name != folder:
            remove_folder(earlier)


def _row(pair: Pair, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What the page filters and sorts by."""
    figures = edits(pair.before, pair.after)
    return {
        "row": pair.origin.row,
        "upstream": pair.upstream,
        "category": pair.category,
        "same": figures.identical,
        "similarity": round(figures.similarity, 3),
        "before": len(pair.before),
        "after": len(pair.after),
        "verdicts": [[each.dimension, each.outcome] for each in verdicts],
    }


def _worst_first(row: dict[str, Any]) -> tuple[int, float]:
    """The order in which the page shows the rows at first: the texts of the first are in it."""
    return sum(outcome or 0 for _, outcome in row["verdicts"]), row["similarity"]


def _texts(pair: Pair, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What the page shows of a pair."""
    return {
        "question": pair.question,
        "diff": [[kind, text] for kind, text in diff(pair.before, pair.after)],
        "replies": [{"error": each.error, "replies": each.replies} for each in verdicts],
    }


def _write_beside(folder: Path, texts: Sequence[dict[str, Any]]) -> None:
    """Texts in files that a page from the disk may read: scripts, for it may read nothing else."""
    with whole_folder(folder) as partial:
        for number, start in enumerate(range(0, len(texts), IN_A_FILE)):
            part = _as_script(texts[start : start + IN_A_FILE])
            write_text(partial / f"{number}.js", f"texts_of({number}, {part});\n")


def _as_script(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _pictures(
    report: dict[str, Any], verdicts: Sequence[Verdict], curves: list[dict[str, Any]] | None
) -> dict[str, str]:
    pictures, scores = {}, scores_of(verdicts) if report.get("scores") else {}
    histogram = BytesIO()
    draw_histogram(report["copying"]["all"]["similarity_histogram"], histogram)
    pictures["How much was changed"] = histogram
    for dimension, (before, after) in scores.items():
        pictures[f"Scores, {dimension}"] = shift = BytesIO()
        draw_shift(before, after, dimension, shift)
    if scores and all(points := _points(verdicts)):
        pictures["Helpfulness and harmlessness"] = plane = BytesIO()
        draw_plane(*points, plane)
    if len(sweep := report.get("course", [])) > 1:
        pictures["Along the Aligners"] = along = BytesIO()
        draw_sweep([each["model"] for each in sweep], _lines_of(sweep), along)
    if curves:
        pictures["Training"] = loss = BytesIO()
        draw_loss(curves, "Training", loss)
    return {name: base64.b64encode(picture.getvalue()).decode() for name, picture in pictures.items()}


def _lines_of(sweep: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
    copying = [each["copying"]["all"] for each in sweep]
    losses = {f"loss on {kind}": [each["loss"]["all"][kind]["loss"] for each in sweep] for kind in KINDS}
    return {**losses, "share left as it was": [each["identical"] / each["pairs"] for each in copying]}


def scores_of(verdicts: Sequence[Verdict]) -> dict[str, tuple[list[float], list[float]]]:
    """By dimension the scores of answers and of corrections, of those that changed, where the judge gave scores."""
    scores: dict[str, tuple[list[float], list[float]]] = {}
    for each in verdicts:
        if score := _score(each):
            before, after = scores.setdefault(each.dimension, ([], []))
            before.append(score[0])
            after.append(score[1])
    return scores


def _score(verdict: Verdict) -> tuple[float, float] | None:
    try:
        first, second = map(float, json_value(verdict.replies[0]))
        return (first, second) if math.isfinite(first) and math.isfinite(second) else None
    except (ValueError, TypeError, OverflowError, LookupError):
        return None


def _points(verdicts: Sequence[Verdict]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(helpful, harmless) of each answer and of each correction."""
    scores = {(id(each.pair), each.dimension): score for each in verdicts if (score := _score(each))}
    both = [
        (scores[pair, "helpful"], scores[pair, "harmless"])
        for pair, dimension in scores
        if dimension == "helpful" and (pair, "harmless") in scores
    ]
    return [(helpful[0], harmless[0]) for helpful, harmless in both], [(x[1], y[1]) for x, y in both]


def curves_of(folder: str) -> list[dict[str, Any]]:
    """The lines of a run's train_log.jsonl. UserError where there is none."""
    file = Path(folder) / "train_log.jsonl"
    if not file.is_file():
        raise UserError(f"{folder}: has no train_log.jsonl; it is no training run's folder.")
    return [row.value for row in read_rows(file) if not isinstance(row, DataError)]
