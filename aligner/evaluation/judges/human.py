"""People as the judge: labels from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aligner.evaluation.judges.judge import JudgeReply, JudgeRequest
from aligner.files import read_rows, sha256_of
from aligner.records import DataError, UserError

LABELS = {"before": -1, "after": 1, "tie": 0}


@dataclass(frozen=True)
class HumanJudge:
    """Outcomes by (dimension or "", question, before, after): 1 the correction is better, -1 the answer, 0 neither."""

    identity: str
    outcomes: dict[tuple[str, ...], int]

    @classmethod
    def load(cls, file: str) -> HumanJudge:
        """Rows with question, answer, corrected (or correction) and label: before, after or tie; a `dimension` where they hold for
        one alone. UserError where one cannot be read."""
        outcomes: dict[tuple[str, ...], int] = {}
        for row in read_rows(file):
            if isinstance(row, DataError):
                raise row
            value: Any = row.value if isinstance(row.value, dict) else {}
            if not isinstance(value.get("label"), str) or value["label"] not in LABELS:
                raise DataError(
                    *row.origin, f"its label is {value.get('label')!r}", f"Write one of {', '.join(LABELS)}"
                )
            texts = value.get("question"), value.get("answer"), value.get("corrected", value.get("correction"))
            if not all(isinstance(text, str) for text in texts):
                raise DataError(
                    *row.origin, "is no labelled pair", "Write question, answer, corrected and label as text"
                )
            key = (str(value.get("dimension") or ""), *map(str, texts))
            if outcomes.setdefault(key, LABELS[value["label"]]) != LABELS[value["label"]]:
                raise DataError(
                    *row.origin, "contradicts the label of the same pair in an earlier row", "Keep one of them"
                )
        return cls(sha256_of(file), outcomes)

    def outcome(self, dimension: str, question: str, before: str, after: str) -> int | None:
        """The label of a pair, also of one that was labelled the other way round; or None."""
        for name in (dimension, ""):
            if (label := self.outcomes.get((name, question, before, after))) is not None:
                return label
            if (turned := self.outcomes.get((name, question, after, before))) is not None:
                return -turned
        return None

    def prompt(self, request: JudgeRequest) -> str:
        """The pair that was labelled."""
        return repr((request.dimension.name, request.question, request.first, request.second))

    def ask(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, JudgeReply | UserError]]:
        """As `Judge` says; a pair without a label is an error."""
        for place, each in enumerate(requests):
            label = self.outcome(each.dimension.name, each.question, each.first, each.second)
            yield place, UserError("it has no label.") if label is None else JudgeReply(str(-label))

    def read(self, request: JudgeRequest, reply: str) -> int | None:
        """Which of the two was better."""
        return int(reply)
