"""The part `comparison` of an experiment: which questions, which upstream, which methods."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from aligner.baselines.config import BaselineConfig
from aligner.baselines.methods import METHODS
from aligner.evaluation.measures.config import MEASURES
from aligner.inference.config import AlignerOptions
from aligner.records import UserError

TEXT_MEASURES = tuple(name for name in MEASURES if name in ("truth", "declining"))  # of an upstream's own answers
UPSTREAM = "upstream"  # the method that is the upstream as it is
OWN = ("method", "input", "aligner")  # keys of a method, besides flags
SET_BY_STEP = {"method", "input", "output", "aligner", "options"}  # each step's own; options are flags in turn
FLAGS = {field.name for kind in (BaselineConfig, AlignerOptions) for field in fields(kind)} - SET_BY_STEP


@dataclass(frozen=True)
class Comparison:
    """questions: of each measure the file, and how many of its questions. upstream: flags of `aligner baseline`. methods: of each
    its name there (method), flags, the method whose output it begins with (input), and whether an Aligner stands behind it too
    (aligner). prompts: in the place of the shipped ones."""

    questions: Mapping[str, tuple[str, int]]
    upstream: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    prompts: Mapping[str, str] = field(default_factory=dict)

    def flags(self, name: str) -> dict[str, Any]:
        """The flags of a method, without its files."""
        return {key: value for key, value in self.methods[name].items() if key not in OWN}


def read_comparison(place: str, value: Any) -> Comparison:
    """The part as a YAML file has it. UserError where something is missing, unknown or misspelt."""
    keys = Comparison.__dataclass_fields__
    if not isinstance(value, dict) or not {"questions", "upstream", "methods"} <= value.keys() <= set(keys):
        raise UserError(f"{place}: needs questions, upstream and methods, and may have prompts.")
    for measure, pair in value["questions"].items():
        if measure not in TEXT_MEASURES:
            raise UserError(f"{place}: questions: '{measure}' is none of {', '.join(TEXT_MEASURES)}.")
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], int)):
            raise UserError(f"{place}: questions: {measure} needs a file and a number.")
    earlier: list[str] = []
    for name, method in value["methods"].items():
        if not isinstance(method, dict) or method.get("method") not in METHODS:
            raise UserError(f"{place}: {name}: needs a method, of {', '.join(METHODS)}.")
        if method.get("input", UPSTREAM) not in [*earlier, UPSTREAM]:
            raise UserError(f"{place}: {name}: its input '{method['input']}' is no method before it.")
        known_flags(f"{place}: {name}", {key for key in method if key not in OWN})
        earlier.append(name)
    known_flags(f"{place}: upstream", set(value["upstream"]))
    if earlier[:1] != [UPSTREAM] or not value["methods"][UPSTREAM].get("aligner"):
        raise UserError(f"{place}: the first method is '{UPSTREAM}', with aligner: true.")
    return Comparison(**{**value, "questions": {name: tuple(pair) for name, pair in value["questions"].items()}})


def known_flags(place: str, names: set[str]) -> None:
    """UserError for a name that is no flag of `aligner baseline`."""
    if unknown := sorted(names - FLAGS):
        near = difflib.get_close_matches(unknown[0], FLAGS, n=1)
        raise UserError(f"{place}: there is no flag '{unknown[0]}'.{f' Did you mean {near[0]!r}?' if near else ''}")
