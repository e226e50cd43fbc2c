"""A folder that `aligner build` wrote: what its rows are, for the card of a model that is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligner.files import is_completed, read_json
from aligner.hub import is_hub_address
from aligner.readers.paths import BUILD, home_expanded
from aligner.records import UserError


def build_of(path: str) -> dict[str, Any] | None:
    """What the build says of itself; None where a path is no build's folder. UserError where it is not finished."""
    place = Path() if is_hub_address(path) else home_expanded(path)
    place = place.parent if place.is_file() else place
    if is_hub_address(path) or not (place / "stages").is_dir() or not (place / "replies").is_dir():
        return None
    if not is_completed(place):
        raise UserError(f"{path}: is a build that is not finished. Run its 'aligner build' again.")
    value = read_json(place / BUILD)
    return value if isinstance(value, dict) else None
