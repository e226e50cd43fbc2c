"""Answers of one's own -> rated rows, by what their texts show: `rated-json` trains on them.

    python -m aligner.evaluation.measures.ratings --rows answers.jsonl --output rated.jsonl --most 45

Rows with the same question belong together; their texts are `answer` and, where it is there, `correction`. For each objective a row
of the two texts that differ most in it, rated in it alone, so that a prompt asks for one thing and the pair shows that thing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
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
    texts, rated = texts_by_question(rows, FEWEST), []
    for objective, ratings in _ratings([text for own in texts.values() for text in own]).items():
        pairs = _furthest(texts, objective, ratings)
        rated += pairs[: most.get(objective, 0) if isinstance(most, Mapping) else most]
    return rated


def texts_by_question(rows: Sequence[Mapping[str, Any]], fewest: int) -> dict[str, list[str]]:
    """A question's answers and corrections of so many words at least, each once and no refusal."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        own = texts.setdefault(row["question"], [])
        for text in (row["answer"], row.get("correction")):
            if text and text not in own and len(words(text)) >= fewest and not declines(text):
                own.append(text)
    return texts


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
    return write_made_rows(arguments, __doc__ or "", "ratings", "rated-json", rated_rows, text_scores()[1])


def write_made_rows(
    arguments: list[str],
    about: str,
    module: str,
    data_set: str,
    make: Callable[[Sequence[Mapping[str, Any]], int | None], list[dict[str, Any]]],
    notes: Sequence[str] = (),
) -> int:
    """A command that reads answers and writes the rows that `make` has of them, so many of each objective at most."""
    parser = argparse.ArgumentParser(
        prog=f"python -m aligner.evaluation.measures.{module}", description=about.split("\n\n")[0]
    )
    add = parser.add_argument
    add("--rows", required=True, nargs="+", metavar="FILE", help="question, answer, and if wanted correction")
    add("--output", required=True, metavar="FILE", help=f"rows for {data_set}")
    add("--most", type=int, metavar="N", help="rows of an objective at most (all)")
    args = parser.parse_args(arguments)
    try:
        if args.most is not None and args.most < 1:
            raise UserError(f"--most is {args.most}: it must be at least 1.")
        made = make([row for file in args.rows for row in rows_of(file, "question", "answer")], args.most)
        if not made:
            raise UserError(
                f"{args.rows[0]}: no row is made of its answers: they are too short, refuse, or are too much alike."
            )
    except UserError as error:
        print_errors(f"error: {error}")
        return 2
    write_lines(args.output, made)
    print_lines(f"{args.output}: {len(made):,} rows for {data_set}", *notes)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
