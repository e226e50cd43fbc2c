"""building.yaml -> settings, read strictly, before anything is paid for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from aligner.building.config import BuildConfig
from aligner.building.config_check import findings
from aligner.files import read_yaml
from aligner.records import UserError
from aligner.texts import kind_of


def read_config(file: str) -> BuildConfig:
    """The settings in a file. UserError, naming the place, where one is missing, unknown, or cannot be meant."""
    config: BuildConfig = _filled(BuildConfig, read_yaml(file), file, "")
    for place, finding in findings(config):
        raise UserError(f"{file}: {place}: {finding}")
    return config


def _filled(kind: Any, value: Any, file: str, place: str) -> Any:
    """A dataclass from names and values."""
    where = f"{file}: {place}: " if place else f"{file}: "
    if not isinstance(value, Mapping):
        raise UserError(f"{where}holds {kind_of(value)}, not names and values.")
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    for name in value:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise UserError(f"{where}'{name}' is not known. {f'Did you mean {near[0]!r}?' if near else 'Remove it.'}")
    for name, field in known.items():
        if name not in value and field.default is MISSING:
            raise UserError(f"{where}'{name}' is missing.")
    inside = f"{place}." if place else ""
    return kind(**{name: _value(hints[name], each, file, f"{inside}{name}") for name, each in value.items()})


def _value(hint: Any, value: Any, file: str, place: str) -> Any:
    """A value of the type that a field has."""
    if is_dataclass(hint):
        return _filled(hint, value, file, place)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{file}: {place}: holds {kind_of(value)}, not a list.")
        return tuple(_value(get_args(hint)[0], each, file, f"{place}[{n}]") for n, each in enumerate(value))
    choices = get_args(hint) or (hint,)
    if value is None and type(None) in choices:
        return None
    if float in choices and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not any(type(value) is choice for choice in choices):
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise UserError(f"{file}: {place}: holds {kind_of(value)}, not {names[choices[0]]}.")
    return value
