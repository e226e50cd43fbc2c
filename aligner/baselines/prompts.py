"""The prompts of the methods: a YAML file of texts with slots, which a user copies and edits."""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.files import read_yaml
from aligner.records import UserError
from aligner.shipped import find_config

DEFAULT = "configs/baselines/prompts.yaml"
SLOTS = {  # of each prompt, all of which it needs
    "answer": ("question",),
    "feedback": ("question", "answer"),
    "refine": ("question", "answer", "critique"),
    "critique": ("question", "answer"),
    "principle_critique": ("question", "answer", "principle"),
    "principle_revision": ("question", "answer", "critique", "principle"),
}
OTHERS = ("satisfied", "mark", "principles")
_SLOT = re.compile(r"\{(question|answer|critique|principle)\}")


@dataclass(frozen=True)
class Prompts:
    """texts: of each request, by name. satisfied: feedback that begins with it ends Self-Refine. mark: what stands before the
    revised answer in a reply that holds more. principles: CAI's, of which each revision draws one."""

    texts: Mapping[str, str]
    satisfied: str
    mark: str
    principles: tuple[str, ...]

    def fill(self, name: str, **fields: str) -> str:
        """A prompt with its slots filled; braces elsewhere, and in the fields, are text."""
        pieces = _SLOT.split(self.texts[name])
        return "".join(fields[piece] if odd % 2 else piece for odd, piece in enumerate(pieces))

    def principle(self, question: str, number: int, seed: int) -> str:
        """The principle of a question's revision of this number."""
        return random.Random(f"{seed} {number} {question}").choice(self.principles)

    def about(self) -> dict[str, Any]:
        """Everything, to be kept beside the answers; itself such a file."""
        return {**self.texts, "satisfied": self.satisfied, "mark": self.mark, "principles": list(self.principles)}


def read_prompts(path: str | None = None) -> Prompts:
    """The prompts of a file, or the project's own. UserError where one is missing, misspelt or lacks a slot."""
    file = find_config(path or DEFAULT)
    value = read_yaml(Path(file))
    needed = (*SLOTS, *OTHERS)
    if not isinstance(value, dict):
        raise UserError(f"{file}: holds no prompts. Copy {DEFAULT} and edit it.")
    if unknown := [str(name) for name in value if name not in needed]:
        near = difflib.get_close_matches(unknown[0], needed, n=1)
        raise UserError(
            f"{file}: '{unknown[0]}' is no prompt. {f'Did you mean {near[0]!r}?' if near else 'Remove it.'}"
        )
    for name in needed:
        text = value.get(name)
        if name == "principles":
            if not (isinstance(text, list) and text and all(isinstance(each, str) and each.strip() for each in text)):
                raise UserError(f"{file}: 'principles' is no list of texts. Write one at least.")
        elif not (isinstance(text, str) and text.strip()):
            raise UserError(f"{file}: '{name}' is missing. Copy it from {DEFAULT}.")
        elif lacks := [slot for slot in SLOTS.get(name, ()) if f"{{{slot}}}" not in text]:
            raise UserError(f"{file}: '{name}' has no {{{lacks[0]}}}. It needs {' and '.join(SLOTS[name])}.")
        elif extra := [slot for slot in _SLOT.findall(text) if slot not in SLOTS.get(name, ())]:
            raise UserError(f"{file}: '{name}' has {{{extra[0]}}}, which it is not given. Remove it.")
    texts = {name: value[name].strip() for name in SLOTS}
    return Prompts(texts, value["satisfied"].strip(), value["mark"].strip(), tuple(value["principles"]))
