"""`aligner rounds`: upstream answers -> Aligner corrects -> pairs -> the next upstream -> held-out measure, round after round."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from aligner.card import prompt_of
from aligner.demo import locate
from aligner.locks import take
from aligner.models import check_place, quiet_libraries
from aligner.records import UserError
from aligner.rounds.config import RoundsConfig
from aligner.rounds.course import (
    REWARD,
    aligner_base,
    first_stages,
    further_config,
    launch_flags,
    round_stages,
    upstream_flags,
)
from aligner.rounds.questions import question_stage
from aligner.rounds.report import fell, report_of, write_report
from aligner.rounds.stage import RoundStage, run_round_stage
from aligner.terminal import print_lines
from aligner.training.config_check import check_packages
from aligner.training.flags import parse

SET_HERE = (
    "model_name_or_path",
    "train_datasets",
    "output_dir",
    "reward_model",
    "prompt_template",
    "config",
    "stage",
    "dry_run",
)


def run_rounds(config: RoundsConfig) -> int:
    """Run what is left of all rounds and write the report after each. Returns the exit status: 0. UserError or StepFailed where a
    stage cannot be made; the same command goes on from there."""
    quiet_libraries()
    check_before_anything(config)
    output = Path(config.output)
    release = take(
        output / "rounds.lock", f"{output}: another run is writing these rounds. Wait for it, or name another --output."
    )
    try:
        run_stages([question_stage(config)])
        run_stages(first_stages(config))
        lines = write_report(config)
        for number in range(1, config.rounds + 1):
            print_lines(f"round {number} of {config.rounds}")
            run_stages(round_stages(config, number))
            lines = write_report(config)
            if fell(report_of(config)) and not config.keep_going:
                if number < config.rounds:
                    lines.append(f"stopped after round {number}: --keep_going goes on all the same")
                break
        print_lines(*lines)
        return 0
    finally:
        release()


def run_stages(stages: Iterable[RoundStage]) -> None:
    """Make one after another; each is described only when those before it are complete."""
    for stage in stages:
        began = time.monotonic()
        if run_round_stage(stage):
            print_lines(f"{stage.name}: {time.monotonic() - began:,.0f} s, {stage.folder}")


def check_before_anything(config: RoundsConfig) -> None:
    """UserError where a model, a prompt, a package or a flag of training is not there: what can be known before hours are spent."""
    for folder in (locate(config.upstream), locate(config.aligner)):
        check_place(folder)
    template = prompt_of(locate(config.aligner), config.options.prompt_template)
    if not {"question", "answer"} <= template.slots:
        raise UserError(f"--aligner {config.aligner}: its prompt '{template.name}' shows no answer: it is no Aligner.")
    for part in vars(further_config(config)).values():
        for name in SET_HERE:
            if getattr(part, name, None) not in (None, [], False, REWARD):
                instead = "; --train_config names a file of flags" if name == "config" else ""
                raise UserError(f"--{name} is set by each stage: leave it out{instead}.")
    reward = ["--reward_model", REWARD] if config.method == "rloo" else []
    check_packages(parse([*upstream_flags(config), *reward]))
    launch_flags(config)
    if config.aligner_each_round:
        check_place(locate(aligner_base(config)))
