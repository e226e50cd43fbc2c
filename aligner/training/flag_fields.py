"""Dataclass fields that are flags: the default, the help with its unit, further spellings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

NO_DEFAULT = "%(default).0s"  # keeps the parser from writing "(default: None)" behind a help


def flag(default: Any, text: str, *, short: str | None = None, choices: Sequence[Any] = ()) -> Any:
    """A dataclass field that is a flag: its default, its help with the unit, a second spelling, its choices."""
    hidden = default is None or default is False or default == []
    metadata: dict[str, Any] = {"help": text.replace("%", "%%") + (NO_DEFAULT if hidden else "")}
    if not choices and default is not True:  # the parser gives a true one a second form, --no_NAME, without a value
        metadata["metavar"] = {int: "N", float: "X", bool: "yes|no"}.get(type(default), "VALUE")
    if short:
        metadata["aliases"] = [short]
    if choices:
        metadata["choices"] = list(choices)
    if isinstance(default, list):
        return field(default_factory=list, metadata={**metadata, "nargs": "+"})
    return field(default=default, metadata=metadata)


def switch(text: str) -> Any:
    """An optional boolean: without a value (`--bf16`), with one (`--bf16 False`), or absent."""
    return field(default=None, metadata={"help": text + NO_DEFAULT, "nargs": "?", "const": True, "metavar": "yes|no"})
