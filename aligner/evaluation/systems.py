"""Several systems that answered the same questions, each against each: the pairs to judge, and one Elo table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from aligner.evaluation.judging import Verdict
from aligner.evaluation.pairs import AFTER, BEFORE, Pair, field_in, read_pairs
from aligner.evaluation.rates import elo
from aligner.records import DataError, UserError

FIELDS = (*AFTER, *BEFORE)
VERSUS = " against "
SAMPLES = 200  # of the bootstrap
Results = dict[tuple[str, str], tuple[float, float]]


@dataclass(frozen=True)
class System:
    """A name, and where its answers are: a file, and which field of its rows (the first of FIELDS that the file has)."""

    name: str
    file: str
    field: str | None = None

    def fields(self) -> tuple[str, ...]:
        """As `read_pairs` takes them."""
        return (self.field,) if self.field else field_in(self.file, FIELDS)


def parse_system(text: str) -> System:
    """NAME=FILE or NAME=FILE:FIELD."""
    name, equals, rest = text.partition("=")
    if not (name and equals and rest):
        raise UserError(f"--systems {text}: write NAME=FILE, or NAME=FILE:FIELD with one of {', '.join(FIELDS)}.")
    file, _, field = rest.rpartition(":")
    if file and field not in FIELDS and Path(file).exists() and not Path(rest).exists():
        raise UserError(f"--systems {text}: there is no field '{field}'; there are {', '.join(FIELDS)}.")
    return System(name, file, field) if file and field in FIELDS else System(name, rest)


def match_pairs(systems: Sequence[System], limit: int | None = None) -> tuple[list[Pair], list[DataError]]:
    """Every pair of systems on every question, or on the first so many; the earlier system's answer is `before`, and `upstream`
    names the two."""
    names = [system.name for system in systems]
    if len(systems) < 2 or len(set(names)) < len(names):
        raise UserError("--systems needs two or more, each with a name of its own.")
    pairs: list[Pair] = []
    faults: dict[str, DataError] = {}
    for one, other in combinations(systems, 2):
        some_pairs, wrong = read_pairs(other.file, one.file, other.fields(), one.fields())
        pairs += [replace(pair, upstream=match(one.name, other.name)) for pair in some_pairs[:limit]]
        faults |= {str(fault): fault for fault in wrong}
    return pairs, list(faults.values())


def match(one: str, other: str) -> str:
    """What a match is called."""
    return f"{one}{VERSUS}{other}"


def unpooled(verdicts: dict[str, Any]) -> dict[str, Any]:
    """Verdicts without the figures of all matches together: which system stands on which side is only their order."""
    nothing = dict.fromkeys(("rate", "low", "high", "elo"))
    return {
        name: {
            **figures,
            **nothing,
            "changed": {**figures["changed"], **nothing},
            "length_controlled_of_changed": None,
            "by_category": {},
        }
        for name, figures in verdicts.items()
    }


def standings(systems: Sequence[System], verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """For each dimension and system: its Elo (`rates.elo`), the first system's being 1500, with a 95 % bootstrap interval
    over questions; and how many answers of it were judged."""
    games = {match(one.name, other.name): (one.name, other.name) for one, other in combinations(systems, 2)}
    tables = {}
    for dimension in dict.fromkeys(each.dimension for each in verdicts):
        read = [each for each in verdicts if each.dimension == dimension and each.outcome is not None]
        questions = list(dict.fromkeys(each.pair.question for each in read))
        met = {name for each in read for name in games[each.pair.upstream]}
        if met == {system.name for system in systems}:
            tables[dimension] = _rated(systems, games, read, questions)
    return tables


def _rated(
    systems: Sequence[System], games: dict[str, tuple[str, str]], read: Sequence[Verdict], questions: Sequence[str]
) -> dict[str, Any]:
    """Points by match and question, then ratings of all questions and of questions drawn again and again."""
    anchor, names = systems[0].name, list(games)
    place = {question: number for number, question in enumerate(questions)}
    points = np.zeros((2, len(names), len(questions)))
    for each in read:
        won = ((each.outcome or 0) + 1) / 2  # of the later system, whose answer is `after`
        points[:, names.index(each.pair.upstream), place[each.pair.question]] += (1 - won, won)
    generator = np.random.default_rng(0)
    drawn = [generator.multinomial(len(questions), np.full(len(questions), 1 / len(questions))) for _ in range(SAMPLES)]
    ratings = elo(_results(games, points.sum(2)), anchor)
    results = [_results(games, points @ counts) for counts in drawn]
    samples = [elo(each, anchor) for each in results if {n for game in each for n in game} == ratings.keys()] or [
        ratings
    ]
    rated = {}
    for system in systems:
        low, high = np.percentile([sample[system.name] for sample in samples], [2.5, 97.5])
        judged = sum(system.name in games[each.pair.upstream] for each in read)
        rated[system.name] = {"elo": ratings[system.name], "low": float(low), "high": float(high), "judged": judged}
    return rated


def _results(games: dict[str, tuple[str, str]], totals: np.ndarray) -> Results:
    """The points of both sides of each match that was played."""
    return {game: (float(a), float(b)) for game, a, b in zip(games.values(), *totals, strict=True) if a + b}


def standing_lines(standing: dict[str, dict[str, Any]]) -> list[str]:
    """The tables for a terminal, the best system first."""
    table = []
    for dimension, rated in standing.items():
        width = max(map(len, rated))
        table.append(f"{dimension}: Elo")
        for name, each in sorted(rated.items(), key=lambda item: -item[1]["elo"]):
            interval = f"{each['low']:,.0f} to {each['high']:,.0f}"
            table.append(f"  {name:<{width}}  {each['elo']:>6,.0f}  ({interval}, {each['judged']:,} judged)")
    return table
