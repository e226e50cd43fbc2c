"""The settings of `aligner baseline`, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from aligner.baselines.methods import METHODS, MethodSettings
from aligner.baselines.prompts import read_prompts
from aligner.files import refuse_overwriting
from aligner.inference.config import AlignerOptions
from aligner.records import UserError, require_at_least_one

REWARDS = ("likelihood", "reward", "cost", "served")
USED_BY = {"n": "bon", "temperature": "bon", "reward": "bon", "width": "beam"}
DIALECTS = ("openai", "vllm", "transformers")


@dataclass(frozen=True)
class BaselineConfig:
    """The settings of `aligner baseline`, a field for each flag. Either `model` or `upstream_url` is given. None: not given.

    UserError where the flags do not go together.
    """

    method: str
    input: str
    output: str
    options: AlignerOptions
    model: str | None = None
    upstream_url: str | None = None
    upstream_model: str | None = None
    upstream_key: str = "OPENAI_API_KEY"
    dialect: str = "openai"
    n: int | None = None
    width: int | None = None
    rounds: int = 1
    temperature: float | None = None
    prompts: str | None = None
    reward: str | None = None
    reward_model: str | None = None
    judge_url: str | None = None
    judge_key: str = "OPENAI_API_KEY"
    dimension: str = "helpful"
    aligner: str | None = None
    columns: tuple[str, ...] = ()
    seed: int = 42
    concurrency: int = 8
    timeout: float = 600

    def __post_init__(self) -> None:
        require_at_least_one(
            n=self.n,
            width=self.width,
            rounds=self.rounds,
            max_new_tokens=self.options.max_new_tokens,
            batch_size=self.options.batch_size,
            concurrency=self.concurrency,
        )
        refuse_overwriting(self.output, self.input)
        if bool(self.model) == bool(self.upstream_url):
            raise UserError("the upstream is --model DIR, or --upstream_url URL with --upstream_model NAME: give one.")
        if bool(self.upstream_url) != bool(self.upstream_model):
            raise UserError("--upstream_url and --upstream_model belong together: give both.")
        for flag, method in USED_BY.items():
            if getattr(self, flag) is not None and self.method != method:
                raise UserError(f"--{flag} is for '{method}', and the method is '{self.method}': leave it out.")
        if self.rounds > 1 and self.method not in ("refine", "revise"):
            raise UserError(f"--rounds is for refine and revise, and the method is '{self.method}': leave it out.")
        if self.temperature is not None and not 0 < self.temperature <= 2:
            raise UserError(f"--temperature is {self.temperature:g}: best-of-N draws, so it is above 0, at most 2.")
        self._check_models()

    def _check_models(self) -> None:
        reward = self.reward_kind
        if self.method == "bon" and reward != "likelihood" and not self.reward_model:
            raise UserError(f"--reward {reward} needs --reward_model.")
        if self.method == "bon" and reward == "likelihood" and not (self.reward_model or self.model):
            raise UserError("--reward likelihood needs --reward_model: a served upstream gives no likelihoods here.")
        if self.reward_model and self.method != "bon":
            raise UserError(f"--reward_model is for 'bon', and the method is '{self.method}': leave it out.")
        if (reward == "served") != bool(self.judge_url):
            raise UserError("--reward served and --judge_url belong together: give both.")
        if self.options.prompt_template and not self.aligner:
            raise UserError("--prompt_template is of --aligner: give both.")
        if self.method == "beam" and self.beams > 1 and self.upstream_url and self.dialect == "openai":
            raise UserError(
                "OpenAI's protocol has no beam search: --dialect vllm or transformers says how this server is asked for it."
            )

    @property
    def reward_kind(self) -> str:
        """What best-of-N chooses by."""
        return self.reward or "likelihood"

    @property
    def beams(self) -> int:
        """Of beam search."""
        return 4 if self.width is None else self.width

    def method_settings(self) -> MethodSettings:
        """The settings as the methods take them. UserError where the prompts cannot be read."""
        assert self.method in METHODS
        temperature = 0.7 if self.temperature is None else self.temperature
        return MethodSettings(read_prompts(self.prompts), self.n or 5, self.beams, self.rounds, temperature, self.seed)
