"""train_log.jsonl: one object per update, and one per evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aligner.parsing import json_value

FILE = "train_log.jsonl"


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a folder's train_log.jsonl; a line cut off by a kill is left out."""
    file = Path(folder) / FILE
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            lines.append(json_value(line))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def evaluations(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """The update and the held-out loss of each evaluation whose loss was finite."""
    losses = [(line["update"], line["eval_loss"]) for line in lines if line.get("eval_loss") is not None]
    return [(update, loss) for update, loss in losses if math.isfinite(loss)]
