"""The settings of `aligner evaluate`, checked before anything is read or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aligner.evaluation.judges.dimensions import dimensions_named
from aligner.evaluation.judges.judge import JUDGES
from aligner.records import UserError, require_at_least_one
from aligner.steering.options import SteerOptions

REQUIRED_FLAGS: Mapping[str, tuple[str, ...]] = {  # of a judge, where it is more than --judge_model
    "served": ("judge_url", "judge_model"),
    "reward-cost": ("judge_model", "cost_model"),
    "human": ("labels",),
    "none": (),
}
WRITERS = ("served", "local")  # judges whose replies are tokens
SINGLE_SCORE = {"reward": "helpful", "cost": "harmless"}  # judges of one score, and its dimension by default
REWARD_AND_COST = ("helpful", "harmless")


@dataclass(frozen=True)
class EvaluationConfig:
    """The settings of `aligner evaluate`, a field for each flag. Either `after` or `systems` is given.

    UserError where the flags do not go together.
    """

    output: str
    after: str | None = None
    systems: tuple[str, ...] = ()
    before: str | None = None
    columns: tuple[str, ...] = ()
    limit: int | None = None
    run_folder: str | None = None
    models: tuple[str, ...] = ()
    route: str | None = None
    max_new_tokens: int = 2048
    prompt_template: str | None = None
    trust_remote_code: bool = False
    steering: SteerOptions = SteerOptions()
    dimensions: str | None = None
    judge: str = "none"
    judge_model: str | None = None
    cost_model: str | None = None
    judge_url: str | None = None
    judge_key: str = "OPENAI_API_KEY"
    labels: str | None = None
    batch_size: int = 8
    max_tokens: int = 1024
    concurrency: int = 8
    timeout: float = 600
    price: tuple[float, ...] | None = None
    alpaca_eval: str | None = None
    alpaca_eval_judge: str | None = None

    def __post_init__(self) -> None:
        _ = self.dimension_names
        require_at_least_one(
            limit=self.limit,
            concurrency=self.concurrency,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            max_new_tokens=self.max_new_tokens,
        )
        if self.price and not all(0 <= price < float("inf") for price in self.price):
            raise UserError("--price takes two numbers, from 0 on.")
        self._check_together()

    def _check_together(self) -> None:
        if self.systems and (self.before or self.models or self.route or self.alpaca_eval or self.columns):
            raise UserError("--systems does not go with --before, --models, --route, --alpaca_eval or --columns.")
        if self.steering.steer and len(self.models) != 1:
            raise UserError(f"--steer is for one Aligner: --models DIR ({len(self.models)} are given).")
        if self.judge == "none" and (self.labels or (self.judge_model and not self.alpaca_eval)):
            flag = "labels" if self.labels else "judge_model"
            raise UserError(f"--{flag} needs --judge, of {', '.join(JUDGES[1:])}.")
        for flag in REQUIRED_FLAGS.get(self.judge, ("judge_model",)):
            if not getattr(self, flag):
                raise UserError(f"--judge {self.judge} needs --{flag}.")
        if self.alpaca_eval and not (self.alpaca_eval_judge or self.judge_model):
            raise UserError("--alpaca_eval needs --alpaca_eval_judge, or --judge_url and --judge_model.")

    @property
    def dimension_names(self) -> tuple[str, ...]:
        """What is judged, each dimension once. A model of one score judges one."""
        judge = self.judge
        given = SINGLE_SCORE.get(judge, "helpful,harmless") if self.dimensions is None else self.dimensions
        names = tuple(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
        try:
            dimensions_named(names)
        except UserError as error:
            raise UserError(f"--dimensions: {error}") from None
        if judge == "reward-cost" and (other := [name for name in names if name not in REWARD_AND_COST]):
            raise UserError(f"--judge reward-cost has scores for helpful and harmless, not for {other[0]}.")
        if not names or (judge in SINGLE_SCORE and len(names) > 1):
            raise UserError(
                f"--dimensions names {len(names)}: name one{' that the score stands for' if names else ''}."
            )
        return names

    @property
    def reply_tokens(self) -> int:
        """The longest reply of the judge in tokens, 0 where it writes none."""
        return self.max_tokens if self.judge in WRITERS else 0


@dataclass(frozen=True)
class SetsConfig:
    """The losses of `models` and of a `route` on several sets. sets: NAME=FILE each.

    UserError where the flags do not go together.
    """

    sets: tuple[str, ...]
    output: str
    models: tuple[str, ...] = ()
    route: str | None = None
    columns: tuple[str, ...] = ()
    limit: int | None = None
    prompt_template: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.models and not self.route:
            raise UserError("--sets needs --models, the first being the one before, or --route.")
        require_at_least_one(limit=self.limit)
        names = [name for name, _ in self.files]
        if len(set(names)) < len(names):
            raise UserError(f"--sets has two called '{max(names, key=names.count)}': give each a name of its own.")

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """The name and the file of each set. UserError where one is written otherwise."""
        named = [text.partition("=") for text in self.sets]
        for text, (name, _, file) in zip(self.sets, named, strict=True):
            if not name or not file:
                raise UserError(f"--sets {text}: write NAME=FILE.")
        return tuple((name, file) for name, _, file in named)
