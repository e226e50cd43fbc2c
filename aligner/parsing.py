"""The guard around the readers of JSON and YAML: whatever a text holds, there is a value or a ValueError of one line."""

from __future__ import annotations

import json
from typing import Any

import yaml

LONGEST_YAML = 1_000_000  # characters; settings are written by hand
MOST_VALUES = 100_000  # in a YAML file, an alias counted as often as it is used: ten lines can stand for billions


def json_value(text: str | bytes, strict: bool = False) -> Any:
    """A value of JSON. `strict`: without NaN, numbers too large and repeated keys, which other readers of JSON refuse or read
    otherwise."""
    hooks = {"parse_constant": _refuse_number, "parse_float": _finite, "object_pairs_hook": _each_key_once}
    try:
        return json.loads(text, **hooks if strict else {})  # type: ignore[arg-type]
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:  # the parser's own may go on for lines, about a number of thousands of digits
        if isinstance(error, json.JSONDecodeError | UnicodeError) or strict:
            raise
        raise ValueError("a number in it has thousands of digits") from None


def _refuse_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands in an object twice")
    return value


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) != float("inf") else _refuse_number(text[:40])


def yaml_value(text: str) -> Any:
    """A value of YAML, of plain types alone."""
    if len(text) > LONGEST_YAML:
        raise ValueError(f"it has {len(text):,} characters, and at most {LONGEST_YAML:,} are read")
    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # a wrong date, number or truth value raises whatever its conversion does
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None
    todo, count = [value], 0
    while todo:
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"with its aliases it stands for more than {MOST_VALUES:,} values")
        each = todo.pop()
        todo += each if isinstance(each, list | set) else [*each, *each.values()] if isinstance(each, dict) else ()
    return value
