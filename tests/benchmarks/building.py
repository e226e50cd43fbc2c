"""What `aligner build` finds among real questions: planted near duplicates and leaks, and how many true questions it loses.

python -m tests.benchmarks.building                  # the table of aligner/building/README.md
python -m tests.benchmarks.building --growth         # seconds of the search for near duplicates, by number of questions
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aligner.building.config import (
    AnswersConfig,
    BuildConfig,
    CorrectionsConfig,
    LeaksConfig,
    QuestionsConfig,
    SourceConfig,
)
from aligner.building.leaks import screen_leaks
from aligner.building.near import near_duplicates
from aligner.building.questions import collect_questions
from aligner.questions import question_key, tokens

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = ("qac_aligner2b_alpacaeval", "qac_truthfulqa", "qac_pandalm", "qac_hh_rlhf")
DUPLICATES, LEAKS_OF_A_KIND = 300, 20
WORD = re.compile(r"\w+")


def distinct(data: Path, files: Sequence[str] = FILES) -> list[str]:
    """The questions of the files, each once."""
    rows = (row for file in files for row in json.loads((data / f"{file}.json").read_text(encoding="utf-8")))
    return list({question_key(question): question for question in (row["question"] for row in rows)}.values())


def one_word_changed(question: str, vocabulary: Sequence[str], draw: random.Random) -> str:
    """A question with one of its words, wherever it stands, replaced by one of other questions."""
    start, end = draw.choice([match.span() for match in WORD.finditer(question)])
    return question[:start] + draw.choice(vocabulary) + question[end:]


def plant(true: Sequence[str], evaluation: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Near duplicates of true questions, and leaks of evaluation questions, by kind."""
    draw = random.Random(seed)
    vocabulary = sorted({word for question in true for word in re.findall(r"[A-Za-z]{3,}", question)})
    leaks = draw.sample(evaluation, 3 * LEAKS_OF_A_KIND)
    exact, changed, inside = (leaks[at::3] for at in range(3))
    hosts = draw.sample([question for question in true if 8 <= len(tokens(question)) < 60], 2 * LEAKS_OF_A_KIND)
    return {
        "near duplicate": [one_word_changed(each, vocabulary, draw) for each in draw.sample(true, DUPLICATES)],
        "leak, exact": exact,
        "leak, one word changed": [one_word_changed(each, vocabulary, draw) for each in changed],
        "leak, in a longer question": [
            f"{before} {each} {after}" for before, each, after in zip(hosts[::2], inside, hosts[1::2], strict=True)
        ],
    }


def sift(sources: dict[str, Sequence[str]], evaluation: Path, folder: Path) -> dict[str, Counter[str]]:
    """The stages `questions` and `leaks` on these sources: what became of the rows of each, `kept` or the reason."""
    configs = []
    for name, questions in sources.items():
        file = folder / f"{name.replace(' ', '-').replace(',', '')}.jsonl"
        file.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions), encoding="utf-8")
        configs.append(SourceConfig(str(file), name))
    config = BuildConfig(
        tuple(configs), AnswersConfig(()), CorrectionsConfig(()), questions=QuestionsConfig(languages=("en",)),
        leaks=LeaksConfig((str(evaluation),)),
    )  # fmt: skip
    questions = collect_questions(config)
    leaks = screen_leaks(questions.kept, config.leaks)
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in sources}
    for row in (*questions.dropped, *leaks.dropped):
        outcomes[row["source"]][row["reason"]] += 1
    for row in leaks.kept:
        outcomes[row["source"]]["kept"] += 1
    return outcomes


def measure(seed: int, data: Path, folder: Path) -> dict[str, Any]:
    """Found and lost for one seed. Found: of duplicates those dropped as such, of leaks those dropped as such or as duplicates of
    a true question; lost: true questions dropped for whatever reason."""
    true, evaluation = distinct(data), distinct(data, ("eval_xstest",))
    began = time.process_time()
    planted = plant(true, evaluation, seed)
    outcomes = sift({"true": true, **planted}, data / "eval_xstest.json", folder)
    figures: dict[str, Any] = {"seed": seed, "true": len(true), "seconds": time.process_time() - began}
    for kind in planted:
        reasons = {
            r: n
            for r, n in outcomes[kind].items()
            if "duplicate" in r or (kind.startswith("leak") and "evaluation" in r)
        }
        figures[kind] = sum(reasons.values())
    figures["leaks"] = sum(figures[kind] for kind in planted if kind.startswith("leak"))
    figures["lost"] = len(true) - outcomes["true"]["kept"]
    figures["reasons"] = {reason: n for reason, n in outcomes["true"].items() if reason != "kept"}
    return figures


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The figures of several seeds as a table."""
    kinds = ("near duplicate", "leak, exact", "leak, one word changed", "leak, in a longer question")
    yield f"| seed | {' | '.join(kinds)} | leaks in all | true questions lost | CPU s |"
    yield "|---|" + "---|" * (len(kinds) + 3)
    for row in rows:
        sizes = (DUPLICATES, *[LEAKS_OF_A_KIND] * 3)
        cells = [f"{row[kind]} of {size}" for kind, size in zip(kinds, sizes, strict=True)]
        lost = f"{row['lost']} of {row['true']:,} ({row['lost'] / row['true']:.2%})"
        yield f"| {row['seed']} | {' | '.join(cells)} | {row['leaks']} of 60 | {lost} | {row['seconds']:.1f} |"
    yield "lost: " + "; ".join(f"{count} {reason}" for reason, count in rows[0]["reasons"].items())


def growth(data: Path) -> Iterator[str]:
    """Seconds for more and more questions: sentences of the real answers stand in for questions that are not there."""
    sentences = dict.fromkeys(
        sentence.strip()
        for file in FILES
        for row in json.loads((data / f"{file}.json").read_text(encoding="utf-8"))
        for sentence in re.split(r"(?<=[.!?])\s", row["correction"] + " " + row["answer"])
        if 4 <= len(sentence.split()) <= 60
    )
    texts = [*distinct(data), *sentences]
    random.Random(0).shuffle(texts)
    yield "| texts | near duplicates | CPU s |"
    yield "|---|---|---|"
    for size in (1_000, 3_000, 9_000, 27_000):
        began = time.process_time()
        found = sum(1 for _ in near_duplicates(texts[:size], 0.97))
        yield f"| {min(size, len(texts)):,} | {found:,} | {time.process_time() - began:.1f} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2, 3, 4])
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of the four files and eval_xstest.json")
    parser.add_argument("--growth", action="store_true")
    flags = parser.parse_args()
    if flags.growth:
        lines = growth(flags.data)
    else:
        with tempfile.TemporaryDirectory() as folder:
            lines = iter(list(table([measure(seed, flags.data, Path(folder)) for seed in flags.seeds])))
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
