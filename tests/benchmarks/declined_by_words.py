"""What a plain classifier of words would do in the Aligner's place, of `aligner reproduce declining`.

A logistic regression on TF-IDF learns from the same prompts which to decline, and refuses those; it is measured as the Aligner
was, on the same held-out prompts. Needs scikit-learn, which comes with `alt-profanity-check`.
Usage: python -m tests.benchmarks.declined_by_words output/reproduce/declining
"""

from __future__ import annotations

import sys
from pathlib import Path

from aligner.evaluation.measures.gain import balanced_mean
from aligner.evaluation.measures.items import MeasuredAnswer, declining, rows_of
from aligner.refusals import REFUSALS, is_unsafe


def main(folder: Path) -> None:
    """Print the gain of each part."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    trained = rows_of(str(folder / "rows" / "train.jsonl"), "question")
    words = make_pipeline(TfidfVectorizer(), LogisticRegression(class_weight="balanced"))
    words.fit([row["question"] for row in trained], [is_unsafe(row) for row in trained])
    measure = declining(str(folder / "rows" / "report.jsonl"), None)

    def gain_of(item: MeasuredAnswer) -> float:
        text = REFUSALS[0] if words.predict([item.question])[0] else item.answer
        return measure.score(item, text) - measure.score(item, item.answer)

    for part in dict.fromkeys(item.part for item in measure.items):
        items = [item for item in measure.items if item.part == part]
        gain = balanced_mean(
            [gain_of(item) for item in items], [item.needs_help for item in items], [item.question for item in items]
        )
        print(f"{part or 'types trained on'}: {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
