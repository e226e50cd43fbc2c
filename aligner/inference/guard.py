"""What must not be rewritten, and what is no correction: one rule for `aligner serve` and `aligner correct`.

Left alone: an answer that is JSON, or in a script that the Aligner was not trained on (where that is said), or whose fenced code
the correction would change, or whose correction is hardly likelier than it (where that is weighed). No correction: a text that
did not end, or that went on past its end with the prompt's own markers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import regex

from aligner.inference.corrector import Corrected
from aligner.parsing import json_value
from aligner.prompts import PromptTemplate
from aligner.records import UserError
from aligner.texts import FENCE

_MARKER = regex.compile(r"#+\s?\p{Lu}\w*:|\p{Lu}[\w ]*:")


STRUCTURED = (  # fields of a request whose answer has a form that prose would break
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
    "json_schema",
    "ebnf",
    "regex",
)


class KeepReason(NamedTuple):
    """Why an answer stays as it is. `failed`: there is no correction; otherwise it is left alone on purpose."""

    reason: str
    failed: bool


@dataclass(frozen=True)
class Guard:
    """What stays as it is.

    keep_unfinished: a correction that did not end is taken all the same. keep_code: fenced code comes back byte for byte or not
    at all. correct_structured: JSON and the text beside tool calls are corrected like prose. scripts: of Unicode, in which at
    least half of an answer's letters are; none: any. nats_ahead: by how many nats at least a correction is likelier under the
    Aligner than the answer left alone. UserError where a script has no such name, or nats_ahead is no number.
    """

    keep_unfinished: bool = False
    keep_code: bool = True
    correct_structured: bool = False
    scripts: tuple[str, ...] = ()
    nats_ahead: float | None = None

    def __post_init__(self) -> None:
        if self.nats_ahead is not None and not math.isfinite(self.nats_ahead):
            raise UserError(f"--nats_ahead is {self.nats_ahead}: it is a number of nats, such as 0 or 2.5.")
        for name in self.scripts:
            try:
                regex.compile(rf"\p{{Script={name}}}")
            except regex.error:
                raise UserError(
                    f"--scripts {name}: is no script of Unicode. Write Latin, Han, Cyrillic, Arabic ..."
                ) from None

    def before(self, answer: str) -> KeepReason | None:
        """Why an answer is not given to the Aligner; None where it is."""
        if not self.correct_structured and is_structured(answer):
            return KeepReason("the answer is structured (JSON)", False)
        if self.scripts and not is_written_in(answer, self.scripts):
            return KeepReason(f"less than half of its letters are {' or '.join(self.scripts)}", False)
        return None

    def after(self, corrected: Corrected, question: str, answer: str, markers: Sequence[str]) -> KeepReason | None:
        """Why a decoded text does not take the answer's place; None where it does. `markers`: those of the Aligner's prompt."""
        if not self.keep_unfinished:
            if not corrected.finished:
                return KeepReason("the correction did not end", True)
            if marker := runs_on(corrected.text, question + "\n" + answer, markers):
                return KeepReason(f"the correction runs on with the prompt's own '{marker}'", True)
        if self.nats_ahead is not None and corrected.nats_ahead is not None and self.nats_ahead > corrected.nats_ahead:
            return KeepReason(f"the correction is not {self.nats_ahead:g} nats likelier than the answer", False)
        if self.keep_code and (blocks := code_blocks(answer)) and code_blocks(corrected.text) != blocks:
            return KeepReason("the correction would change fenced code", False)
        return None

    def needs_all(self, answer: str) -> bool:
        """Whether only the whole correction shows if it may be sent."""
        return self.keep_code and bool(code_blocks(answer))


def markers_of(template: PromptTemplate) -> tuple[str, ...]:
    """The labels of a prompt, such as '##Question:' and 'USER:', whose reappearance says that a model went on with another one."""
    return tuple(dict.fromkeys(marker.strip() for marker in _MARKER.findall(template.literals())))


def runs_on(text: str, given: str, markers: Sequence[str]) -> str | None:
    """The marker with which a text goes on; None where it does not. One that stands in what was given may stand in the text; a
    marker without a sign of its own counts at the begin of a line alone."""
    for marker in markers:
        if marker in given:
            continue
        anywhere = marker.startswith("#") or marker.isupper()
        if marker in text if anywhere else regex.search(rf"^\s*{regex.escape(marker)}", text, regex.MULTILINE):
            return marker
    return None


def code_blocks(text: str) -> list[str]:
    """The fenced code of a text, each block with its fences, byte for byte; an open one lasts to the end."""
    if "```" not in text and "~~~" not in text:  # most texts: a hundredth of the expression's time
        return []
    return [match[0] for match in FENCE.finditer(text)]


def wants_structure(chat: Mapping[str, Any]) -> bool:
    """Whether a request asks for an answer of a form."""
    form = chat.get("response_format")
    return (isinstance(form, dict) and form.get("type", "text") != "text") or any(chat.get(name) for name in STRUCTURED)


def is_structured(text: str) -> bool:
    """Whether a text is a JSON object or array and nothing else."""
    if text.strip()[:1] not in ("{", "["):
        return False
    try:
        return isinstance(json_value(text), dict | list)
    except ValueError:
        return False


def is_written_in(text: str, scripts: Sequence[str]) -> bool:
    """Whether at least half of a text's letters, code aside, are in these scripts; a text without letters is."""
    prose = FENCE.sub("", text)
    letters = len(regex.findall(r"\p{L}", prose))
    ours = len(regex.findall("|".join(rf"(?=\p{{L}})\p{{Script={name}}}" for name in scripts), prose))
    return 2 * ours >= letters
