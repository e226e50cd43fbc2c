"""Answers of one's own -> rated rows, by what their texts show: `rated-json` trains on them.

    python -m aligner.evaluation.measures.ratings --rows answers.jsonl --output rated.jsonl --most 45

Rows with the same question belong together; their texts are `answer` and, where it is there, `correction`. For each objective a row
of the two texts that differ most in it, rated in it alone, so that a prompt asks for one thing and the pair shows that thing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, pstdev
from typing import Any

from aligner.evaluation.measures.items import rows_of
from aligner.evaluation.measures.text_scores import doublings, text_scores, words
from aligner.files import write_lines
from aligner.records import UserError
from aligner.refusals import declines
from aligner.terminal import print_errors, print_lines

FEWEST = 12  # words of a text that shows anything
ALIKE = 0.75  # doublings of length between two texts, so that a pair does not show length instead of its objective
LENGTH = ("concise", "detailed")  # objectives of length itself, of which a pair must be
APART = 0.74  # doublings apart at least: one text has 0.6 of the other's words
GAP = 0.5  # and in any other objective so many standard deviations


def rated_rows(rows: Sequence[Mapping[str, Any]], most: Mapping[str, int] | int | None = None) -> list[dict[str, Any]]:
    """Rows for `rated-json`, each of two texts: for each objective those first that are furthest apart.

    most: rows of each objective at most, or of those that it names, and then of no other.

    Ratings are in standard deviations over all texts, so that `--margin` means the same in every objective. Texts that are nearly
    alike in an objective make no row of it, and a refusal none at all: what is learned from it is to refuse.
    """
    texts: dict[str, list[str]] = {}
    for row in rows:
        own = texts.setdefault(row["question"], [])
        for text in (row["answer"], row.get("correction")):
            if text and text not in own and len(words(text)) >= FEWEST and not declines(text):
                own.append(text)
    rated = []
    for objective, ratings in _ratings([text for own in texts.values() for text in own]).items():
        pairs = _furthest(texts, objective, ratings)
        rated += pairs[: most.get(objective, 0) if isinstance(most, Mapping) else most]
    return rated


def _ratings(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """By objective, each text's rating in it."""
    ratings = {}
    for each in text_scores()[0]:
        scores = {text: each.score(text) for text in texts}
        mean, spread = fmean(scores.values()), pstdev(scores.values()) or 1.0
        for objective, sign in ((each.more, 1), (each.less, -1)):
            if objective:
                ratings[objective] = {text: sign * (score - mean) / spread for text, score in scores.items()}
    return ratings


def _furthest(texts: Mapping[str, Sequence[str]], objective: str, ratings: Mapping[str, float]) -> list[dict[str, Any]]:
    """Pairs of a question's texts that differ in an objective: every question's furthest apart first, then the second ones."""
    ranked = []
    for question, own in texts.items():
        pairs = [sorted(pair, key=lambda text: ratings[text]) for pair in combinations(own, 2)]
        apart = [
            (ratings[best] - ratings[worst], [worst, best]) for worst, best in pairs if _shows(objective, worst, best)
        ]
        least = 0.0 if objective in LENGTH else GAP
        further = sorted((each for each in apart if each[0] > least), key=lambda each: -each[0])
        ranked += [(rank, -gap, question, pair) for rank, (gap, pair) in enumerate(further)]
    return [
        {
            "question": question,
            "answers": [{"text": text, "ratings": {objective: round(ratings[text], 3)}} for text in pair],
        }
        for _, _, question, pair in sorted(ranked, key=lambda each: each[:2])
    ]


def _shows(objective: str, one: str, other: str) -> bool:
    """Whether a pair's lengths let it show this objective: length itself by being apart, any other by being alike."""
    apart = abs(doublings(one) - doublings(other))
    return apart >= APART if objective in LENGTH else apart <= ALIKE


def main(arguments: list[str]) -> int:
    """Read, rate, write."""
    parser = argparse.ArgumentParser(
        prog="python -m aligner.evaluation.measures.ratings", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add("--rows", required=True, nargs="+", metavar="FILE", help="question, answer, and if wanted correction")
    add("--output", required=True, metavar="FILE", help="rows for rated-json")
    add("--most", type=int, metavar="N", help="rows of an objective, those whose texts differ most (all)")
    args = parser.parse_args(arguments)
    try:
        rated = rated_rows([row for file in args.rows for row in rows_of(file, "question", "answer")], args.most)
    except UserError as error:
        print_errors(f"error: {error}")
        return 2
    write_lines(args.output, rated)
    print_lines(f"{args.output}: {len(rated):,} rows", *text_scores()[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
