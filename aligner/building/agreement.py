"""How far readers agree beyond chance: Cohen's kappa."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from aligner.evaluation import rates


def cohens_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa of two readers' labels of the same rows, -1 to 1. None without rows, or where all labels are the same."""
    numbers = {label: number for number, label in enumerate(sorted({label for pair in pairs for label in pair}))}
    figures = rates.agreement([numbers[one] for one, _ in pairs], [numbers[other] for _, other in pairs])
    return figures.kappa if figures else None


def agreement(labels: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Rows -> readers -> labels: how often two readers of a row say the same, and their kappa by pair of readers.

    `kappa` is the mean over pairs of readers, weighed by their rows.
    """
    by_pair: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for readers in labels.values():
        for one, other in combinations(sorted(readers), 2):
            by_pair.setdefault((one, other), []).append((readers[one], readers[other]))
    pairs: list[dict[str, Any]] = []
    for (one, other), rows in sorted(by_pair.items()):
        same = sum(first == second for first, second in rows)
        pairs.append({"readers": [one, other], "rows": len(rows), "same": same, "kappa": cohens_kappa(rows)})
    known = [pair for pair in pairs if pair["kappa"] is not None]
    weight = sum(pair["rows"] for pair in known)
    kappa = sum(pair["rows"] * pair["kappa"] for pair in known) / weight if weight else None
    whole = {name: sum(pair[name] for pair in pairs) for name in ("rows", "same")}
    return {**whole, "kappa": kappa, "pairs": pairs}
