"""Which rank this process is when something else has started all of them: torchrun, or Slurm's srun."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping

from aligner.records import UserError


def first_host(nodelist: str) -> str:
    """The first name of Slurm's list of nodes: gpu[03-05,07],cpu1 begins with gpu03, and r[1-2]n[1-4] with r1n1."""
    name = re.match(r"(?:[^,\[\]]|\[[0-9][^\]]*\])+", nodelist)
    if name is None:
        raise UserError(f"SLURM_STEP_NODELIST is '{nodelist}', which begins with no node's name. Set MASTER_ADDR.")
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", name[0])


def single_rank() -> dict[str, str]:
    """The variables of a rank that is the only one."""
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    return {**variables, "MASTER_PORT": str(free_port())}


def free_port() -> int:
    """A port of this machine that is free now, for the ranks to find each other."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def rank_variables(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The variables that torch reads to join all ranks, or None where this process was started alone.

    torchrun's (RANK, WORLD_SIZE, ...) are taken as they are; inside an srun of several tasks they are made of Slurm's.
    The port follows from the job and the step, so that all ranks agree on it without asking; MASTER_PORT overrides it.
    """
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        return {}
    if "RANK" in environment or "WORLD_SIZE" in environment:
        there, missing = ("RANK", "WORLD_SIZE") if "RANK" in environment else ("WORLD_SIZE", "RANK")
        raise UserError(
            f"{there} is set in the environment and {missing} is not. Set both, as torchrun does, or neither."
        )
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) < 2:
        return None
    try:
        job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID") or 0)
        return {
            "RANK": environment["SLURM_PROCID"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": environment.get("MASTER_PORT") or str(20000 + (31 * job + step) % 20000),
        }
    except (KeyError, ValueError) as error:
        raise UserError(f"this looks like a Slurm step, but its environment is not whole ({error}).") from None
