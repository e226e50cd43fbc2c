"""A Hugging Face model on this machine as the judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aligner.evaluation.judges.judge import Asked, Said
from aligner.inference.corrector import DTYPES, best_dtype, in_batches
from aligner.inference.sampling import generate
from aligner.models import fingerprint, load_model, load_tokenizer, placement, positions_of
from aligner.records import UserError


@dataclass(frozen=True)
class LocalJudge:
    """An instruct model, decoded greedily through its own chat template; without one the prompt is given as it is."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int = 512
    batch_size: int = 8

    @classmethod
    def load(cls, folder: str, max_tokens: int, batch_size: int = 8, trust_remote_code: bool = False) -> LocalJudge:
        """Open a folder or hub id, on the GPUs there are or on the CPU."""
        model = load_model(folder, DTYPES[best_dtype()], trust_remote_code, **placement()).eval()
        name = fingerprint(folder, trust_remote_code)
        return cls(name, model, load_tokenizer(folder, trust_remote_code), max_tokens, batch_size)

    @property
    def identity(self) -> str:
        """The model's fingerprint and the longest reply."""
        return f"{self.name} {self.max_tokens}"

    def prompt(self, asked: Asked) -> str:
        """The dimension's."""
        return asked.dimension.render(asked.question, asked.first, asked.second)

    def ask(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Said | UserError]]:
        """As `Judge` says."""
        eos = int(self.tokenizer.eos_token_id)
        room = (positions_of(self.model.config) or 10**9) - self.max_tokens
        prompts = [self._ids(self.prompt(each)) for each in asked]
        for place, ids in enumerate(prompts):
            if len(ids) > room:
                yield place, UserError(f"its prompt has {len(ids):,} tokens and the judge room for {max(0, room):,}.")
        by_length = sorted(range(len(asked)), key=lambda place: len(prompts[place]))
        fitting = [place for place in by_length if len(prompts[place]) <= room]
        for batch in in_batches(fitting, self.batch_size):
            made = generate(self.model, [prompts[place] for place in batch], eos, self.max_tokens, None)
            for place, tokens in zip(batch, made, strict=True):
                text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
                yield place, Said(text, len(prompts[place]), len(tokens))

    def _ids(self, prompt: str) -> list[int]:
        if self.tokenizer.chat_template:
            prompt = str(self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            ))  # fmt: skip
            return list(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(prompt)["input_ids"])

    def read(self, asked: Asked, reply: str) -> int | None:
        """The dimension's verdict."""
        return asked.dimension.read(reply)
