"""The settings of `aligner rounds`, checked before anything is asked or trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aligner.inference.config import AlignerOptions
from aligner.records import UserError, require_at_least_one
from aligner.rounds.filters import Filters

METHODS = ("sft", "dpo", "rloo")


@dataclass(frozen=True)
class RoundsConfig:
    """A field for each flag. upstream: the folder or hub id that the first round starts from. held_out: a file of questions to
    measure on, or how many of `questions`. shuffled: the control, whose corrections are dealt out among the questions. further:
    flags of training, for the upstream's. UserError where the flags do not go together."""

    upstream: str
    aligner: str
    questions: str
    output: str
    method: str = METHODS[0]
    rounds: int = 1
    limit: int | None = None
    held_out: str = "100"
    help_and_harm: str | None = None
    aligner_each_round: bool = False
    aligner_base: str | None = None
    aligner_config: str | None = None
    train_config: str | None = None
    reward_config: str | None = None
    least_edit: float = 0.0
    length_ratio: tuple[float, ...] = (0.0, float("inf"))
    shuffled: bool = False
    keep_going: bool = False
    upstream_url: str | None = None
    upstream_model: str | None = None
    upstream_key: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 600
    options: AlignerOptions = AlignerOptions()
    further: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_at_least_one(
            rounds=self.rounds,
            batch_size=self.options.batch_size,
            max_new_tokens=self.options.max_new_tokens,
            concurrency=self.concurrency,
        )
        for name, needs in (("upstream_url", "upstream_model"), ("upstream_model", "upstream_url")):
            if getattr(self, name) and not getattr(self, needs):
                raise UserError(f"--{name} needs --{needs}.")
        if self.aligner_each_round and self.rounds < 2:
            raise UserError("--aligner_each_round trains one from the second round on: give --rounds 2 or more.")
        for name in ("aligner_base", "aligner_config"):
            if getattr(self, name) and not self.aligner_each_round:
                raise UserError(f"--{name} is for --aligner_each_round.")
        if self.reward_config and self.method != "rloo":
            raise UserError("--reward_config is for --method rloo.")
        if self.held_out.isdecimal() and int(self.held_out) < 2:
            raise UserError(f"--held_out is {self.held_out}: an interval needs 2 questions at least.")
        least, most = self.length_ratio
        Filters(self.least_edit, (least, most))

    @property
    def server(self) -> dict[str, Any]:
        """How the server is called that answers; empty where the upstream is here."""
        address = {"url": self.upstream_url, "key": self.upstream_key, "timeout": self.timeout}
        return {**address, "concurrency": self.concurrency} if self.upstream_url else {}
