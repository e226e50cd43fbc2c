"""What is shown before a stage begins: its updates, what became of every row, the prompt, the folders."""

from __future__ import annotations

import logging

from aligner.training.datasets.tally import Tally
from aligner.training.plan import Plan
from aligner.training.stages import Stage, StageData

log = logging.getLogger("aligner")


def announce(stage: Stage, plan: Plan, data: StageData, tally: Tally, held_out_tally: Tally) -> None:
    """Log what is about to be trained."""
    log.info("%s: %s", stage.name, plan.line())
    if plan.warmup_updates >= plan.updates:
        log.warning(
            "all %s updates are learning-rate warm-up, and the first has learning rate 0: little or nothing is learned. "
            "Give fewer rows per update, more epochs, or --lr_warmup_ratio 0",
            plan.updates,
        )
    for side, counted in (("training", tally), ("held out", held_out_tally)):
        for line in counted.lines() if counted.rows else []:
            log.info("  %s: %s", side, line.strip())
    log.info("  prompt: %s; from %s into %s", data.prompts.line(), stage.start_from, stage.folder)
