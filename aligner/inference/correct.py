"""correct(pairs): the corrected answer for each question and answer, by plain batched greedy generation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from aligner.card import prompt_of
from aligner.encoder import Encoder
from aligner.files import read_rows, whole_file
from aligner.models import load_model, load_tokenizer
from aligner.prompts import PromptTemplate
from aligner.records import DataError, UserError


@dataclass(frozen=True)
class Corrected:
    """A corrected answer. `finished`: the model ended it by itself and was not cut off."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Corrector:
    """An Aligner ready to use: its model, its tokenizer, and the prompt it was trained with."""

    model: PreTrainedModel
    encoder: Encoder
    template: PromptTemplate

    @classmethod
    def load(cls, folder: str, prompt_template: str | None = None, trust_remote_code: bool = False) -> Corrector:
        """Open a folder or hub id. UserError where it cannot be opened or nobody knows its prompt."""
        template = prompt_of(folder, prompt_template)
        tokenizer = load_tokenizer(folder, trust_remote_code)
        gpu = torch.cuda.is_available()
        options: dict[str, Any] = {"device_map": "auto"} if gpu else {}
        dtype = torch.bfloat16 if gpu and torch.cuda.is_bf16_supported() else torch.float32
        return cls(load_model(folder, dtype, trust_remote_code, **options).eval(), Encoder(tokenizer), template)

    def correct(
        self, pairs: Sequence[tuple[str, str]], batch_size: int = 8, max_new_tokens: int = 2048
    ) -> Iterator[Corrected]:
        """Yield the correction of each (question, answer) in order."""
        for start in range(0, len(pairs), batch_size):
            prompts = [self.template.render(question, answer) for question, answer in pairs[start : start + batch_size]]
            yield from self._generate(self.encoder.prompts(prompts), max_new_tokens)

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[Corrected]:
        """Greedy generation behind prompts padded on the left; the attention mask comes from their lengths."""
        tokenizer, eos = self.encoder.tokenizer, self.encoder.eos
        longest = max(map(len, prompts))
        ids_BL = torch.tensor([[tokenizer.pad_token_id] * (longest - len(p)) + p for p in prompts])
        mask_BL = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or float("inf")
        if longest >= positions:
            raise UserError(f"a prompt has {longest:,} tokens and the model {positions:,} positions: shorten that row.")
        made_BL = self.model.generate(  # type: ignore[operator]
            input_ids=ids_BL.to(self.model.device), attention_mask=mask_BL.to(self.model.device), do_sample=False,
            max_new_tokens=int(min(max_new_tokens, positions - longest)), eos_token_id=eos, pad_token_id=tokenizer.pad_token_id,
        )[:, longest:].tolist()  # fmt: skip
        corrected = []
        for made in made_BL:
            finished = eos in made
            kept = made[: made.index(eos)] if finished else made
            corrected.append(Corrected(str(tokenizer.decode(kept, skip_special_tokens=True)), finished))
        return corrected


def read_pairs(path: str) -> list[dict[str, Any]]:
    """The rows of a file with the text fields `question` and `answer`. DataError for the first row without them."""
    rows = []
    for row in read_rows(path):
        if isinstance(row, DataError):
            raise row
        for name in ("question", "answer"):
            if not isinstance(row.value, dict) or not isinstance(row.value.get(name), str):
                raise DataError(*row.origin, f"has no text in the field '{name}'", "Each row needs question and answer")
        rows.append(row.value)
    return rows


def correct_rows(
    corrector: Corrector,
    rows: Sequence[dict[str, Any]],
    target: str | Path,
    batch_size: int,
    max_new_tokens: int,
    progress: Any = iter,
) -> int:
    """Write every row with its field `corrected` to `target`, in order. Returns how many corrections did not end."""
    pairs = [(row["question"], row["answer"]) for row in rows]
    unfinished = 0
    with whole_file(target) as stream:
        made = progress(zip(rows, corrector.correct(pairs, batch_size, max_new_tokens), strict=True))
        for row, corrected in made:
            unfinished += not corrected.finished
            stream.write(json.dumps({**row, "corrected": corrected.text}, ensure_ascii=False) + "\n")
    return unfinished
