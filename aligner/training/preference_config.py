"""The flags of training an upstream on preferences, which is TRL's work: what its losses and its samplers take."""

from __future__ import annotations

from dataclasses import dataclass

from aligner.training.flag_fields import flag

SFT = "sft"  # this project's own loop
ONLINE = ("rloo", "grpo")  # the model answers while it is trained, and a reward model scores
PAIRED = ("dpo", "kto", "reward")  # a row is a correction and an answer
METHODS = (SFT, *PAIRED, *ONLINE)


@dataclass(frozen=True)
class PreferenceConfig:
    """Which loss is trained, and what it takes besides the recipe. None: as TRL has it by default."""

    _argument_group_name = "preferences, for an upstream (by TRL)"
    method: str = flag(
        SFT,
        "sft: corrections by likelihood, as an Aligner learns; dpo, kto: the correction before the answer; reward: a model that "
        "scores the correction higher; rloo, grpo: answers drawn and scored by --reward_model. configs/upstream/METHOD.yaml has "
        "the paper's values",
        choices=METHODS,
    )
    beta: float | None = flag(
        None, "of dpo, kto, rloo, grpo: how strongly it is kept near the model it starts from (TRL: 0.1, 0.1, 0.05, 0)"
    )
    sft_weight: float | None = flag(
        None,
        "of dpo: also learn the correction by likelihood, at this weight beside the preference (TRL's loss 'sft'; none): "
        "without it both texts may become less likely",
    )
    reward_model: str | None = flag(None, "of rloo and grpo: a folder that --method reward made, or a hub id")
    num_generations: int | None = flag(None, "of rloo and grpo: answers drawn to a question (TRL: 2 and 8)")
    max_completion_length: int | None = flag(None, "of rloo and grpo: longest drawn answer in tokens (TRL: 512)")
    temperature: float | None = flag(None, "of rloo and grpo: of drawn answers (TRL: 1)")

    @property
    def by_trl(self) -> bool:
        """Whether TRL trains, and not this project's own loop."""
        return self.method != SFT
