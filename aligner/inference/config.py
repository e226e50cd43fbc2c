"""The settings of `aligner correct`, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from aligner.files import refuse_overwriting
from aligner.records import UserError, require_at_least_one
from aligner.steering.options import SteerOptions


@dataclass(frozen=True)
class AlignerOptions:
    """How a model is opened and how it decodes: the flags that `correct`, `serve`, `calibrate` and `baseline` share."""

    batch_size: int = 8
    max_new_tokens: int = 2048
    prompt_template: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ClusterOptions:
    """Who corrects: this machine, or the workers of a Ray cluster, how many, and how many rows each is given at a time."""

    engine: str = "local"
    workers: int | None = None
    shard_rows: int | None = None

    def __post_init__(self) -> None:
        require_at_least_one(workers=self.workers, shard_rows=self.shard_rows)
        for name in ("workers", "shard_rows"):
            if getattr(self, name) and self.engine != "ray":
                raise UserError(f"--{name} is for --engine ray: give that, or leave it out.")


@dataclass(frozen=True)
class CorrectConfig:
    """The settings of `aligner correct`, a field for each flag. One of `model`, `stack` and `route` is given.

    UserError where the flags do not go together.
    """

    input: str
    output: str
    options: AlignerOptions
    steering: SteerOptions = SteerOptions()
    cluster: ClusterOptions = ClusterOptions()
    model: str | None = None
    stack: tuple[str, ...] | None = None
    route: str | None = None
    columns: tuple[str, ...] = ()
    passes: int = 1
    feedback: str | None = None
    objectives: tuple[str, ...] = ()
    sample: bool = False
    keep_unfinished: bool = False
    keep: str = "code"
    correct_structured: bool = False
    scripts: tuple[str, ...] | None = None
    nats_ahead: float | None = None
    questions: str | None = None
    retry_failed: bool = False
    sentences: bool = False
    upstream_folder: str | None = None
    seed: int = 42
    aligner_url: tuple[str, ...] = ()
    aligner_model: str | None = None
    aligner_key: str = "ALIGNER_API_KEY"
    upstream_url: str | None = None
    upstream_model: str | None = None
    upstream_max_tokens: int | None = None
    upstream_temperature: float | None = None
    upstream_key: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 600

    def __post_init__(self) -> None:
        require_at_least_one(
            batch_size=self.options.batch_size,
            max_new_tokens=self.options.max_new_tokens,
            passes=self.passes,
            concurrency=self.concurrency,
        )
        refuse_overwriting(self.output, self.input)
        for name, needs in (
            ("upstream_folder", "sentences"),
            ("upstream_url", "upstream_model"),
            ("upstream_model", "upstream_url"),
            ("aligner_model", "aligner_url"),
        ):
            if getattr(self, name) and not getattr(self, needs):
                raise UserError(f"--{name} needs --{needs}.")
        if self.aligner_url and self.nats_ahead is not None:
            raise UserError("--nats_ahead weighs corrections with the model here: leave out --aligner_url.")
        if self.cluster.engine == "ray" and (self.retry_failed or self.route):
            flag, why = ("retry_failed", ": few rows failed") if self.retry_failed else ("route", "")
            raise UserError(f"--{flag} is for one machine{why}. Leave out --engine ray.")
        if len(self.aligner_url) > 1 and self.cluster.engine != "ray":
            raise UserError("--aligner_url takes several servers with --engine ray alone: give one.")
        if self.sentences:
            self._check_sentences()
        if self.steering.steer and (self.aligner_url or self.stack or self.route):
            flag = "aligner_url" if self.aligner_url else "stack" if self.stack else "route"
            raise UserError(f"--steer is for one Aligner that runs here: leave out --{flag}.")
        if self.aligner_url and self.stack:
            raise UserError("--aligner_url serves one Aligner: give --model, and run again for the next of a stack.")

        if self.aligner_url and self.route:
            raise UserError(
                f"--aligner_url serves one Aligner: write it into {self.route}, beside the model it belongs to."
            )

    def _check_sentences(self) -> None:
        """UserError where a flag is for whole answers."""
        others = {
            "stack": self.stack,
            "route": self.route,
            "passes": self.passes > 1,
            "sample": self.sample,
            "retry_failed": self.retry_failed,
        }
        others |= {"nats_ahead": self.nats_ahead is not None, "engine ray": self.cluster.engine == "ray"}
        if wrong := next((name for name, value in others.items() if value), None):
            raise UserError(f"--{wrong} is for whole answers: leave it out, or --sentences.")

    @property
    def models(self) -> tuple[str, ...]:
        """The Aligners of the stack, or the one."""
        return self.stack or (self.model or "",)
