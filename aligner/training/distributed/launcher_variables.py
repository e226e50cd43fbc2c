"""Which rank this process is when something else has started all of them: torchrun, srun, mpirun, a PyTorchJob."""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Mapping

from aligner.records import UserError
from aligner.training.distributed.job_hosts import PORT, check_hosts, first_of_job, first_set


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


TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What starters of ranks call (rank, number of ranks, rank on this host, ranks on this host). The first that is there counts.
STARTERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    "Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    "PALS": ("PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
    "Flux": ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", "FLUX_JOB_TASKS_PER_NODE"),
    "PMIx": ("PMIX_RANK", "PMIX_SIZE", "PMIX_LOCAL_RANK", "PMIX_LOCAL_SIZE"),
}
NEVER_WITHOUT_SIZE = ("Open MPI", "MVAPICH", "jsrun")  # the others' names stand in single processes too
# What names a job of theirs: ranks on one host make the same port of it.
JOBS = (
    "PMIX_NAMESPACE",
    "OMPI_MCA_ess_base_jobid",
    "PMI_JOBID",
    "PALS_APID",
    "FLUX_JOB_ID",
    "SLURM_JOB_ID",
    "LSB_JOBID",
)
# What starters a host at a time call (this host's number, the number of hosts).
HOSTS = {"NODE_RANK": "NNODES", "GROUP_RANK": "GROUP_WORLD_SIZE", "PET_NODE_RANK": "PET_NNODES"}


def rank_variables(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The variables that torch reads to join all ranks, or None where this process was started alone.

    torchrun's (RANK, WORLD_SIZE, ...) are taken as they are, and what is missing among them is filled in where it can be
    known. Inside an srun of several tasks they are made of Slurm's, inside an mpirun of its. UserError names what is missing.
    """
    there = {name: value.strip() for name, value in environment.items() if value.strip()}  # an empty one says nothing
    there = {**_of_hosts(there), **there}
    if "RANK" in there or "WORLD_SIZE" in there:
        variables = _completed("torchrun", there)
    elif (tasks := _slurm_tasks(there)) > 1:
        variables = _slurm(there, tasks)
    elif starter := _starter(there):
        variables = _completed(starter, there)
    else:
        check_hosts(there)
        _check_local(there)
        return None
    whole = {**there, **variables}
    if not 0 <= _whole(whole, "RANK") < _whole(whole, "WORLD_SIZE"):
        raise UserError(
            f"RANK is {whole['RANK']} and WORLD_SIZE is {whole['WORLD_SIZE']}: ranks count from 0 to one less than their number."
        )
    return {
        name: value for name, value in whole.items() if name in TORCH and environment.get(name, "").strip() != value
    }


def _whole(environment: Mapping[str, str], name: str) -> int:
    """A variable's number. UserError where it holds none."""
    try:
        return int(environment[name])
    except ValueError:
        raise UserError(
            f"{name} is '{environment[name]}' in the environment, which is no whole number. Set it as torchrun does, or unset it."
        ) from None


def _of_hosts(there: Mapping[str, str]) -> dict[str, str]:
    """RANK and WORLD_SIZE where the host's number, the number of hosts and the place on this one are known instead."""
    number = next((name for name in HOSTS if name in there), None)
    if number is None or "LOCAL_RANK" not in there:
        return {}
    hosts = there.get(HOSTS[number]) or there.get("NUM_NODES") or ""
    local_size = there.get("LOCAL_WORLD_SIZE")
    if local_size is None and "WORLD_SIZE" in there and hosts.isdigit() and int(hosts):
        local_size = str(_whole(there, "WORLD_SIZE") // int(hosts))
    if local_size is None or not local_size.isdigit():
        return {}
    rank = {"RANK": str(_whole(there, number) * int(local_size) + _whole(there, "LOCAL_RANK"))}
    return {**rank, "WORLD_SIZE": str(int(hosts) * int(local_size))} if hosts.isdigit() else rank


def _starter(there: Mapping[str, str]) -> str | None:
    """What has started this as one of several ranks. UserError where it did, and does not say of how many."""
    for starter, (rank, size, *_) in STARTERS.items():
        if rank in there and size in there:
            return starter if there[size] != "1" else None
    for starter, (rank, size, *_) in STARTERS.items():
        if rank in there and (starter in NEVER_WITHOUT_SIZE or _whole(there, rank) > 0):
            raise _not_set(starter, rank, size)
        if size in there and starter in NEVER_WITHOUT_SIZE and there[size] != "1":
            raise _not_set(starter, size, rank)
    return None


def _not_set(starter: str, there: str, missing: str) -> UserError:
    return UserError(
        f"{there} is set in the environment and {missing} is not: {starter} sets both for each rank. Set both, or neither, or "
        "start the ranks with torchrun."
    )


def _completed(starter: str, there: Mapping[str, str]) -> dict[str, str]:
    """torch's variables beside those that are there, from a starter's. UserError where they cannot be known."""
    rank, size, *_ = STARTERS[starter]
    if missing := {rank, size} - there.keys():
        [given] = {rank, size} - missing
        raise _not_set(starter, given, min(missing))
    local_size = first_set(there, [names[3] for names in STARTERS.values()])
    wanted = {
        "RANK": there[rank],
        "WORLD_SIZE": there[size],
        "LOCAL_RANK": _local_rank(starter, there, _whole(there, rank), local_size),
        "MASTER_ADDR": _master(starter, there, there[size], local_size),
        "MASTER_PORT": _port(there),
    }
    return {name: value for name, value in wanted.items() if name not in there}


def _local_rank(starter: str, there: Mapping[str, str], rank: int, local_size: str | None) -> str:
    """This process's number on its host. Where nothing tells, a rank by torchrun's names is the only one there (as in a pod of a
    PyTorchJob), unless the pod is to hold several; an mpirun starts as many as it likes, and all would take the first GPU."""
    names = [names[2] for names in STARTERS.values()]
    known = first_set(there, [*names, "SLURM_LOCALID"])
    if known is None and local_size is not None and local_size.isdigit() and int(local_size):
        known = str(rank % int(local_size))
    if known is None and there.get("PET_NPROC_PER_NODE", "1") != "1":
        raise UserError(
            f"PET_NPROC_PER_NODE is {there['PET_NPROC_PER_NODE']} and LOCAL_RANK is not set: this pod is to hold several ranks, "
            "and this process is not one of them. Start torchrun -m aligner.training.finetune FLAGS, which reads PET_ variables."
        )
    if known is None and starter != "torchrun":
        raise UserError(
            f"{starter} started this as rank {rank}, and neither {STARTERS[starter][2]} nor LOCAL_RANK is set, so that its GPU is "
            "not known. Set LOCAL_RANK, the rank's number on its host, or start the ranks with torchrun."
        )
    return known or "0"


def _master(starter: str, there: Mapping[str, str], size: str, local_size: str | None) -> str:
    if there.get("MASTER_ADDR"):
        return there["MASTER_ADDR"]
    if size in ("1", local_size):
        return "127.0.0.1"
    if first := first_of_job(there):
        return first
    raise UserError(
        f"{starter} started this as one of {size} ranks, and MASTER_ADDR, the host of the first, is not set. Set it for all "
        "(mpirun -x MASTER_ADDR=HOST, or env: in a PyTorchJob), or start them with torchrun."
    )


def _port(there: Mapping[str, str]) -> str:
    """A port on which all ranks of a job agree without asking."""
    job = first_set(there, JOBS)
    return str(PORT if job is None else 20000 + zlib.crc32(job.encode()) % 10000)


def _slurm_tasks(there: Mapping[str, str]) -> int:
    """The tasks of the step that this is one of. In a batch script, outside srun, there is no step."""
    if "SLURM_STEP_NUM_TASKS" in there:
        return _whole(there, "SLURM_STEP_NUM_TASKS")
    in_step = "SLURM_STEP_ID" in there and "SLURM_PROCID" in there
    return _whole(there, "SLURM_NTASKS") if in_step and "SLURM_NTASKS" in there else 1


def _slurm(there: Mapping[str, str], tasks: int) -> dict[str, str]:
    """torch's variables from those of a Slurm step. The port follows from the job and the step; MASTER_PORT overrides it."""
    first, local = first_of_job(there), _slurm_local_rank(there)
    needed = {
        "SLURM_PROCID": there.get("SLURM_PROCID"),
        "SLURM_LOCALID": local,
        "SLURM_STEP_NODELIST": there.get("MASTER_ADDR") or first,
    }
    if missing := [name for name, value in needed.items() if not value]:
        raise UserError(
            f"this looks like one of {tasks} tasks of a Slurm step, and {' and '.join(missing)} is not set. Hand the step's "
            "variables on (srun --export=ALL), or start the ranks with torchrun."
        )
    job, step = (
        _whole(there, name) if name in there else 0
        for name in ("SLURM_JOB_ID" if "SLURM_JOB_ID" in there else "SLURM_JOBID", "SLURM_STEP_ID")
    )
    return {
        "RANK": there["SLURM_PROCID"],
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(tasks),
        "MASTER_ADDR": there.get("MASTER_ADDR") or str(first),
        "MASTER_PORT": there.get("MASTER_PORT") or str(20000 + (31 * job + step) % 20000),
    }


def _slurm_local_rank(there: Mapping[str, str]) -> str | None:
    """The task's number on its node; None where it is not known, also not by as many tasks on each node, in order."""
    tasks = re.fullmatch(
        r"(\d+)(\(x\d+\))?", first_set(there, ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"]) or ""
    )
    in_order = there.get("SLURM_DISTRIBUTION", "block").startswith("block")
    if "SLURM_LOCALID" in there or not (tasks and int(tasks[1]) and in_order and "SLURM_PROCID" in there):
        return there.get("SLURM_LOCALID")
    return str(_whole(there, "SLURM_PROCID") % int(tasks[1]))


def _check_local(there: Mapping[str, str]) -> None:
    """UserError where this is one of several processes on this host, and nothing says of how many in all."""
    if there.get("LOCAL_RANK", "0") not in ("0", "-1") or there.get("LOCAL_WORLD_SIZE", "1") != "1":
        given = ", ".join(f"{name}={there[name]}" for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in there)
        raise UserError(
            f"{given} is set in the environment, and RANK and WORLD_SIZE are not: nothing says which rank this is. Set both, as "
            "torchrun does, or unset the others."
        )


def idle_gpus(environment: Mapping[str, str], gpus: int) -> str | None:
    """A line where this host has more GPUs than ranks, so that some would be idle; None where it has not.

    `environment`: a rank's, with what `rank_variables` found.
    """
    local = first_set(environment, [names[3] for names in STARTERS.values()])
    if local is None and environment.get("SLURM_STEP_TASKS_PER_NODE"):
        local = re.split(r"\D", environment["SLURM_STEP_TASKS_PER_NODE"])[0]
    ranks = int(local) if local and local.isdigit() else int(environment.get("LOCAL_RANK") or 0) + 1
    if gpus <= ranks or int(environment.get("LOCAL_RANK") or 0):
        return None
    return (
        f"this host has {gpus} GPUs and {ranks} rank{'s' if ranks > 1 else ''}: {gpus - ranks} would be idle. Start one rank a "
        f"GPU (torchrun --nproc_per_node {gpus}; under Slurm --ntasks-per-node {gpus}; under mpirun -np)"
    )
