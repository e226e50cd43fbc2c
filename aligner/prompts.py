"""Prompt templates: the one place that renders them, and the default one (known_prompts.py has the other published texts).

A template is split at its slots `{question}`, `{answer}` and, if it has them, `{feedback}` and `{prefix}`, and never given to
`str.format`: braces elsewhere, in the template or in a field, are text. `{objectives}` is another name of `{feedback}`: one slot
for what a correction is asked to mind, which a template has once.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from aligner.records import UserError

SLOTS = ("question", "answer", "feedback", "prefix")
NAMES = (*SLOTS, "objectives")  # as a template writes them; objectives and feedback are one slot
_ALMOST = re.compile(r"\{\s*(" + "|".join(NAMES) + r")\s*\}", re.IGNORECASE)
_SLOT = re.compile(r"\{(" + "|".join(NAMES) + r")\}")
ASKER = "Human: "  # what a dialogue of several turns begins with (chat_api/dialogue.py)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A prompt with a slot for the question, the answer, or usually both. The correction follows it with no space between.

    It may have one more for feedback, an instruction for the correction (the paper's controllable refinement), and one for a
    prefix, what was said before: then the answer is the next sentence, and so is the correction. Without `{answer}` it is plain
    fine-tuning, question to answer. UserError where a slot stands twice, or it has neither of the two.
    """

    name: str
    text: str

    def __post_init__(self) -> None:
        slots = [name for is_slot, name in self.parts() if is_slot]
        almost = [m[0] for m in _ALMOST.finditer(self.text) if not _SLOT.fullmatch(m[0])]
        if almost:
            raise UserError(
                f"prompt template '{self.name}' has {almost[0]}: write {{question}}, {{answer}} and {{feedback}}."
            )
        for word in set(re.findall(r"\{(\w+)\}", self.text)) - set(NAMES):
            if near := difflib.get_close_matches(word, NAMES, n=1, cutoff=0.75):
                raise UserError(f"prompt template '{self.name}' has {{{word}}}. Did you mean {{{near[0]}}}?")
        if twice := [slot for slot in SLOTS if slots.count(slot) > 1]:
            raise UserError(f"prompt template '{self.name}' has more than one {{{twice[0]}}}: write it once.")
        if not {"question", "answer"} & set(slots):
            raise UserError(f"prompt template '{self.name}' has neither {{question}} nor {{answer}}: write them.")

    @property
    def slots(self) -> frozenset[str]:
        """The fields of a record that it shows: of question, answer, feedback, prefix."""
        return frozenset(name for is_slot, name in self.parts() if is_slot)

    @property
    def takes_feedback(self) -> bool:
        """Whether it has a slot for feedback."""
        return "feedback" in self.slots

    @property
    def by_sentence(self) -> bool:
        """Whether it corrects the next sentence behind a prefix, and no whole answer."""
        return "prefix" in self.slots

    def render(self, question: str, answer: str, feedback: str = "", prefix: str = "") -> str:
        """The prompt text for one question and answer. Without a slot for it, feedback or a prefix is ignored."""
        return "".join(text for _, text in self.filled(question, answer, feedback, prefix))

    def filled(self, question: str, answer: str, feedback: str = "", prefix: str = "") -> list[tuple[bool, str]]:
        """The pieces with their slots filled: whether each is a field, and its text.

        A prompt that names the asker itself, as "Human: {question}", does not name it twice: a dialogue begins with it.
        """
        parts, before = self.parts(), self.text.partition("{question}")[0]
        fields = {"question": question.removeprefix(ASKER) if before.endswith(ASKER) else question}
        fields |= {"answer": answer, "feedback": feedback, "prefix": prefix}
        return [(is_slot, fields[piece] if is_slot else piece) for is_slot, piece in parts]

    def literals(self) -> str:
        """The template's own text without its slots."""
        return "".join(piece for is_slot, piece in self.parts() if not is_slot)

    def parts(self) -> list[tuple[bool, str]]:
        """The template in pieces: whether each is a slot, and its name or its text."""
        pieces = _SLOT.split(self.text)
        return [
            (index % 2 == 1, "feedback" if index % 2 and piece == "objectives" else piece)
            for index, piece in enumerate(pieces)
        ]


# Since 11 December 2024 in the authors' code. Two spaces before ASSISTANT are theirs.
CORRECTION = PromptTemplate(
    "correction",
    "BEGINNING OF CONVERSATION: USER: ##Question: {question}\n##Answer: {answer}\n##Correction:  ASSISTANT:",
)
DEFAULT = CORRECTION
