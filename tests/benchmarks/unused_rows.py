"""Rows of an experiment's files whose questions it never used, to measure once more what was chosen by those that it did.

    python -m tests.benchmarks.unused_rows restoration output/reproduce/restoration --data DIR --output unused.jsonl

A row a question, in the order of the questions' digests, of answers as long as the experiment measures.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from aligner.evaluation.measures.items import rows_of
from aligner.files import write_lines
from aligner.reproduce.experiment import SIDES, digest_of, read_experiment, rows_by_side
from aligner.reproduce.rows import long_enough
from aligner.terminal import print_lines


def main(arguments: list[str]) -> int:
    """Write them, and say how many there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="its name")
    parser.add_argument("folder", type=Path, help="where it was run")
    parser.add_argument("--data", type=Path, required=True, help="the folder of its files")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    experiment = read_experiment(args.experiment)
    files = [args.folder / "rows" / f"{side}.jsonl" for side in SIDES]
    sides = [
        rows_of(str(file), "question") for file in files if file.stat().st_size
    ]  # nothing may have been kept to choose by
    used = {digest_of(row["question"]) for rows in sides for row in rows}
    unbounded = replace(experiment, questions={side: 1000 * most for side, most in experiment.questions.items()})
    rows = [row for side in rows_by_side(unbounded, args.data, experiment.rows).values() for row in side]
    unused = {digest: row for row in rows if (digest := digest_of(row["question"])) not in used}
    measured = long_enough(experiment, [unused[digest] for digest in sorted(unused)])
    write_lines(args.output, measured)
    print_lines(f"{args.output}: {len(measured):,} rows of questions that were never used")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
