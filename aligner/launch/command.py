"""The command and the environment that start all ranks of a run: DeepSpeed's launcher, here or on the hosts of a hostfile."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace

from aligner.records import UserError
from aligner.training.config import RunConfig
from aligner.training.distributed.hardware import gpus_here, ranks_here, threads_per_rank
from aligner.training.distributed.heartbeat import launcher_mark
from aligner.training.distributed.hosts import (
    forwarded_variables,
    hostfile_for_deepspeed,
    is_here,
    launcher_words,
    read_hostfile,
    remote_words,
)
from aligner.training.distributed.launcher_variables import free_port
from aligner.training.flags import ROOT, to_flags
from aligner.training.stages import stages

ALLOCATION = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}  # micro-batches differ in length: no fragments


def count_ranks(config: RunConfig) -> int:
    """Ranks of the whole run: the hostfile's slots, or this machine's."""
    if config.launch.hostfile:
        return sum(host.slots for host in read_hostfile(config.launch.hostfile))
    return ranks_here(config)


def launch_command(config: RunConfig, ranks: int) -> list[str]:
    """The exact command that trains a run."""
    for_ranks = replace(config, launch=replace(config.launch, dry_run=False, launcher_args=None))
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", *placement(config, ranks)]
    runner += ["--master_port", str(free_port()), *launcher_words(config.launch.launcher_args or "")]
    hosts = read_hostfile(config.launch.hostfile) if config.launch.hostfile else []
    if len(hosts) > 1 or (hosts and not is_here(hosts[0].name)):
        if not shutil.which("pdsh"):
            raise UserError("--hostfile with other hosts needs pdsh. Install it, or use Slurm or torchrun (README).")
        variables = forwarded_variables({**os.environ, **environment(config, ranks), **launcher_mark()})
        words = ["env", *(f"{name}={value}" for name, value in variables.items())]
        words += [sys.executable, "-m", module_of(config), *to_flags(for_ranks)]
        one_host = ["--force_multi"] if len(hosts) == 1 else []  # or DeepSpeed would start its ranks here
        return [*runner, *one_host, "--no_python", "--no_local_rank", *remote_words(words)]
    return [*runner, "--module", module_of(config), *to_flags(for_ranks)]


def module_of(config: RunConfig) -> str:
    """The program that every rank runs: this project's loop, or TRL's trainers."""
    return "aligner.training.preference" if config.preference.by_trl else "aligner.training.finetune"


def placement(config: RunConfig, ranks: int) -> list[str]:
    """Where DeepSpeed's launcher puts the ranks. With --num_gpus it would forget CUDA_VISIBLE_DEVICES, so those are named."""
    if config.launch.hostfile:
        return ["--hostfile", hostfile_for_deepspeed(config.launch.hostfile, stages(config)[-1].folder)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible and gpus_here():
        if not all(word.strip().isdigit() for word in visible.split(",")):
            raise UserError(
                f"CUDA_VISIBLE_DEVICES is {visible}: DeepSpeed's launcher takes numbers alone. Name GPUs by number, or start the "
                "ranks with torchrun (README)."
            )
        return ["--include", "localhost:" + ",".join(visible.split(",")[:ranks])]
    return ["--num_gpus", str(ranks)]


def environment(config: RunConfig, ranks: int) -> dict[str, str]:
    """What the ranks' environment has beyond this process's."""
    variables = {"PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "true"}
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    variables["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ and "PYTORCH_ALLOC_CONF" not in os.environ:
        variables |= ALLOCATION
    if config.launch.hostfile:
        variables["DS_ACCELERATOR"] = os.environ.get("DS_ACCELERATOR", "cuda")  # also from a login node without a GPU
    elif not gpus_here():
        threads = os.environ.get("OMP_NUM_THREADS") or str(threads_per_rank(ranks))
        variables |= {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(ranks), "OMP_NUM_THREADS": threads}
    return variables
