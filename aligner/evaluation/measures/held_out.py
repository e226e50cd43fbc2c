"""The figure that a training run ends with: how much of the damage its Aligner takes out of held-out answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aligner.evaluation.measures.items import Item, TextMeasure, word_error
from aligner.evaluation.measures.measure import Reply, text_figures
from aligner.evaluation.measures.table import ALIGNER
from aligner.inference.corrector import CorrectionRequest, Corrector
from aligner.records import Correction


def held_out_help(corrector: Corrector, records: Sequence[Correction]) -> dict[str, Any]:
    """The figures (as a part of measure.json) of an open Aligner on held-out restoration records, beside the text controls.

    records: answers that are damaged, and some that are as good as their corrections.
    """
    items = [
        Item(record.question, record.answer, record.answer != record.correction, record.correction)
        for record in records
    ]
    measure = TextMeasure(
        "restoration", "word error", items, lambda item, text: -word_error(item.good, text), error=True
    )

    def correct(pairs: Sequence[tuple[str, str]]) -> list[Reply]:
        corrections = corrector.correct([CorrectionRequest(*pair) for pair in pairs])
        return [
            Reply(each.text if each.finished else answer, each.finished)
            for each, (_, answer) in zip(corrections, pairs, strict=True)
        ]

    parts, _ = text_figures(measure, {ALIGNER: correct}, len(items))
    return dict(parts[""])


def help_lines(part: Mapping[str, Any]) -> Iterator[str]:
    """The figure in three lines: what is gone, with its interval; the strongest control beside it; what follows."""
    own = part["systems"][0]
    gone, beside = own["gone"], next(r for r in part["systems"] if r["system"] == part["strongest_control"])
    yield (
        f"of the damage to {part['needed']:,} held-out answers {gone['value']:.0%} is gone (95 %: {gone['low']:.0%} to "
        f"{gone['high']:.0%})"
    )
    touched = own["touched"]
    if touched is not None:
        yield f"of {part['answers'] - part['needed']:,} undamaged ones {touched:.0%} were touched"
    yield f"the strongest control, {beside['system']}: {beside['gone']['value']:.0%} of the damage gone. {part['says']}."
