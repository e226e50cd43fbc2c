"""text -> ids, in one place for training and inference, so that both see the same prompt ids.

Prompt and correction are tokenised together; where that begins with the prompt's own ids, it is used as it is. Where
the tokenizer merges across the border ('ASSISTANT:' and a leading quotation mark), the prompt's ids are followed by the
correction encoded on its own.

A special token in a template's own text is that token, as in a chat template; the same string in a field is text.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from aligner.files import sha256_of
from aligner.prompts import PromptTemplate
from aligner.records import Correction, UserError
from aligner.terminal import warn_once

# A correction encoded on its own is encoded behind one of these, whose ids are then removed: behind nothing, a
# SentencePiece tokenizer would add a space that the text does not have.
ANCHORS = ("\n", "a", "1")
MARK = "\0"  # on both sides of a special token in a rendered prompt: no text of a field has one


class Encoder:
    """A tokenizer as this project uses it: special strings in texts are text, and the tokenizer's own start tokens (BOS) stay,
    except before a prompt with special tokens of its own, which is complete as a chat template's is."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end-of-text token, so a model could never learn to stop.")
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        bare, full = self._encode(["a"])[0], tokenizer("a", add_special_tokens=True)["input_ids"]
        self.start: list[int] = (
            list(full[: len(full) - len(bare)]) if full[-len(bare) :] == bare else self._front(full, bare)
        )
        self._adds_start_alone = list(full) == self.start + bare
        added = tokenizer.added_tokens_decoder.values()
        self.special_strings = tuple({*tokenizer.all_special_tokens, *(t.content for t in added if t.special)})
        self._special = re.compile(
            "(" + "|".join(re.escape(s) for s in sorted(self.special_strings, key=len)[::-1]) + ")"
        )

    @staticmethod
    def _front(full: Sequence[int], bare: Sequence[int]) -> list[int]:
        """The ids before the text where the tokenizer also adds some behind it."""
        for start in range(len(full) - len(bare) + 1):
            if list(full[start : start + len(bare)]) == list(bare):
                return list(full[:start])
        return []

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if any(MARK in text for text in texts):
            return [self._encode_marked(text) if MARK in text else self._encode([text])[0] for text in texts]
        encoded = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _encode_marked(self, text: str) -> list[int]:
        """The tokenizer's own ids where all special strings are marked ones, else piece by piece."""
        pieces = text.split(MARK)
        if self._special.findall("".join(pieces)) == pieces[1::2]:
            return list(self.tokenizer("".join(pieces), add_special_tokens=False)["input_ids"])
        special: dict[str, Any] = {piece: self.tokenizer.convert_tokens_to_ids(piece) for piece in pieces[1::2]}
        ids = [[special[piece]] if n % 2 else self._encode([piece])[0] for n, piece in enumerate(pieces) if piece]
        return [each for some in ids for each in some]

    def render(self, template: PromptTemplate, question: str, answer: str, feedback: str = "", prefix: str = "") -> str:
        """A prompt's text for `prompts` and `pairs`: the special tokens of the template's own text are marked."""
        return "".join(
            text.replace(MARK, "") if is_slot else self._special.sub(rf"{MARK}\1{MARK}", text)
            for is_slot, text in template.filled(question, answer, feedback, prefix)
        )

    def is_complete(self, template: PromptTemplate) -> bool:
        """Whether a template has special tokens of its own, so that none is added before it."""
        return bool(self._special.search(template.literals()))

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of prompts, as training and inference both see them."""
        return [self._started(text, ids) for text, ids in zip(texts, self._encode(texts), strict=True)]

    def _started(self, text: str, ids: list[int]) -> list[int]:
        return ids if MARK in text else self.start + ids

    def reads_alike(self, text: str, ids: Sequence[int]) -> bool:
        """Whether the tokenizer as it is, a server's for instance, makes these ids of a prompt's text. Without a special token's
        string in it that is known beforehand."""
        if not self._special.search(text):
            return self._adds_start_alone
        return bool(self.tokenizer(text)["input_ids"] == ids)

    def pairs(self, prompts: Sequence[str], corrections: Sequence[str]) -> Iterator[tuple[list[int], list[int], bool]]:
        """For each pair: the prompt's ids, the correction's ids with end-of-text, and whether the border merged."""
        joint = self._encode([p + c for p, c in zip(prompts, corrections, strict=True)])
        for text, prompt, whole, correction in zip(prompts, self._encode(prompts), joint, corrections, strict=True):
            merged = whole[: len(prompt)] != prompt
            target = self._tail(correction) if merged else whole[len(prompt) :]
            yield self._started(text, prompt), [*target, self.eos], merged

    def _tail(self, text: str) -> list[int]:
        for anchor in ANCHORS:
            front, whole = self._encode([anchor, anchor + text])
            if whole[: len(front)] == front:
                return whole[len(front) :]
        return self._encode([text])[0]

    def lost(self, targets: Sequence[list[int]], texts: Sequence[str]) -> list[Counter[str] | None]:
        """For each text and its ids the characters that the ids do not spell; None where they spell all but a prefix space.

        The counter is empty where nothing is missing and the text comes back otherwise all the same (with other spaces).
        """
        decoded = self.tokenizer.batch_decode(
            list(targets), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        unknown = self.tokenizer.unk_token_id
        return [
            Counter(text) - Counter(again)
            if again.removeprefix(" ") != text.removeprefix(" ") or (unknown is not None and unknown in ids)
            else None
            for ids, text, again in zip(targets, texts, decoded, strict=True)
        ]

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
        texts = (record.question, record.answer, record.correction, record.feedback, record.prefix)
        return any(special in text for special in self.special_strings for text in texts)


def warn_of_lost_newlines(encoder: Encoder) -> None:
    """Say, once in a process, that a tokenizer has no newlines: its model could never read nor write a second paragraph."""
    (lost,) = encoder.lost(encoder._encode(["a\nb"]), ["a\nb"])
    if lost and "\n" in lost:
        name = encoder.tokenizer.name_or_path
        warn_once(
            f"the tokenizer of {name} loses newlines: its model reads and writes none. Choose another base model."
        )
