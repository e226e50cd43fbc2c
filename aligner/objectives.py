"""Objectives: what a correction is asked to mind, by name or in words (the paper's controllable refinement).

A prompt has one slot for them, `{objectives}`; `{feedback}` is its other name. A name stands for its sentence in a file such as
`configs/objectives.yaml`, any other text for itself. Each checkpoint's card keeps the file that it was trained with.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aligner.files import read_yaml
from aligner.records import UserError
from aligner.shipped import find_config

FILE = "configs/objectives.yaml"
PUBLISHED = {  # of other projects' checkpoints, byte for byte, by the name of their prompt
    name: f"configs/objectives/{name}.yaml"
    for name in ("metaaligner-hh-rlhf", "metaaligner-ultrafeedback", "metaaligner-imhi")
}
BETWEEN = "; "  # two objectives in a prompt
_NAME = re.compile(r"[\w-]+")


def read_objectives(file: str = FILE) -> dict[str, str]:
    """The sentence of each name. UserError where the file holds anything else."""
    value = read_yaml(find_config(file))
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and _NAME.fullmatch(name) and isinstance(text, str) and text.strip()
        for name, text in value.items()
    ):
        raise UserError(f"{file}: write one line an objective, NAME: SENTENCE; a name has letters, digits, - and _.")
    return value


def split_objectives(value: Any) -> tuple[str, ...]:
    """What a row or a flag gives: names with commas between them, or one text, or a list of either. ValueError otherwise."""
    if value is None:
        return ()
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        names = all(_NAME.fullmatch(part) for part in parts if part)
        return tuple(part for part in parts if part) if names else (value.strip(),)
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise ValueError("'objectives' is neither text nor a list of texts")
    return tuple(each.strip() for each in value if each.strip())


def sentences(objectives: Sequence[str], known: Mapping[str, str]) -> str:
    """The text for the slot. UserError for a name that is not known, with the nearest ones."""
    return BETWEEN.join(_sentence(each, known) for each in objectives)


def shuffled(objectives: Sequence[str], key: str) -> list[str]:
    """The objectives of a record in an order that its seed and place decide: no order is learned, and no process draws another."""
    return random.Random(f"{key}:objectives").sample(objectives, len(objectives))


def _sentence(objective: str, known: Mapping[str, str]) -> str:
    if objective in known or not _NAME.fullmatch(objective):
        return known.get(objective, objective)
    near = difflib.get_close_matches(objective, known, n=3) or list(known)
    raise UserError(f"there is no objective '{objective}' here. Did you mean {', '.join(near)}? Or write a sentence.")
