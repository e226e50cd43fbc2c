"""Real answers in sentences, to be read: where each is cut, and where it would be cut otherwise while the text was still growing.

    python -m tests.benchmarks.splitting FILE.json… [--each 50] [--shown 200]

A seeded choice of answers of each file (and of AlpacaEval's corrections), 60 to 900 characters long. The faults among them are
counted by eye; what is counted here are the pieces, and the answers whose pieces differ when they come three characters at a time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from aligner.sentences import first_sentence, split_sentences

STEP = 3  # characters that a growing text gets at once


def answers(files: list[str], each: int) -> list[str]:
    """The choice, file by file."""
    draw, chosen = random.Random(7), list[str]()
    for file in files:
        fields = ("answer", "correction") if "alpacaeval" in file else ("answer",)
        rows = json.loads(Path(file).read_text())
        texts = [row[name] for row in rows for name in fields if isinstance(row.get(name), str)]
        chosen += draw.sample([text for text in texts if 60 < len(text) < 900], each)
    return chosen


def growing(text: str) -> list[str]:
    """The sentences of a text that grows."""
    sentences, pending = list[str](), ""
    for at in range(0, len(text), STEP):
        pending += text[at : at + STEP]
        ended = at + STEP >= len(text)
        while (sentence := first_sentence(pending, ended)) is not None:
            sentences.append(sentence)
            pending = pending[len(sentence) :]
    return sentences


def main() -> int:
    """Print the answers and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--shown", type=int, default=200)
    args = parser.parse_args()
    texts = answers(args.files, args.each)
    pieces = [split_sentences(text) for text in texts]
    for number, sentences in list(enumerate(pieces))[: args.shown]:
        print(f"#{number}", "‖".join(sentences).replace("\n", "⏎"))
    differ = [number for number, text in enumerate(texts) if growing(text) != pieces[number]]
    print(f"{len(texts)} answers, {sum(map(len, pieces))} sentences; cut otherwise while they grow: {differ}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
