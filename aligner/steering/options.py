"""The flags `--steer DIR --alpha A` of the commands that decode."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from aligner.files import sha256_of
from aligner.records import UserError

FURTHEST = 10  # times a state's length: nothing of the state is left to be heard


@dataclass(frozen=True)
class SteerOptions:
    """The flags of steering: `steer` names the folder of an `aligner interpret`, `alpha` how far (in units of the residual's norm),
    `steer_layer` where (from 1; the card's, where none is given). UserError where they do not go together."""

    steer: str | None = None
    alpha: float | None = None
    steer_layer: int | None = None

    def __post_init__(self) -> None:
        if (self.steer is None) != (self.alpha is None):
            raise UserError("--steer DIR and --alpha A belong together: alpha is how far, 0 not at all.")
        if self.steer_layer is not None and self.steer is None:
            raise UserError("--steer_layer needs --steer DIR.")
        if self.alpha is not None and not abs(self.alpha) <= FURTHEST:
            raise UserError(f"--alpha is {self.alpha}: it is a number such as 0.1, mostly between -1 and 1.")

    def digests(self) -> list[str]:
        """What decides the directions: the folder may be written anew under the same name."""
        return [sha256_of(self.steer)] if self.steer else []

    def flags(self) -> dict[str, Any]:
        """Those that are given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


NOT_STEERED = SteerOptions()
