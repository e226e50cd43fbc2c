"""One rank from its start to its exit status: who it is, joining the others, and what its user reads when it fails."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NoReturn

import torch.distributed as dist

from aligner.console import setup_logging
from aligner.models import quiet_libraries
from aligner.records import UserError
from aligner.system_errors import system_error
from aligner.terminal import print_errors
from aligner.training.checkpoint.resume import run_lock
from aligner.training.config import RunConfig
from aligner.training.distributed.hardware import gpus_here, resolved
from aligner.training.distributed.heartbeat import has_launcher, heartbeat, is_consequence
from aligner.training.distributed.launcher_variables import idle_gpus, rank_variables, single_rank
from aligner.training.distributed.ranks import Ranks, connect
from aligner.training.distributed.stop_signals import (
    EXIT_AGAIN,
    Stopped,
    StopSignals,
    clear_stop_request,
    stop_requested,
)
from aligner.training.finetune.run import train_run
from aligner.training.flags import parse
from aligner.training.stages import stages

GRACE = 3.0  # seconds that other ranks wait: when one ends, the launcher ends all, and the first is to print the cause
log = logging.getLogger("aligner")
TrainRun = Callable[[RunConfig, Ranks, Callable[[], bool]], None]


def main(arguments: Sequence[str] | None = None, train: TrainRun = train_run) -> int:
    """Train as one rank of a run, by this project's loop or another. Returns the exit status: 0; 1 for a fault, with its traceback;
    2 for an error that the user can correct; 75 where the run was stopped and can go on."""
    group_is_ours = not dist.is_initialized()
    status = run_rank(sys.argv[1:] if arguments is None else arguments, train)
    if group_is_ours and dist.is_initialized():
        if status in (1, 2) and dist.get_world_size() > 1:
            exit_now(status)
        dist.destroy_process_group()
    return status


def exit_now(status: int) -> NoReturn:
    """End this process at once: to end the group in order, NCCL would wait for ranks that wait for this one."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_rank(arguments: Sequence[str], train: TrainRun = train_run) -> int:
    """Train as one rank, and turn what may go wrong into an exit status and what the user reads."""
    setup_logging(quiet=os.environ.get("RANK", "0") != "0")
    try:
        rank = find_rank()
        setup_logging(quiet=rank > 0)
        config = resolved(parse(arguments))
        if config.launch.dry_run:
            raise UserError("--dry_run is for scripts/sft-correction.sh; this program trains.")
        quiet_libraries()
        if not has_launcher() and (idle := idle_gpus(os.environ, gpus_here())):
            log.warning("%s", idle)
        train_rank(config, rank, train)
    except Stopped as stopped:
        log.warning("%s", stopped)
        dist.barrier()  # a rank that ends first would have the others killed, and the first one has more to do
        return 0 if has_launcher() else EXIT_AGAIN  # the launch script sees that the run is not complete
    except (UserError, OSError) as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(GRACE)
            setup_logging()
        log.error("%s", system_error(error) if isinstance(error, OSError) else error)
        return 2
    except Exception as error:
        if dist.is_initialized() and dist.get_world_size() > 1 and is_consequence(error):
            setup_logging()
            reason = " ".join(str(error).split())[:200]
            log.error("rank %s lost another rank: %s", os.environ.get("RANK", "0"), reason)
        else:
            print_errors(*traceback.format_exc().splitlines())
        return 1
    return 0


def find_rank() -> int:
    """This process's rank, with the variables set that torch joins the others by: the launcher's, Slurm's, or those of one rank."""
    if dist.is_initialized():
        os.environ["RANK"] = str(dist.get_rank())
    else:
        variables = rank_variables(os.environ)
        os.environ.update(single_rank() if variables is None else variables)
    return int(os.environ["RANK"])


def train_rank(config: RunConfig, rank: int, train: TrainRun) -> None:
    """Join the other ranks and train. Where no launch script does so, the first rank locks the folder, and each takes signals."""
    folder, standalone = stages(config)[-1].folder, not has_launcher()
    signals = StopSignals() if standalone else None
    with run_lock(folder) if standalone and rank == 0 else nullcontext(), heartbeat(folder, rank):
        try:
            ranks = connect(config.launch.local_rank)
            train(config, ranks, partial(stop_requested, signals, folder if rank == 0 else None))
        finally:
            if standalone and rank == 0:
                clear_stop_request(folder)
