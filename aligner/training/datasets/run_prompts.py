"""The prompts of a run: each data set's records take its own, and one of them is the prompt that corrects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aligner.known_prompts import find_template
from aligner.prompts import DEFAULT, PromptTemplate
from aligner.records import Correction, UserError


@dataclass(frozen=True)
class RunPrompts:
    """`correcting`: the prompt that an Aligner of this run is used with. `by_name`: those of data sets that bring another."""

    correcting: PromptTemplate
    by_name: Mapping[str, PromptTemplate] = field(default_factory=dict)

    def of(self, record: Correction) -> PromptTemplate:
        """The prompt that a record is rendered with."""
        return self.by_name.get(record.prompt, self.correcting)

    def all(self) -> list[PromptTemplate]:
        """Every prompt once, the one that corrects first."""
        return list(dict.fromkeys([self.correcting, *self.by_name.values()]))

    def line(self) -> str:
        """For a reader: their names, and which one corrects."""
        names = [template.name for template in self.all()]
        if len(names) == 1:
            plain = "answer" not in self.correcting.slots
            return names[0] + (" (without {answer}: plain fine-tuning, question to correction)" if plain else "")
        return f"{', '.join(names)}, each for its data set's records; the Aligner corrects with {names[0]}"


def prompts_of(
    chosen: str | PromptTemplate | None, records: Sequence[Correction], held_out: Sequence[Correction] = ()
) -> RunPrompts:
    """The prompts of these records. `chosen` (`--prompt_template`) takes the place of all.

    Otherwise the prompt of the most training records corrects, of equals the one that comes first.
    """
    if chosen:
        return RunPrompts(find_template(chosen) if isinstance(chosen, str) else chosen)
    (most, _), *_ = Counter(record.prompt for record in records).most_common()
    names = dict.fromkeys(record.prompt for side in (records, held_out) for record in side)
    known = {name: find_template(name) if name else DEFAULT for name in names}
    return RunPrompts(known.pop(most), known)


def check_identity(prompts: RunPrompts) -> None:
    """UserError where a warm-up would copy an answer that its prompt does not show."""
    for template in prompts.all():
        if "answer" not in template.slots:
            raise UserError(
                f"--identity_proportion: the prompt '{template.name}' has no {{answer}} to copy. Leave the warm-up out."
            )
