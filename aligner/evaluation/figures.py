"""The figures of tables and reports: outcomes counted and rated, by upstream and category; and what was copied, without a judge.

Of the paper's inconsistent figures this is the reading here: the rate's denominator is what was judged and read (equation 5; its
tables drop the unparsed); an average over dimensions is not formed (its "harmlessness" mixes helpful columns in); Elo is the
consistent formula at every point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from aligner.evaluation.judges.human import HumanJudge
from aligner.evaluation.judging import Verdict
from aligner.evaluation.pairs import Pair
from aligner.evaluation.rates import agreement, elo, length_controlled, order_bias, rate
from aligner.quality.edits import edits, words

BINS = np.linspace(0, 1, 11)
COPIED, EDITED, END = "copied", "edited", "end"  # what a token of a correction is
KINDS = (COPIED, EDITED, END)


def verdict_figures(verdicts: Sequence[Verdict], people: HumanJudge | None = None) -> dict[str, Any]:
    """The figures of each dimension: all, only changed answers, by upstream, by category. Elo is of the corrected answers where
    the same upstream's own are 1500; of several systems against each other it is in systems.py."""
    figures = {}
    for name in dict.fromkeys(each.dimension for each in verdicts):
        rows = [each for each in verdicts if each.dimension == name]
        figures[name] = {
            **_counted(rows),
            "changed": _counted([each for each in rows if each.changed]),
            **_fairness(rows),
            "agreement": _agreement(rows, people),
            "by_upstream": _by(rows, lambda each: each.pair.upstream),
            "by_category": _by(rows, lambda each: each.pair.category),
            "first_error": next((each.error for each in rows if each.error), None),
        }
    return figures


def _counted(rows: Sequence[Verdict]) -> dict[str, Any]:
    read = [each for each in rows if each.outcome is not None]
    known = any(each.changed for each in read) or not any(each.changed for each in rows)
    # Where no verdict of a changed pair could be read, only the unchanged ones are known: no rate.
    outcomes = [each.outcome for each in read if each.outcome is not None]
    win_rate = rate(outcomes, [each.pair.question for each in read]) if known else None
    missing = sum(bool(each.error) for each in rows)
    counts = {"pairs": len(rows), "unreadable": len(rows) - len(read) - missing, "unanswered": missing}
    if win_rate is None:
        return {**counts, "wins": 0, "losses": 0, "ties": 0, "rate": None, "low": None, "high": None, "elo": None}
    ahead = win_rate.wins + win_rate.ties / 2
    rating = elo({("after", "before"): (ahead, win_rate.judged - ahead)}, "before")["after"]
    return {**counts, **asdict(win_rate), "elo": rating}


def _fairness(rows: Sequence[Verdict]) -> dict[str, Any]:
    comparable = [each for each in rows if each.changed and each.outcome is not None]
    preferences = [verdict for each in comparable for verdict in each.read]
    changed = [sum(verdict or 0 for verdict in each.read) != 0 for each in comparable]
    controlled = length_controlled(
        [each.outcome or 0 for each in comparable],
        [len(each.pair.before) for each in comparable],
        [len(each.pair.after) for each in comparable],
    )
    return {
        "order_bias": order_bias(preferences.count(1), preferences.count(-1)),
        "changed_minds": sum(changed) / len(comparable) if comparable else None,
        "length_controlled_of_changed": controlled,
    }


def _agreement(rows: Sequence[Verdict], people: HumanJudge | None) -> dict[str, Any] | None:
    if people is None:
        return None
    rows = [each for each in rows if each.changed]
    labels = [people.outcome(each.dimension, each.pair.question, each.pair.before, each.pair.after) for each in rows]
    both = [
        (each.outcome, label)
        for each, label in zip(rows, labels, strict=True)
        if label is not None and each.outcome is not None
    ]
    result = agreement([ours for ours, _ in both], [theirs for _, theirs in both])
    labelled = sum(label is not None for label in labels)
    return {"labelled": labelled, **(asdict(result) if result else {"rows": 0, "share": None, "kappa": None})}


def _by(rows: Sequence[Verdict], group: Callable[[Verdict], str]) -> dict[str, Any]:
    groups: dict[str, list[Verdict]] = {}
    for each in rows:
        groups.setdefault(group(each), []).append(each)
    return {name: _counted(some) for name, some in groups.items()} if len(groups) > 1 else {}


def copying(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What was copied and what changed, over all pairs and by upstream: shares and means."""
    names = list(dict.fromkeys(pair.upstream for pair in pairs))
    figures = {"all": _copied(pairs)}
    if len(names) > 1:
        figures |= {key_of(name): _copied([pair for pair in pairs if pair.upstream == name]) for name in names}
    return figures


def key_of(upstream: str) -> str:
    """The key of an upstream's figures, distinct from that of the figures of all."""
    return "'all'" if upstream == "all" else upstream


def _copied(pairs: Sequence[Pair]) -> dict[str, Any]:
    figures = [edits(pair.before, pair.after) for pair in pairs]
    settled = [pair.settled for pair in pairs if pair.settled is not None]
    copied, similarity = np.array([e.copied for e in figures]), np.array([e.similarity for e in figures])
    return {
        "pairs": len(pairs),
        "identical": sum(e.identical for e in figures),
        "copied": float(copied.mean()),
        "similarity": float(similarity.mean()),
        "settled": float(np.mean(settled)) if settled else None,
        "similarity_histogram": np.histogram(similarity, BINS)[0].tolist(),
        "characters_before": _mean(len(pair.before) for pair in pairs),
        "characters_after": _mean(len(pair.after) for pair in pairs),
        "words_before": _mean(len(words(pair.before)) for pair in pairs),
        "words_after": _mean(len(words(pair.after)) for pair in pairs),
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def figure_lines(dimensions: dict[str, Any], copied: dict[str, Any]) -> list[str]:
    """The tables for a terminal."""
    table = []
    if dimensions:
        names = (
            "wins",
            "ties",
            "losses",
            "unreadable",
            "unanswered",
            "rate",
            "95 % interval",
            "of changed",
            "length-controlled",
        )
        table.append(f"{'':<10}" + "  ".join(f"{name:>9}" for name in names))
    for name, figures in dimensions.items():
        counts = [f"{figures[key]:,}" for key in ("wins", "ties", "losses", "unreadable", "unanswered")]
        interval = "-" if figures["low"] is None else f"{_percent(figures['low'])} to {_percent(figures['high'])}"
        rates = [
            _percent(figures["rate"]),
            interval,
            _percent(figures["changed"]["rate"]),
            _percent(figures["length_controlled_of_changed"]),
        ]
        widths = (9, 9, 9, 10, 10, 9, 13, 10, 17)
        table.append(
            f"{name:<10}" + "  ".join(f"{cell:>{width}}" for cell, width in zip([*counts, *rates], widths, strict=True))
        )
        if figures["first_error"]:
            table.append(f"  {figures['unanswered']:,} unanswered, the first: {figures['first_error']}")
        if agreed := figures["agreement"]:
            table.append(f"  {agreed_line(agreed)}")
        if figures["order_bias"] is not None:
            minds = f"{figures['changed_minds']:.1%}"
            table.append(f"  order bias {_percent(figures['order_bias'])}; mind changed with the order in {minds}")
    for name, figures in copied.items():
        label = f"copied, {name or '(not said)'}:" if name != "all" else "copied:"
        settled = "" if figures["settled"] is None else f"; the last pass changed nothing in {figures['settled']:.1%}"
        lengths = f"{figures['characters_before']:,.0f} characters before, {figures['characters_after']:,.0f} after"
        table.append(
            f"{label} {figures['identical']:,} of {figures['pairs']:,} identical, {figures['copied']:.1%} of the text, "
            f"similarity {figures['similarity']:.2f}; {lengths}{settled}"
        )
    return table


def agreed_line(agreed: dict[str, Any]) -> str:
    """How far the judge agrees with people, and how many labelled pairs have no verdict."""
    if not agreed["rows"]:
        return f"agreement with people: of {agreed['labelled']:,} labelled pairs none was judged and read"
    unread = agreed["labelled"] - agreed["rows"]
    more = f" ({unread:,} more were labelled, and not read)" if unread else ""
    kappa = "none (all of one kind)" if agreed["kappa"] is None else f"{agreed['kappa']:.2f}"
    return f"agrees with people in {agreed['share']:.1%} of {agreed['rows']:,} pairs, kappa {kappa}{more}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f} %"
