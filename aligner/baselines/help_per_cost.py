"""Help per cost: what each system gains over the upstream's own answers, what it costs, and the one over the other.

All systems answer the same questions. A gain is a mean over questions; where there are two kinds of them (prompts to decline and
prompts not to), of the means over each, so that always doing the one gains nothing. Intervals are a bootstrap over questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aligner.baselines.protocol import ALIGNER as CORRECTOR
from aligner.baselines.protocol import REWARD, UPSTREAM, Usage
from aligner.evaluation.measures.controls import IDENTITY, SHUFFLED_TEXTS, TEXT_CONTROLS, shuffled
from aligner.evaluation.measures.gain import balanced_mean
from aligner.evaluation.measures.items import MeasuredAnswer, TextMeasure
from aligner.evaluation.measures.table import ALIGNER, verdict
from aligner.evaluation.rates import Estimate, resampled

THOUSAND = 1000


@dataclass(frozen=True)
class SystemAnswers:
    """One system's answers to the questions of a measure, in order: texts, what each cost by who was paid, and how many failed
    in which way. A question without an answer has an empty one."""

    texts: Sequence[str]
    costs: Sequence[Mapping[str, Usage]]
    failures: Mapping[str, int]


def system_answers(rows: Sequence[Mapping[str, Any]], corrected: bool) -> SystemAnswers:
    """Those in an output of `aligner baseline`: its answers, or the Aligner's corrections of them."""
    costs = [
        {payee: Usage(**usage) for payee, usage in row["cost"].items() if corrected or payee != CORRECTOR}
        for row in rows
    ]
    failures: dict[str, int] = {}
    for row in rows:
        names = [row.get("failure") or ("refused" if row.get("error") else "")]
        names += ["uncorrected"] * (corrected and row.get("correction_finished") is False)
        for name in filter(None, names):
            failures[name] = failures.get(name, 0) + 1
    texts = [(row.get("corrected") if corrected else None) or row.get("answer") or "" for row in rows]
    return SystemAnswers(texts, costs, failures)


def help_per_cost(
    measure: TextMeasure, systems: Mapping[str, SystemAnswers], upstream: str, aligner: str
) -> dict[str, Any]:
    """The figures of a measure: a row for each system, and for each control. upstream, aligner: two of the systems."""
    items = measure.items
    scores = {name: _scores(measure, each.texts) for name, each in systems.items()}
    rewrites = {**TEXT_CONTROLS, **measure.more}
    del rewrites[IDENTITY]
    controls = {
        name: _scores(measure, [rewrite(item.question, item.answer) for item in items])
        for name, rewrite in rewrites.items()
    }
    rows = [_row(name, measure, systems, scores, controls, upstream, aligner) for name in systems]
    return {
        "measure": measure.name,
        "unit": measure.unit,
        "questions": len(items),
        "upstream": upstream,
        "aligner": aligner,
        "systems": rows,
        "controls": {name: asdict(_mean(items, np.subtract(own, scores[upstream]))) for name, own in controls.items()},
    }


def _scores(measure: TextMeasure, texts: Sequence[str]) -> list[float]:
    return [measure.score(item, text) for item, text in zip(measure.items, texts, strict=True)]


def _mean(items: Sequence[MeasuredAnswer], values: Any) -> Estimate:
    return balanced_mean(list(values), [item.needs_help for item in items], [item.question for item in items])


def _row(
    name: str,
    measure: TextMeasure,
    systems: Mapping[str, SystemAnswers],
    scores: Mapping[str, list[float]],
    controls: Mapping[str, list[float]],
    upstream: str,
    aligner: str,
) -> dict[str, Any]:
    """A system's score and gain, whether a control does as well, its cost, and its gain for a thousand tokens more."""
    items, own, system = measure.items, scores[name], systems[name]
    gains = np.subtract(own, scores[upstream])
    dealt = _scores(measure, shuffled(system.texts, [item.question for item in items]))
    beside = {**controls, SHUFFLED_TEXTS: dealt}
    tried = [{"system": ALIGNER, "gain": asdict(_mean(items, gains))}]
    for control, theirs in beside.items():
        ahead = asdict(_mean(items, np.subtract(own, theirs)))
        gain = asdict(_mean(items, np.subtract(theirs, scores[upstream])))
        tried.append({"system": control, "gain": gain, "aligner_ahead": ahead})
    decided = verdict(tried, len(items))
    further = [
        _tokens(cost) - _tokens(first) for cost, first in zip(system.costs, systems[upstream].costs, strict=True)
    ]
    return {
        "system": name,
        "score": _mean(items, own).value,
        "gain": tried[0]["gain"],
        "aligner_ahead": asdict(_mean(items, np.subtract(scores[aligner], own))) if name != aligner else None,
        "verdict": decided["verdict"] if name != upstream else "",
        "strongest_control": decided["strongest_control"],
        "tokens": asdict(_plain_mean(items, [_tokens(cost) for cost in system.costs])),
        "per_thousand_tokens": _per_thousand(items, gains, further),
        "paid": {payee: _paid(system.costs, payee) for payee in (UPSTREAM, REWARD, CORRECTOR)},
        "failures": dict(system.failures),
    }


def _tokens(cost: Mapping[str, Usage]) -> int:
    return sum(usage.tokens for usage in cost.values())


def _plain_mean(items: Sequence[MeasuredAnswer], values: Sequence[float]) -> Estimate:
    return balanced_mean(values, [False] * len(items), [item.question for item in items])


def _paid(costs: Sequence[Mapping[str, Usage]], payee: str) -> dict[str, float]:
    """Means over questions of what one is paid for an answer."""
    usages = [cost.get(payee, Usage()) for cost in costs]
    names = ("calls", "prompt_tokens", "completion_tokens", "passes", "seconds", "unknown")
    return {name: sum(getattr(usage, name) for usage in usages) / len(usages) for name in names}


def _per_thousand(items: Sequence[MeasuredAnswer], gains: Any, further: Sequence[int]) -> dict[str, float] | None:
    """The gain over the tokens that it takes beyond the upstream's, in thousands; None where it cannot be said to take more: over a
    few tokens that may as well be none, the ratio is any number.

    Each kind of question weighs a half, as in the gain.
    """
    needed = np.asarray([item.needs_help for item in items])
    share = np.where(needed, max(needed.sum(), 1), max((~needed).sum(), 1)) * (
        2 if 0 < needed.sum() < len(items) else 1
    )
    each = np.column_stack([np.asarray(gains) * len(items) / share, np.asarray(further, float) / THOUSAND])
    drawn = resampled(each)
    if np.percentile(drawn[:, 1], 2.5) <= 0:
        return None
    more = drawn[:, 1] > 0
    low, high = np.percentile(drawn[more, 0] / drawn[more, 1], [2.5, 97.5])
    return {"value": float(each[:, 0].sum() / each[:, 1].sum()), "low": float(low), "high": float(high)}


def cost_lines(report: Mapping[str, Any]) -> list[str]:
    """The table as a README shows it, and in words what does better than the Aligner, and what worse."""
    heads = (
        "system",
        "score",
        "gain (95 %)",
        "Aligner ahead by (95 %)",
        "beside controls",
        "tokens an answer: upstream, reward, Aligner",
        "passes: upstream, reward, Aligner",
        "seconds: upstream, reward, Aligner",
        "gain for 1,000 more tokens (95 %)",
        "failures",
    )
    lines = [
        f"**{report['measure']}** ({report['unit']}; {report['questions']:,} questions)",
        "",
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
    ]
    for row in report["systems"]:
        figures = [lambda paid: paid["prompt_tokens"] + paid["completion_tokens"], lambda paid: paid["passes"]]
        cells = [row["system"], f"{row['score']:.3f}", _interval(row["gain"]), _interval(row["aligner_ahead"])]
        cells += [row["verdict"] or "-", *(_payees(row["paid"], figure, ",.0f") for figure in figures)]
        cells += [_payees(row["paid"], lambda paid: paid["seconds"], ",.1f"), _interval(row["per_thousand_tokens"])]
        cells.append(", ".join(f"{count:,} {name}" for name, count in row["failures"].items()) or "none")
        lines.append(f"| {' | '.join(cells)} |")
    controls = ", ".join(f"{name} {_interval(gain)}" for name, gain in report["controls"].items())
    return [*lines, "", f"Controls: {controls}.", *beside_aligner(report), ""]


def _payees(paid: Mapping[str, Any], figure: Callable[[Any], float], form: str) -> str:
    return ", ".join(format(figure(paid[payee]), form) for payee in (UPSTREAM, REWARD, CORRECTOR))


def _interval(estimate: Mapping[str, float] | None) -> str:
    return f"{estimate['value']:+.3f} ({estimate['low']:+.3f} to {estimate['high']:+.3f})" if estimate else "-"


def beside_aligner(report: Mapping[str, Any]) -> list[str]:
    """Which systems gain more than the Aligner and which less, and which of them by their interval."""
    others = [row for row in report["systems"] if row["system"] not in (report["aligner"], report["upstream"])]
    better = [row for row in others if row["aligner_ahead"]["value"] < 0]
    worse = [row for row in others if row["aligner_ahead"]["value"] > 0]
    return [
        f"Better than the Aligner: {_named(better, lambda ahead: ahead['high'] < 0)}.",
        f"Worse than the Aligner: {_named(worse, lambda ahead: ahead['low'] > 0)}.",
    ]


def _named(rows: Sequence[Mapping[str, Any]], sure: Callable[[Any], bool]) -> str:
    names = [f"{row['system']}{'' if sure(row['aligner_ahead']) else ' (perhaps)'}" for row in rows]
    return ", ".join(names) or "none"
