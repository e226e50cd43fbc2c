"""A Hugging Face model on this machine as the judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from aligner.evaluation.judges.dimensions import CUT_OFF
from aligner.evaluation.judges.judge import JudgeReply, JudgeRequest
from aligner.inference.corrector import DTYPES, best_dtype, in_batches, memory_named
from aligner.inference.sampling import generate
from aligner.models import device_map_options, fingerprint, load_model, load_tokenizer, positions_of
from aligner.records import UserError


@dataclass(frozen=True)
class LocalJudge:
    """An instruct model, decoded greedily through its own chat template; without one the prompt is given as it is.

    `ends`: the tokens that end its reply. A model's turn may end with another one than its texts.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    max_tokens: int = 1024
    batch_size: int = 8

    @classmethod
    def load(cls, folder: str, max_tokens: int, batch_size: int = 8, trust_remote_code: bool = False) -> LocalJudge:
        """Open a folder or hub id, on the GPUs there are or on the CPU."""
        dtype = DTYPES[best_dtype()]
        model = load_model(
            folder, dtype, trust_remote_code, **device_map_options(folder, dtype, trust_remote_code)
        ).eval()
        name, tokenizer = fingerprint(folder, trust_remote_code), load_tokenizer(folder, trust_remote_code)
        own = model.generation_config.eos_token_id
        ends = dict.fromkeys(
            [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own] if own is not None else [])]
        )
        model.generation_config = GenerationConfig()  # its own could add penalties, which disturb copied verdicts
        return cls(name, model, tokenizer, tuple(ends), max_tokens, batch_size)

    @property
    def identity(self) -> str:
        """The model's fingerprint and the longest reply."""
        return f"{self.name} {self.max_tokens}"

    def prompt(self, request: JudgeRequest) -> str:
        """The dimension's."""
        return request.dimension.render(request.question, request.first, request.second)

    def ask(self, requests: Sequence[JudgeRequest]) -> Iterator[tuple[int, JudgeReply | UserError]]:
        """As `Judge` says."""
        room = (positions_of(self.model.config) or 10**9) - self.max_tokens
        prompts = [self._ids(self.prompt(each)) for each in requests]
        for place, ids in enumerate(prompts):
            if len(ids) > room:
                yield place, UserError(f"its prompt has {len(ids):,} tokens and the judge room for {max(0, room):,}.")
        longest_first = sorted(
            range(len(requests)), key=lambda place: -len(prompts[place])
        )  # memory fails at once or never
        fitting = [place for place in longest_first if len(prompts[place]) <= room]
        for place, tokens in memory_named(self._generate(prompts, fitting), "--batch_size or --max_tokens"):
            text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
            cut = "" if tokens[-1] in self.ends else CUT_OFF
            yield place, JudgeReply(text + cut, len(prompts[place]), len(tokens))

    def _generate(self, prompts: Sequence[list[int]], places: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        for batch in in_batches(places, self.batch_size):
            outputs = generate(self.model, [prompts[place] for place in batch], self.ends, self.max_tokens, None)
            yield from zip(batch, outputs, strict=True)

    def _ids(self, prompt: str) -> list[int]:
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": prompt}]
            chat = str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
            return list(self.tokenizer(chat, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(prompt)["input_ids"])

    def read(self, request: JudgeRequest, reply: str) -> int | None:
        """The dimension's verdict."""
        return request.dimension.read(reply)
