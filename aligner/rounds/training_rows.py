"""A corrected answer -> a row that trains an upstream, in the form of the tool that will read it.

A supervised row teaches the correction; a preference says that it is better than the answer (paper, table 4: supervised training
takes the corrections alone, preferences both).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aligner.evaluation.pairs import Pair

Fields = dict[str, Any]


@dataclass(frozen=True)
class RowForm:
    """How a tool writes rows: a supervised one, a preference, and what its registry of data sets needs, if it has one."""

    supervised: Callable[[Pair], Fields]
    preference: Callable[[Pair], Fields]
    registry: Fields | None = None


def _turn(role: str, text: str) -> list[Fields]:
    return [{"role": role, "content": text}]


def _alpaca(pair: Pair, **more: str) -> Fields:
    return {"instruction": pair.question, "input": "", **more}


FORMS = {
    "trl": RowForm(
        lambda pair: {"prompt": _turn("user", pair.question), "completion": _turn("assistant", pair.after)},
        lambda pair: {
            "prompt": _turn("user", pair.question),
            "chosen": _turn("assistant", pair.after),
            "rejected": _turn("assistant", pair.before),
        },
    ),
    "llamafactory": RowForm(
        lambda pair: _alpaca(pair, output=pair.after),
        lambda pair: _alpaca(pair, chosen=pair.after, rejected=pair.before),
        {
            "aligner_supervised": {"file_name": "supervised.jsonl"},
            "aligner_preference": {
                "file_name": "preference.jsonl",
                "ranking": True,
                "columns": {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"},
            },
        },
    ),
    "aligner": RowForm(
        lambda pair: {"question": pair.question, "correction": pair.after},
        lambda pair: {"question": pair.question, "answer": pair.before, "correction": pair.after},
    ),
}
