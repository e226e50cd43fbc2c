"""The settings of `aligner interpret`, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aligner.inference.config import AlignerOptions
from aligner.records import UserError, require_at_least_one

ALPHAS = (-0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15)
FEWEST = 4  # rows to fit on, and held out: fewer say nothing


@dataclass(frozen=True)
class InterpretConfig:
    """The settings of `aligner interpret`, a field for each flag.

    fit_rows, held_out_rows: how many at most; with fewer, a third and the rest. tokens: of a continuation that are read.
    compare: other models of the same prompt, [NAME=]DIR, each with directions of its own. base: the untrained model (None: the
    one of the card, 'none': left out). effect_rows: held-out answers that are corrected at every alpha, control_rows: of them,
    for random directions and the base. UserError where a number is out of its range.
    """

    model: str
    input: str
    output: str
    options: AlignerOptions
    columns: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()
    base: str | None = None
    fit_rows: int = 60
    held_out_rows: int = 100
    tokens: int = 20
    alphas: tuple[float, ...] = ALPHAS
    effect_rows: int = 24
    control_rows: int = 12
    random_directions: int = 10
    seed: int = 42

    def __post_init__(self) -> None:
        names = ("fit_rows", "held_out_rows", "tokens", "effect_rows", "control_rows", "random_directions")
        options = self.options
        require_at_least_one(
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
            **{name: getattr(self, name) for name in names},
        )
        for name in names[:2]:
            if getattr(self, name) < FEWEST:
                raise UserError(f"--{name} is {getattr(self, name)}: {FEWEST} rows are the fewest that say something.")
        if len(set(self.alphas)) < 3 or 0 not in self.alphas:
            raise UserError("--alphas takes three numbers or more, 0 among them: it is the Aligner as it is.")
        if Path(self.output).is_file():
            raise UserError(f"{self.output}: is a file. Name a folder.")
