"""The principles by which an annotator corrects: a YAML file that a user copies and edits, and how its replies are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from aligner.files import read_text, read_yaml
from aligner.parsing import json_value
from aligner.records import Origin, UserError
from aligner.shipped import find_config
from aligner.texts import kind_of, text_fault

SLOTS = {"prompt": ("principles", "question", "answer"), "again": ("fault",)}
_SLOT = re.compile(r"\{(principles|question|answer|fault)\}")
_FENCE = regex.compile(r"^```(?:json)?\s*\n(.*)\n```$", regex.DOTALL)
FIELDS: dict[str, tuple[type, ...]] = {"critique": (str,), "harmful": (bool,), "correction": (str, type(None))}
SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "correction",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "critique": {"type": "string"},
                "harmful": {"type": "boolean"},
                "correction": {"type": ["string", "null"]},
            },
            "required": list(FIELDS),
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class Principles:
    """prompt: what an annotator is asked. again: what is added where its reply could not be read. principles: by what they serve.
    text: the file as it was read."""

    prompt: str
    again: str
    principles: Mapping[str, tuple[str, ...]]
    text: str

    def ask(self, question: str, answer: str) -> str:
        """The prompt for a pair."""
        lines = [
            f"{name.capitalize()}:\n" + "\n".join(f"- {each}" for each in some)
            for name, some in self.principles.items()
        ]
        return _filled(self.prompt, {"principles": "\n\n".join(lines), "question": question, "answer": answer})

    def ask_again(self, prompt: str, fault: str) -> str:
        """The prompt once more, with what was wrong with the reply."""
        return f"{prompt}\n\n{_filled(self.again, {'fault': fault})}"


@dataclass(frozen=True)
class Reading:
    """What a reply says: the critique, whether the question asks for harm, and the correction; None where the answer may stand."""

    critique: str
    harmful: bool
    correction: str | None


def _filled(text: str, fields: Mapping[str, str]) -> str:
    pieces = _SLOT.split(text)
    return "".join(fields[piece] if odd % 2 else piece for odd, piece in enumerate(pieces))


def read_principles(file: str) -> Principles:
    """The principles of a file. UserError where one is missing, misspelt or lacks a slot."""
    place = find_config(file)
    value = read_yaml(place)
    if not isinstance(value, dict) or set(value) != {*SLOTS, "principles"}:
        raise UserError(
            f"{file}: needs prompt, again and principles, and nothing else. Copy configs/building/principles.yaml."
        )
    for name, slots in SLOTS.items():
        if not isinstance(value[name], str):
            raise UserError(f"{file}: '{name}' holds {kind_of(value[name])}, not text.")
        present = set(_SLOT.findall(value[name]))
        if different := present ^ set(slots):
            raise UserError(
                f"{file}: '{name}' needs {' and '.join(f'{{{slot}}}' for slot in slots)}, each (see {min(different)})."
            )
    principles = value["principles"]
    if (
        not isinstance(principles, dict)
        or not principles
        or not all(
            isinstance(some, list) and some and all(isinstance(each, str) and each.strip() for each in some)
            for some in principles.values()
        )
    ):
        raise UserError(f"{file}: 'principles' is no list of texts under each name (helpful, harmless, honest).")
    chosen = {str(name): tuple(some) for name, some in principles.items()}
    return Principles(value["prompt"].strip(), value["again"].strip(), chosen, read_text(Path(place)))


def read_reply(text: str, finished: bool = True) -> Reading | str:
    """A reply as it is meant, or what is wrong with it: it must be one JSON object with exactly the three fields.

    A fence around it is taken off; nothing else is.
    """
    if not finished:
        return "it was cut off"
    plain = text.strip()
    if fenced := _FENCE.match(plain):
        plain = fenced[1]
    try:
        value = json_value(plain, strict=True)
    except ValueError:
        return "it is not JSON"
    if not isinstance(value, dict):
        return f"it holds {kind_of(value)}, not an object"
    if set(value) != set(FIELDS):
        return f"its fields are not {', '.join(FIELDS)}"
    for name, kinds in FIELDS.items():
        if type(value[name]) not in kinds:
            return f"'{name}' is {kind_of(value[name])}"
        if isinstance(value[name], str) and (fault := text_fault(Origin("reply", 0), name, value[name])):
            return fault.problem
    return Reading(value["critique"].strip(), value["harmful"], value["correction"])
