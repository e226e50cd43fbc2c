"""The figure that a training run ends with: how much of the damage its Aligner takes out of held-out answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aligner.evaluation.measures.items import SEEN, restoration_items, restoration_measure
from aligner.evaluation.measures.measure import CorrectedText, text_figures
from aligner.evaluation.measures.table import ALIGNER, HELPS
from aligner.inference.corrector import CorrectionRequest, Corrector
from aligner.records import Correction
from aligner.training.datasets.damage import DamagePlan

QUESTIONS = 30  # at most: a run should not end by measuring for hours
LONGER = (  # the recipe whose figure stands in aligner/evaluation/README.md
    "bash scripts/sft-correction.sh --train_datasets restoration::GOOD.jsonl --model_name_or_path embedded "
    "--output_dir output/restoration --epochs 1 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --lr 1e-4 "
    "--max_length 512 --eval_split_ratio 0.05"
)


def held_out_help(corrector: Corrector, records: Sequence[Correction], plan: DamagePlan) -> dict[str, Any]:
    """The figures (as a part of measure.json) of an open Aligner on held-out questions, beside the text controls.

    records: their corrections are the good answers; of each the damaged one is corrected, and the good one as well.
    """
    good = {record.question: record.correction for record in reversed(records)}
    pairs = list(good.items())[::-1][:QUESTIONS]
    measure = restoration_measure(restoration_items(pairs, plan, SEEN, every=1))

    def correct(pairs: Sequence[tuple[str, str]]) -> list[CorrectedText]:
        corrections = corrector.correct([CorrectionRequest(*pair) for pair in pairs])
        return [
            CorrectedText(each.text if each.finished else answer, each.finished)
            for each, (_, answer) in zip(corrections, pairs, strict=True)
        ]

    parts, _ = text_figures(measure, {ALIGNER: correct}, len(measure.items))
    return dict(parts[SEEN])


def help_lines(part: Mapping[str, Any]) -> Iterator[str]:
    """The figure in a few lines: what is gone, with its interval; what was touched; the strongest control; what follows."""
    own = part["systems"][0]
    gone, beside = own["gone"], next(r for r in part["systems"] if r["system"] == part["strongest_control"])
    yield (
        f"of the damage to the answers of {part['questions']:,} held-out questions {gone['value']:.0%} is gone "
        f"(95 %: {gone['low']:.0%} to {gone['high']:.0%}), {own['exact']:.0%} restored exactly"
    )
    yield f"of the undamaged answers {own['touched']:.0%} were touched"
    yield f"balanced over both {_interval(own['gain'])} in word error against leaving them alone"
    yield f"the strongest control, {beside['system']}: {_interval(beside['gain'])}"
    yield f"{part['verdict']}: {part['says']}"
    if part["verdict"] != HELPS:
        yield f"759 good answers did show it, in 13 minutes on two cores; with yours (question, correction): {LONGER}"


def _interval(gain: Mapping[str, float]) -> str:
    return f"{gain['value']:+.3f} (95 %: {gain['low']:+.3f} to {gain['high']:+.3f})"
