"""Rows that are usable but suspicious: each kind with its test and a few examples."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from aligner.questions import QuestionIndex, question_key
from aligner.records import Correction

EXAMPLES = 3
ROWS = 1 << 40  # more than a file has
KINDS = {
    "duplicate": "rows that stand there twice (the question but for case and punctuation)",
    "conflict": "rows with a question and answer that stand there with another correction too",
    "equal": "corrections that equal their answer (identity rows; a warm-up makes its own)",
    "marker": "fields that hold a marker of the prompt or another turn of a dialogue, and may have been cut wrongly",
    "special": "fields that hold a special token of some model as text",
    "refusal": "corrections that refuse or speak of an AI language model",
    "overlap": "questions that are in the evaluation data too",
    "near-overlap": "questions nearly the same as one of the evaluation data",
}
_MARKER = re.compile(
    r"##\s?(?:Question|Answer|Correction):|BEGINNING OF CONVERSATION|\bASSISTANT:|\bUSER:|Edit the following Question-Answer pair"
)
_TURN = re.compile(r"(?:^\s*|\n|\s\s)(?:Human|Assistant):")  # of a dialogue, in what should be one reply
_SPECIAL = re.compile(
    r"</?s>|<(?:bos|eos|pad|unk)>|<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<\uff5c[^>]{2,30}\uff5c>"
)
_REFUSAL = re.compile(
    r"(?:I'm sorry|I am sorry|Sorry|I apologi[sz]e|Unfortunately)\W.{0,60}?\b(?:can't|cannot|can not|unable|not able|won't)\b"
    r"|(?:I can't|I cannot|I can not|I won't|I'm unable|I am unable)\b",
    re.IGNORECASE,
)
_AS_AN_AI = re.compile(r"\bas an? (?:AI|artificial)\b.{0,30}?\b(?:model|assistant)\b", re.IGNORECASE)


def _marker(text: str, of_question: bool) -> re.Match[str] | None:
    """A marker of a prompt in a field, or another turn in a reply; `in` first, as the patterns take thirty times as long."""
    prompt = "##" in text or "CONVERSATION" in text or "ASSISTANT:" in text or "USER:" in text or "Edit the" in text
    turn = not of_question and ("Human:" in text or "Assistant:" in text)
    return (prompt and _MARKER.search(text)) or (turn and _TURN.search(text)) or None


def leftover_of_a_prompt(question: str) -> str:
    """What of a question stems from a prompt or from a model's special tokens; '' where nothing does."""
    seen = _marker(question, of_question=True) or _SPECIAL.search(question)
    return seen[0].strip() if seen else ""


def refusal_in(text: str) -> str:
    """The words with which a text refuses, or speaks of an AI language model; '' where it does not."""
    seen = _refusal(text)
    return seen[0] if seen else ""


def _refusal(text: str) -> re.Match[str] | None:
    """The refusal at the beginning of a correction."""
    start = text[:300].replace("\u2019", "'")
    lower = start.lower()
    speaks = " ai" in lower or "artificial" in lower
    return _REFUSAL.match(start) or (_AS_AN_AI.search(start) if speaks else None)


@dataclass
class Finding:
    """A kind of suspicion: the number of rows, and the first ones with the text that raised it."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one row."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)


class Suspicions:
    """Examines records one after another and keeps a few numbers for each: a million rows take some 200 MB."""

    def __init__(self, evaluation: Iterable[str] = ()) -> None:
        self.findings = {kind: Finding() for kind in KINDS}
        self._files: list[str] = []
        self._rows: dict[int, int] = {}  # a whole row -> where it stands first: its file's number and its own
        self._pairs: dict[int, int] = {}  # question and answer -> the first row that has them
        self._evaluation = QuestionIndex(evaluation)

    def look(self, record: Correction) -> None:
        """Examine one record."""
        place = str(record.origin)
        self._repetition(record, place)
        if record.answer == record.correction:
            self.findings["equal"].add(place)
        for kind in ("marker", "special"):
            for name in ("question", "answer", "correction"):
                text = getattr(record, name)
                if seen := _marker(text, name == "question") if kind == "marker" else _SPECIAL.search(text):
                    self.findings[kind].add(f"{place}: '{seen[0].strip()}' in the {name}")
                    break
        if seen := _refusal(record.correction):
            self.findings["refusal"].add(f"{place}: {_short(seen[0])}")
        if self._evaluation.exact:
            self._overlap(record.question, place)

    def _repetition(self, record: Correction, place: str) -> None:
        pair, correction = hash((question_key(record.question), record.answer)), hash(record.correction)
        whole = hash((pair, correction))
        if not self._files or self._files[-1] != record.origin.file:
            self._files.append(record.origin.file)
        here = (len(self._files) - 1) * ROWS + record.origin.row
        if whole in self._rows:
            self.findings["duplicate"].add(f"{place} repeats {self._place(self._rows[whole])}")
        elif pair in self._pairs:
            self.findings["conflict"].add(f"{place} and {self._place(self._pairs[pair])}")
        self._rows.setdefault(whole, here)
        self._pairs.setdefault(pair, here)

    def _place(self, number: int) -> str:
        file, row = divmod(number, ROWS)
        return f"{self._files[file]} row {row}"

    def _overlap(self, question: str, place: str) -> None:
        same, near = self._evaluation.like(question)
        if same:
            self.findings["overlap"].add(f"{place}: {_short(question)}")
        elif near:
            self.findings["near-overlap"].add(f"{place}: {_short(question)} ~ {_short(near)}")


def _short(text: str) -> str:
    """A text in one line of at most 60 characters."""
    line = " ".join(text.split())
    return f"\u201c{line[:57]}\u2026\u201d" if len(line) > 60 else f"\u201c{line}\u201d"
