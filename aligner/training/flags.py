"""Flags and YAML -> a configuration, through transformers' well-kept parser.

Precedence: default < YAML (`--config`) < flag. A YAML key becomes a flag in front of the others, so both are read and
checked by the one parser.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from aligner.files import read_text
from aligner.records import UserError
from aligner.training.config import PARTS, RunConfig, check


def _spellings() -> dict[str, Field[Any]]:
    """Every flag's spellings without dashes, each with its field."""
    found: dict[str, Field[Any]] = {}
    for part in PARTS:
        for f in fields(part):
            for name in (f.name, *(alias.lstrip("-") for alias in f.metadata.get("aliases", ()))):
                found[name] = f
    return found


SPELLINGS = _spellings()


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, SPELLINGS, n=1)
    return f" Did you mean '{near[0]}'?" if near else " --help lists them."


def yaml_flags(file: str) -> list[str]:
    """The flags that a YAML file stands for. UserError names a key that is none."""
    try:
        value = yaml.safe_load(read_text(file)) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is not YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: must hold 'flag: value' lines.")
    flags: list[str] = []
    for key, setting in value.items():
        if key not in SPELLINGS or key in ("config", "local_rank", "stage"):
            raise UserError(f"{file}: there is no key '{key}'.{_near(str(key))}")
        if isinstance(setting, dict) or (isinstance(setting, list) and SPELLINGS[key].metadata.get("nargs") != "+"):
            raise UserError(f"{file}: '{key}' takes one value.")
        if setting is not None:
            flags += [f"--{key}", *(str(item) for item in (setting if isinstance(setting, list) else [setting]))]
    return flags


def _stop(message: str) -> NoReturn:
    raise UserError(message)


def parser(usage: str) -> HfArgumentParser:
    """The one parser of flags. Its errors are UserErrors."""
    built = HfArgumentParser(
        list(PARTS), allow_abbrev=False, usage=usage, description="Train an Aligner on Q-A-C records."
    )
    built.error = _stop  # type: ignore[method-assign]
    return built


def parse(arguments: Sequence[str], usage: str = "bash scripts/sft-correction.sh [flags]") -> RunConfig:
    """The configuration that flags and their YAML file stand for. UserError names what is wrong and the nearest name."""
    known = parser(usage)
    config_file = _value_of("--config", arguments)
    from_file = yaml_flags(config_file) if config_file else []
    source = f"{config_file}: " if config_file and not _reads(known, from_file) else ""
    try:
        *parts, unknown = known.parse_args_into_dataclasses([*from_file, *arguments], return_remaining_strings=True)
    except UserError as error:
        raise UserError(f"{source}{error}.") from None
    if unknown:
        name = unknown[0].split("=")[0]
        raise UserError(f"there is no flag '{name}'.{_near(name.lstrip('-'))}")
    config = RunConfig(*parts)
    check(config)
    return config


def _reads(known: HfArgumentParser, arguments: Sequence[str]) -> bool:
    try:
        known.parse_args_into_dataclasses(list(arguments), return_remaining_strings=True)
    except UserError:
        return False
    return True


def _value_of(name: str, arguments: Sequence[str]) -> str | None:
    """The last value of a flag that has to be read before all others."""
    found = None
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            found = argument.split("=", 1)[1]
        elif argument == name and index + 1 < len(arguments):
            found = arguments[index + 1]
    return found


def to_flags(config: RunConfig) -> list[str]:
    """The flags that parse back to this configuration, defaults left out: for command.sh and for the ranks."""
    flags: list[str] = []
    for part in (config.model, config.data, config.optimization, config.output, config.launch):
        for f in fields(part):
            value = getattr(part, f.name)
            default = [] if f.metadata.get("nargs") == "+" else f.default
            if value != default and f.name not in ("config", "local_rank"):
                flags += [f"--{f.name}", *(str(item) for item in (value if isinstance(value, list) else [value]))]
    return flags
