"""The settings of `aligner evaluate --measure`, checked before anything is read or loaded."""

from __future__ import annotations

from dataclasses import dataclass

from aligner.records import UserError, require_at_least_one
from aligner.steering.options import SteerOptions
from aligner.training.datasets.damage import damage_plan

MEASURES = ("restoration", "preference", "declining", "truth", "objectives")


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured: one Aligner (`models` has one) on `rows`, beside its controls.

    base: the untrained model (None: the one its card names; 'none': left out). shuffled: an Aligner trained on shuffled
    corrections (of `objectives`: on shuffled objectives). control_limit: answers that models among the controls correct at most.
    tried: recipes that were tried before this one was chosen. nats_ahead: of `aligner correct`, for all models. objectives: what
    is asked for by name, comma-separated (None: all that the Aligner knows and a text shows). steering: of the Aligner alone.
    UserError where the flags do not go together.
    """

    output: str
    measure: str
    rows: str | None = None
    models: tuple[str, ...] = ()
    shuffled: str | None = None
    base: str | None = None
    damage: str | None = None
    hold_back: str | None = None
    control_limit: int = 60
    tried: int = 1
    limit: int | None = None
    max_new_tokens: int = 256
    batch_size: int = 8
    prompt_template: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    nats_ahead: float | None = None
    objectives: str | None = None
    steering: SteerOptions = SteerOptions()

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise UserError(f"--measure {self.measure}: there are {', '.join(MEASURES)}.")
        if not self.rows:
            raise UserError(f"--measure {self.measure} needs --rows.")
        if len(self.models) != 1:
            raise UserError(f"--measure {self.measure} needs one Aligner: --models DIR ({len(self.models)} are given).")
        if (self.damage or self.hold_back) and self.measure != "restoration":
            raise UserError(f"--{'damage' if self.damage else 'hold_back'} is for --measure restoration.")
        if self.objectives and self.measure != "objectives":
            raise UserError("--objectives is for --measure objectives.")
        if self.nats_ahead is not None and self.measure == "preference":
            raise UserError(
                "--nats_ahead is for measures of corrected texts; preference compares likelihoods as they are."
            )
        require_at_least_one(
            limit=self.limit,
            control_limit=self.control_limit,
            tried=self.tried,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )
        damage_plan(self.damage, self.hold_back)
