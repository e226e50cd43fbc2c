"""Reward and cost models as judges: each response has a score, and the higher (a reward) or lower (a cost) is better.

Two layouts: a sequence-classification head, as `AutoModelForSequenceClassification` opens it; and the score head of Safe-RLHF
(PKU-Alignment/safe-rlhf, `AutoModelForScore`): a base model, and `score_head.weight` (1 x hidden) with or without a bias, on
the hidden state of the last token. Its normaliser is monotone and changes no comparison; it is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from aligner.evaluation.judges.judge import JudgeReply, JudgeRequest
from aligner.models import device_map_options, fingerprint, load_config, load_tokenizer, positions_of
from aligner.parsing import json_value
from aligner.records import UserError

SAFE_RLHF = "BEGINNING OF CONVERSATION: USER: {question} ASSISTANT:{response}"  # and end-of-text
LONGEST = 4096  # tokens of a question and a response, or the model's positions
Score = Callable[[list[int]], float]


@dataclass(frozen=True)
class ScoreJudge:
    """A model that scores. `costs`: whether a lower score is better. `score`: of the ids of a question and a response."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    score: Score
    costs: bool
    longest: int
    known: dict[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str, costs: bool, trust_remote_code: bool = False) -> ScoreJudge:
        """Open a folder or hub id of either layout. UserError where it is neither."""
        config = load_config(folder, trust_remote_code)
        safe_rlhf = any(name.endswith("ForScore") for name in config.architectures or [])
        opened = _score_head if safe_rlhf else _classifier
        name = fingerprint(folder, trust_remote_code)
        longest = min(LONGEST, positions_of(config) or LONGEST)
        return cls(name, load_tokenizer(folder, trust_remote_code), opened(folder, trust_remote_code), costs, longest)

    @property
    def identity(self) -> str:
        """The model's fingerprint, and whether its score is a reward or a cost."""
        return f"{self.name} {'cost' if self.costs else 'reward'}"

    def prompt(self, request: JudgeRequest) -> str:
        """What is scored: the question and both responses. The dimension is the model's own."""
        return json.dumps([request.question, request.first, request.second])

    def ask(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, JudgeReply | UserError]]:
        """As `Judge` says; the reply is the two scores."""
        for place, each in enumerate(requests):
            try:
                scores = [self.score_of(each.question, response) for response in (each.first, each.second)]
                yield place, JudgeReply(json.dumps([round(score, 6) for score in scores]))
            except UserError as error:
                yield place, error

    def score_of(self, question: str, response: str) -> float:
        """The model's score of a response. UserError where it is too long, or the score is no number."""
        if (question, response) not in self.known:
            ids = self._ids(question, response)
            if len(ids) > self.longest:
                raise UserError(
                    f"a response has {len(ids):,} tokens with its question; at most {self.longest:,} are scored."
                )
            score = self.score(ids)
            if not math.isfinite(score):
                raise UserError(f"the model's score of it is {score}.")
            self.known[question, response] = score
        return self.known[question, response]

    def tokens_of(self, question: str, response: str) -> int:
        """How many tokens are read for it."""
        return len(self._ids(question, response))

    def _ids(self, question: str, response: str) -> list[int]:
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
            text = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        before, _, after = SAFE_RLHF.partition("{question}")
        text = before + question + after.replace("{response}", "") + response
        return [*self.tokenizer(text)["input_ids"], int(self.tokenizer.eos_token_id)]

    def read(self, request: JudgeRequest, reply: str) -> int | None:
        """By the scores; None where they are none."""
        try:
            first, second = json_value(reply)
            difference = float(first) - float(second)
        except (ValueError, TypeError, OverflowError):
            return None
        if difference != difference:  # not a number
            return None
        return ((difference > 0) - (difference < 0)) * (-1 if self.costs else 1)


@torch.inference_mode()
def _evaluate(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    device = next(model.parameters()).device
    output: torch.Tensor = model(input_ids=torch.tensor([ids], device=device))[0]
    return output


def _on_device(kind: Any, folder: str, trust_remote_code: bool) -> Any:
    model, info = kind.from_pretrained(
        folder,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        **device_map_options(folder, torch.float32, trust_remote_code),
    )
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder}: has no trained {missing[0]}, so it is no model that scores.")
    return model.eval()


def _classifier(folder: str, trust_remote_code: bool) -> Score:
    model = _on_device(AutoModelForSequenceClassification, folder, trust_remote_code)
    if model.config.num_labels != 1:
        raise UserError(f"{folder}: its head has {model.config.num_labels} labels; a reward model has one.")
    return lambda ids: float(_evaluate(model, ids)[0, 0])


def _score_head(folder: str, trust_remote_code: bool) -> Score:
    model = _on_device(AutoModel, folder, trust_remote_code)
    weight, bias = _tensor(folder, "score_head.weight"), _tensor(folder, "score_head.bias", required=False)

    def score(ids: list[int]) -> float:
        hidden_D = _evaluate(model, ids)[0, -1].float().cpu()
        return float((weight.float() @ hidden_D + (bias.float() if bias is not None else 0))[0])  # type: ignore[union-attr]

    return score


def _tensor(folder: str, name: str, required: bool = True) -> torch.Tensor | None:
    from safetensors import safe_open

    if not Path(folder).is_dir():
        from huggingface_hub import snapshot_download

        folder = snapshot_download(folder, allow_patterns=["*.safetensors"])
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            if name in opened.keys():  # noqa: SIM118 (no mapping)
                tensor: torch.Tensor = opened.get_tensor(name)
                return tensor
    if required:
        raise UserError(f"{folder}: has no {name} in its safetensors files, so it is no score model of Safe-RLHF.")
    return None
