"""Flags and YAML -> a configuration, through transformers' well-kept parser.

Precedence: default < YAML (`--config`) < flag. A YAML key becomes a flag in front of the others, so both are read and
checked by the one parser.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from aligner.files import read_text, read_yaml
from aligner.records import UserError
from aligner.shipped import find_config
from aligner.training.config import PARTS, RunConfig
from aligner.training.config_check import check
from aligner.training.flag_fields import NO_DEFAULT

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds scripts/ and configs/
ABOUT = (
    "Train an Aligner on Question-Answer-Correction records. Without data and model the embedded default is trained, "
    "on whatever this machine has. --dry_run shows what would be done. A flag may be written with - or _ between its "
    "words, and may be a key of a YAML file (--config); a yes|no flag may have no value."
)


def _spellings() -> dict[str, Field[Any]]:
    """Every flag's spellings without dashes, each with its field."""
    fields_by_name: dict[str, Field[Any]] = {}
    for part in PARTS:
        for f in fields(part):
            for name in (f.name, *(alias.lstrip("-") for alias in f.metadata.get("aliases", ()))):
                fields_by_name[name] = f
    return fields_by_name


SPELLINGS = _spellings()


def _near(name: str) -> str:
    near = difflib.get_close_matches(name, SPELLINGS, n=1)
    return f" Did you mean '{near[0]}'?" if near else " --help lists them."


def yaml_flags(file: str) -> list[str]:
    """The flags of a YAML file. UserError for a key that is no flag."""
    place = find_config(file)
    value = read_yaml(place)
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise UserError(f"{file}: must hold 'flag: value' lines.")
    node = yaml.compose(read_text(place), Loader=yaml.SafeLoader)  # which has a key as often as it stands there
    keys = [key.value for key, _ in node.value] if value else []
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"{file}: the key '{twice[0]}' stands in it twice.")
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
    built = HfArgumentParser(list(PARTS), allow_abbrev=False, usage=usage, description=ABOUT)
    built.error = _stop  # type: ignore[method-assign]
    for action in built._actions:  # argparse has no public way to list them
        one_spelling(action)
    return built


def one_spelling(action: argparse.Action) -> None:
    """Show a flag in help and errors as --with_underscores alone, which the design's command lines have; both are still read.
    The off form of a flag says that it is one (the parser gave it the help of its opposite)."""
    action.option_strings = [text for text in action.option_strings if "-" not in text[2:]] or action.option_strings
    if isinstance(action, argparse._StoreFalseAction):
        action.help = f"the same as --{action.dest} False" + NO_DEFAULT


def parse(arguments: Sequence[str], usage: str = "bash scripts/sft-correction.sh [flags]") -> RunConfig:
    """The configuration from flags and their YAML file. UserError names the error and the nearest flag."""
    known = parser(usage)
    config = _parse(known, arguments)
    if file := config.launch.config:
        from_file = yaml_flags(file)
        try:
            _parse(known, from_file)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        config = _parse(known, [*from_file, *arguments])
    check(config)
    return config


def _parse(known: HfArgumentParser, arguments: Sequence[str]) -> RunConfig:
    try:
        *parts, unknown = known.parse_args_into_dataclasses(list(arguments), return_remaining_strings=True)
    except UserError as error:
        raise UserError(f"{error}.") from None
    if unknown:
        name = unknown[0].split("=")[0]
        raise UserError(f"there is no flag '{name}'.{_near(name.lstrip('-'))}")
    return RunConfig(*parts)


def to_flags(config: RunConfig) -> list[str]:
    """The flags that parse back to this configuration, defaults left out: for command.sh and for the ranks."""
    flags: list[str] = []
    for part in vars(config).values():
        for f in fields(part):
            value = getattr(part, f.name)
            default = [] if f.metadata.get("nargs") == "+" else f.default
            if value != default and f.name not in ("config", "local_rank"):
                words = [str(item) for item in (value if isinstance(value, list) else [value])]
                flags += [f"--{f.name}={words[0]}"] if words[0].startswith("-") else [f"--{f.name}", *words]
    return flags


def rerun_script(config: RunConfig) -> str:
    """A shell script that runs this run again from wherever it is called (command.sh)."""
    script = ROOT / "scripts" / "sft-correction.sh"
    program = ["bash", str(script)] if script.is_file() else [sys.executable, "-m", "aligner.launch"]
    line = shlex.join([*program, *to_flags(replace(config, launch=replace(config.launch, stage=None)))])
    return f'#!/usr/bin/env bash\ncd {shlex.quote(str(Path.cwd()))} && exec {line} "$@"\n'
