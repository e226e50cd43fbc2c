"""A step of an evaluation: the command that a person would type, in a process of its own, from files to files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner.files import read_json, write_json
from aligner.parsing import json_value
from aligner.records import UserError

Flags = Mapping[str, Any]


class StepFailed(UserError):
    """A command that could not be carried out. It has printed the reason itself."""


def command(name: str, flags: Flags, *plain: str) -> int:
    """Run `aligner NAME PLAIN... --flags`. An exit status of 0 or 1 (some rows failed) is returned; StepFailed for another one."""
    words = [word for flag, value in flags.items() for word in _words(flag, value)]
    status = subprocess.run([sys.executable, "-m", "aligner", name, *plain, *words], check=False).returncode
    if status not in (0, 1):
        raise StepFailed(f"aligner {name} ended with {status}: see above. The same command continues from there.")
    return status


def _words(flag: str, value: Any) -> list[str]:
    if value is None:  # an empty value in YAML
        return []
    if isinstance(value, bool):
        return [f"--{flag}"] if value else []
    return [f"--{flag}", *(map(str, value) if isinstance(value, list) else [str(value)])]


def the_same(file: Path, settings: Flags, product: Path) -> None:
    """Write down the settings of `product`. UserError where it exists and has other settings."""
    if product.exists() and file.exists() and (before := read_json(file)) != json_value(json.dumps(settings)):
        changed = min(name for name in before.keys() | settings.keys() if before.get(name) != settings.get(name))
        raise UserError(
            f"{file.parent}: was made with other {changed} ({file.name} says which). Name another output, or remove it."
        )
    write_json(file, settings)
