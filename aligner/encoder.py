"""text -> ids, in one place for training and inference, so that both see the same prompt ids.

Prompt and correction are tokenised together; where that begins with the prompt's own ids, it is used as it is. Where
the tokenizer merges across the border ('ASSISTANT:' and a leading quotation mark), the prompt's ids are followed by the
correction encoded on its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from aligner.files import sha256_of
from aligner.prompts import PromptTemplate
from aligner.records import Correction, UserError

# A correction encoded on its own is encoded behind one of these, whose ids are then removed: behind nothing, a
# SentencePiece tokenizer would add a space that the text does not have.
ANCHORS = ("\n", "a", "1")


class Encoder:
    """A tokenizer as this project uses it: special strings in texts are text, and the tokenizer's own start tokens (BOS) stay."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-text token, so a model could never learn to stop.")
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        bare, full = self._encode(["a"])[0], tokenizer("a", add_special_tokens=True)["input_ids"]
        self.start: list[int] = (
            list(full[: len(full) - len(bare)]) if full[-len(bare) :] == bare else self._front(full, bare)
        )
        added = tokenizer.added_tokens_decoder.values()
        self.special_strings = tuple({*tokenizer.all_special_tokens, *(t.content for t in added if t.special)})

    @staticmethod
    def _front(full: Sequence[int], bare: Sequence[int]) -> list[int]:
        """The ids before the text where the tokenizer also adds some behind it."""
        for start in range(len(full) - len(bare) + 1):
            if list(full[start : start + len(bare)]) == list(bare):
                return list(full[:start])
        return []

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of prompts, as training and inference both see them."""
        return [self.start + ids for ids in self._encode(texts)]

    def pairs(self, prompts: Sequence[str], corrections: Sequence[str]) -> Iterator[tuple[list[int], list[int], bool]]:
        """For each pair: the prompt's ids, the correction's ids with end-of-text, and whether the border merged."""
        joint = self._encode([p + c for p, c in zip(prompts, corrections, strict=True)])
        for prompt, whole, correction in zip(self._encode(prompts), joint, corrections, strict=True):
            merged = whole[: len(prompt)] != prompt
            target = self._tail(correction) if merged else whole[len(prompt) :]
            yield self.start + prompt, [*target, self.eos], merged

    def _tail(self, text: str) -> list[int]:
        for anchor in ANCHORS:
            front, whole = self._encode([anchor, anchor + text])
            if whole[: len(front)] == front:
                return whole[len(front) :]
        return self._encode([text])[0]

    def fingerprint(self) -> str:
        """A digest of the tokenizer's files. UserError where it cannot be."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.tokenizer.save_pretrained(folder)
            except Exception as error:
                raise UserError(f"the tokenizer of {self.tokenizer.name_or_path} cannot be saved ({error}).") from error
            return sha256_of(folder)

    def holds_special(self, record: Correction) -> bool:
        """Whether a field holds the string of a special token."""
        texts = (record.question, record.answer, record.correction, record.feedback)
        return any(special in text for special in self.special_strings for text in texts)


def check_template(template: PromptTemplate, encoder: Encoder) -> None:
    """UserError where the template's own text holds a special token's string, which would be read as text."""
    for special in encoder.special_strings:
        if special in template.literals():
            raise UserError(
                f"prompt template '{template.name}' holds '{special}', a special token of this tokenizer. "
                "Prompts are plain text; leave it out."
            )
