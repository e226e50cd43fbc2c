"""The losses of several Aligners, and of a route between some, on several sets: what was learned, and what forgotten.

Nothing is corrected: a loss is the mean negative log-likelihood, in nats a token, of a set's corrections given question and answer.
The first Aligner is the one before: of every other the change is taken on the same rows, by a paired bootstrap over questions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from aligner.card import prompt_of
from aligner.console import progress, setup_logging
from aligner.demo import locate
from aligner.evaluation.checkpoint_sweep import in_order
from aligner.evaluation.config import SetsConfig
from aligner.evaluation.losses import losses
from aligner.evaluation.pairs import Pair, named_fields, read_pairs
from aligner.evaluation.rates import Estimate, resampled
from aligner.files import json_line, read_json, write_json, write_text
from aligner.inference.corrector import Corrector, Settings, best_dtype
from aligner.models import check_place, fingerprint, quiet_libraries
from aligner.routing.config import NONE, Routes, read_routes
from aligner.routing.router import Choice, open_router
from aligner.terminal import print_lines
from aligner.training.datasets.options import QAC, parse_columns

ROUTED = "routed"


class Opened(NamedTuple):
    """What decides an Aligner's losses: its folder, and a prompt in place of its own."""

    folder: str
    prompt: str | None


class RowLoss(NamedTuple):
    """Of a row's correction: its negative log-likelihood in nats, and its tokens."""

    nll: float
    tokens: int


Losses = Mapping[int, RowLoss]  # by the row's place in its set


def run_sets(config: SetsConfig) -> int:
    """Measure, write sets.json and sets.md, and print the table. Returns the exit status: 1 where rows could not be used."""
    quiet_libraries()
    setup_logging()
    routes = read_routes(config.route) if config.route else None
    named = {name: Opened(locate(folder), config.prompt_template) for name, folder in in_order(config.models)}
    members = members_of(routes, config.prompt_template) if routes else {}
    for opened in (*named.values(), *members.values()):
        check_place(opened.folder)
    sets, faults = _read(config)
    choices: Mapping[str, Sequence[Choice]] = {}
    if routes:
        router = open_router(routes, config.trust_remote_code)
        choices = {
            name: router.choose([p.question for p in pairs], [p.before for p in pairs]) for name, pairs in sets.items()
        }
        del router
    measured = {opened: _losses(config, opened, sets) for opened in dict.fromkeys([*named.values(), *members.values()])}
    figures = {
        name: set_figures(
            pairs,
            {system: measured[opened][name] for system, opened in named.items()},
            {system: measured[opened][name] for system, opened in members.items()},
            choices.get(name, ()),
        )
        for name, pairs in sets.items()
    }
    folder = Path(config.output)
    report = {"sets": dict(config.files), "route": config.route, "faults": list(faults), "figures": figures}
    write_json(folder / "sets.json", report)
    lines = [line for name, each in figures.items() for line in markdown_lines(name, each)]
    write_text(folder / "sets.md", "\n".join(["# Losses by set", "", *lines]) + "\n")
    print_lines(*lines, *(f"left out: {fault}" for fault in faults[:5]), f"{folder / 'sets.md'}")
    return 1 if faults else 0


def members_of(routes: Routes, prompt: str | None) -> dict[str, Opened]:
    """The Aligners of a route. UserError where one is served."""
    routes.check_local()
    return {name: Opened(locate(each.model), each.prompt_template or prompt) for name, each in routes.aligners.items()}


def _read(config: SetsConfig) -> tuple[dict[str, list[Pair]], list[str]]:
    columns, sets, faults = parse_columns(config.columns, "") or QAC, {}, list[str]()
    for name, file in config.files:
        fields = {"after_fields": ("correction",), **named_fields(columns)}
        pairs, wrong = read_pairs(file, None, **fields)
        sets[name] = pairs[: config.limit]
        faults += map(str, wrong)
    return sets, faults


def _losses(config: SetsConfig, opened: Opened, sets: Mapping[str, Sequence[Pair]]) -> dict[str, Losses]:
    """An Aligner's losses on every set. It is freed before the next one is opened; what an earlier run measured is read."""
    files = {
        name: Path(config.output) / "losses" / f"{_digest(config, opened, pairs)}.json" for name, pairs in sets.items()
    }
    if left := {name: pairs for name, pairs in sets.items() if not files[name].exists()}:
        how = opened.prompt, Settings(), config.trust_remote_code, config.dtype
        aligner = Corrector.load(opened.folder, *how)
        for name, pairs in left.items():
            write_json(files[name], _measured(aligner, f"{Path(opened.folder).name}, {name}", pairs))
        del aligner
        torch.cuda.empty_cache()
    return {
        name: {place: RowLoss(*loss) for place, loss in enumerate(read_json(file)) if loss}
        for name, file in files.items()
    }


def _measured(aligner: Corrector, title: str, pairs: Sequence[Pair]) -> list[RowLoss | None]:
    """The loss of every row; None where the Aligner has no positions for it."""
    bar = partial(progress, desc=title, delay=2)
    shares = losses(aligner.model, aligner.encoder, aligner.template, pairs, bar)
    rows = [[*shares[place].values()] if place in shares else None for place in range(len(pairs))]
    return [RowLoss(sum(each.nll for each in row), sum(each.tokens for each in row)) if row else None for row in rows]


def _digest(config: SetsConfig, opened: Opened, pairs: Sequence[Pair]) -> str:
    """A digest of all that decides an Aligner's losses on a set."""
    trusted, prompt = config.trust_remote_code, prompt_of(opened.folder, opened.prompt).text
    rows = [[pair.question, pair.before, pair.after] for pair in pairs]
    parts = [fingerprint(opened.folder, trusted), prompt, config.dtype or best_dtype(), rows]
    return hashlib.sha256(json_line(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def set_figures(
    pairs: Sequence[Pair], systems: Mapping[str, Losses], members: Mapping[str, Losses], choices: Sequence[Choice]
) -> dict[str, Any]:
    """The figures of one set: each system's loss, and its change against the first; of a route its loss against the better of its
    Aligners on the rows that it gives to one. Rows that one of them has no positions for are left out."""
    shared = sorted(set.intersection(*(set(each) for each in (*systems.values(), *members.values()))))
    questions = [pair.question for pair in pairs]
    first = next(iter(systems.values()), None)
    rows = []
    for name, each in systems.items():
        change = None if each is first or first is None else asdict(difference(each, first, shared, questions))
        rows.append({"system": name, "loss": mean_loss(each, shared), "change": change})
    figures: dict[str, Any] = {
        "rows": len(shared),
        "questions": len({questions[place] for place in shared}),
        "left_out": len(pairs) - len(shared),
        "systems": rows,
    }
    return {**figures, ROUTED: routed_figures(members, choices, shared, questions)} if choices else figures


def routed_figures(
    members: Mapping[str, Losses], choices: Sequence[Choice], shared: Sequence[int], questions: Sequence[str]
) -> dict[str, Any]:
    """A route on one set: to whom it gave how many rows, and its loss beside that of each of its Aligners on the rows that it gave
    to any."""
    given = Counter(choices[place].aligner for place in shared)
    result: dict[str, Any] = {"given": {name: given[name] for name in (*members, NONE)}}
    places = [place for place in shared if not choices[place].leaves_alone]
    if not places:
        return result
    routed = {place: members[choices[place].aligner][place] for place in places}
    alone = {name: mean_loss(each, places) for name, each in members.items()}
    better = min(alone, key=lambda name: alone[name])
    change = asdict(difference(routed, members[better], places, questions))
    return {**result, "loss": mean_loss(routed, places), "alone": alone, "better": better, "change": change}


def mean_loss(each: Losses, places: Sequence[int]) -> float:
    """Nats a token over these rows."""
    return sum(each[place].nll for place in places) / sum(each[place].tokens for place in places)


def difference(one: Losses, other: Losses, places: Sequence[int], questions: Sequence[str]) -> Estimate:
    """How much larger the loss of the one is than the other's, with its interval. Rows of one question are drawn together."""
    _, group = np.unique(np.asarray([questions[place] for place in places], object), return_inverse=True)
    columns = [
        [float(value) for value in column]
        for each in (one, other)
        for column in zip(*(each[p] for p in places), strict=True)
    ]
    drawn = resampled(np.column_stack([np.bincount(group, column) for column in columns]))
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3], [2.5, 97.5])
    return Estimate(mean_loss(one, places) - mean_loss(other, places), float(low), float(high))


def markdown_lines(name: str, figures: Mapping[str, Any]) -> list[str]:
    """The table of a set."""
    left = f", {figures['left_out']:,} left out: too long" if figures["left_out"] else ""
    lines = [f"{name}: {figures['rows']:,} rows of {figures['questions']:,} questions{left}", ""]
    lines += ["| Aligner | loss | change (95 %) |", "|---|---|---|"]
    for row in figures["systems"]:
        lines.append(f"| {row['system']} | {row['loss']:.3f} | {_change(row['change'])} |")
    routed = figures.get(ROUTED)
    if routed and "loss" in routed:
        given = ", ".join(f"{count:,} {choice}" for choice, count in routed["given"].items() if count)
        against = f"{_change(routed['change'])} against {routed['better']} ({routed['alone'][routed['better']]:.3f})"
        lines.append(f"| {ROUTED} ({given}) | {routed['loss']:.3f} | {against} |")
    elif routed:
        lines.append(f"| {ROUTED} (all left alone) | - | - |")
    return [*lines, ""]


def _change(change: Mapping[str, float] | None) -> str:
    return f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})" if change else "-"
