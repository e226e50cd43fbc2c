"""What `scripts/sft-correction.sh` runs: read the flags, start all ranks once, watch them, show what was learned.

Started as one of many ranks (torchrun, srun), it is that rank and starts nothing.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from aligner.console import setup_logging
from aligner.file_systems import require_usable
from aligner.files import is_completed
from aligner.launch.command import count_ranks, environment, launch_command
from aligner.launch.report import show_result
from aligner.launch.watch import launch_and_watch
from aligner.models import quiet_libraries
from aligner.network import require_loopback
from aligner.quantised import unpacking
from aligner.records import UserError
from aligner.relay import outlive_readers
from aligner.shipped import shipped
from aligner.system_errors import system_error
from aligner.training.checkpoint.resume import inspect_run, log_complete, run_lock
from aligner.training.config import RunConfig
from aligner.training.distributed import stop_signals
from aligner.training.distributed.hardware import gpus_here, resolved
from aligner.training.distributed.launcher_variables import idle_gpus, rank_variables
from aligner.training.flags import parse, parser, to_flags
from aligner.training.stages import check_positions, stage_data, stages, stages_to_train

PROGRAM = "bash scripts/sft-correction.sh"
USAGE = "{program} [--train_datasets PATH|SPEC ... --model_name_or_path BASE --output_dir DIR] [flags]"
log = logging.getLogger("aligner")


def main(arguments: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Train a run. Returns the exit status: 0; 2 for an error that the user can correct; 75 where the run was stopped and
    can go on; 130 where it was ended at once; another for a fault of the ranks."""
    arguments = sys.argv[1:] if arguments is None else arguments
    setup_logging()
    if "--help" in arguments or "-h" in arguments:
        parser(USAGE.format(program=program)).print_help()
        return 0
    try:
        variables = rank_variables(os.environ)
        if variables is not None:
            os.environ.update(variables)
            return be_rank(completed_flags(arguments))
        with outlive_readers():
            return run(completed_flags(arguments))
    except (UserError, OSError) as error:
        log.error("%s", system_error(error) if isinstance(error, OSError) else error)
        return 2
    except KeyboardInterrupt:
        log.warning("stopped")
        return 130


def be_rank(config: RunConfig) -> int:
    """Be the rank that the environment names; a dry run is the first one's alone."""
    if config.launch.dry_run:
        if idle := idle_gpus(os.environ, gpus_here()):
            log.warning("%s", idle)
        return run(config) if os.environ["RANK"] == "0" else 0
    from aligner.training.finetune import rank  # with DeepSpeed, which the launch script does not need

    if config.preference.by_trl:
        from aligner.training.preference.run import train_preference

        return rank.main(to_flags(config), train_preference)
    return rank.main(to_flags(config))


def completed_flags(arguments: Sequence[str]) -> RunConfig:
    """The configuration; with neither data nor model the embedded default. UserError names a missing flag."""
    config = parse(arguments)
    data, model = config.data.train_datasets, config.model.model_name_or_path
    if not data and not model:
        template = _relative(shipped("template-dataset.json"))
        default = ["--model_name_or_path", "embedded", "--output_dir", "output/embedded"]
        damaged = (
            f"restoration::{template}"  # twice the same: damaged anew (restoration:2) it showed less in as many minutes
        )
        default += ["--train_datasets", f"correction-json:0.25:{template}", damaged, damaged]
        file = [] if config.launch.config else ["--config", str(shipped("configs/embedded.yaml"))]
        config = parse([*default, *file, *arguments])
        data, model = config.data.train_datasets, config.model.model_name_or_path
    for flag, value in (
        ("train_datasets", data),
        ("model_name_or_path", model),
        ("output_dir", config.output.output_dir),
    ):
        if not value:
            raise UserError(f"--{flag} is missing. Without data and model the embedded default is trained.")
    return resolved(config)


def _relative(path: Path) -> str:
    """A path as a person would write it from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def run(config: RunConfig) -> int:
    """Train what is left of a run, and show the result."""
    quiet_libraries()
    ranks = count_ranks(config)
    if config.launch.dry_run or not is_completed(
        stages(config)[-1].folder
    ):  # else nothing is trained, and this takes seconds
        check_positions(config, stages(config)[0])
        unpacking(stages(config)[0].start_from, config.model.trust_remote_code)
    if config.launch.dry_run:
        from aligner.launch.dry_run import dry_run

        dry_run(config, ranks)
        return 0
    require_usable(stages(config)[-1].folder)
    with run_lock(stages(config)[-1].folder) as folder:
        if stop_signals.is_stop_requested(folder):
            log.warning("%s: an old request to stop is removed", folder / stop_signals.REQUEST)
            stop_signals.clear_stop_request(folder)
        return launch_run(config, ranks, folder)


def launch_run(config: RunConfig, ranks: int, folder: Path) -> int:
    """Start the ranks where something is left to train, and show the result."""
    planned = stages_to_train(config)
    last = planned[-1]
    if inspect_run(config, ranks):  # it may refuse the folder, before anything is started
        last.folder.mkdir(parents=True, exist_ok=True)  # shows before any rank starts whether one can write there
        require_loopback()
        command, variables = launch_command(config, ranks), environment(config, ranks)
        if status := launch_and_watch(command, variables, folder, last.folder):
            return status
    else:
        for stage in planned:
            log_complete(stage)
    show_result(planned, stage_data(config, last.name), config)
    return 0
