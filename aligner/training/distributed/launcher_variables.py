"""Which rank this process is when something else has started all of them: torchrun, srun, mpirun, a PyTorchJob."""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Mapping, Sequence

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


# What starters of ranks call (rank, number of ranks, rank on this host, ranks on this host). The first that is there counts.
STARTERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    "Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    "PALS": ("PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
    "Flux": ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", "FLUX_JOB_TASKS_PER_NODE"),
    "PMIx": ("PMIX_RANK", "PMIX_SIZE", "PMIX_LOCAL_RANK", "PMIX_LOCAL_SIZE"),
}  # fmt: skip
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
PORT = 29500  # torch's own default
# What platforms that start one process a host call (this host's number, the number of hosts, the first host).
PLATFORMS = {
    "SkyPilot": ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_IPS"),
    "SageMaker": ("SM_CURRENT_HOST", "SM_HOSTS", "SM_HOSTS"),
    "PyTorchJob": ("PET_NODE_RANK", "PET_NNODES", "PET_MASTER_ADDR"),
    "the environment": ("NODE_RANK", "NNODES", "MASTER_ADDR"),
}


def rank_variables(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The variables that torch reads to join all ranks, or None where this process was started alone.

    torchrun's (RANK, WORLD_SIZE, ...) are taken as they are, and what is missing among them is filled in where it can be
    known. Inside an srun of several tasks they are made of Slurm's, inside an mpirun of its. UserError names what is missing.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _completed("torchrun", environment)
    if int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        return _slurm(environment)
    for starter, (rank, size, *_) in STARTERS.items():
        if rank in environment and (size in environment or starter in NEVER_WITHOUT_SIZE):
            return None if environment.get(size) == "1" else _completed(starter, environment)
    _check_hosts(environment)
    return None


def _completed(starter: str, environment: Mapping[str, str]) -> dict[str, str]:
    """torch's variables beside those that are there, from a starter's. UserError where they cannot be known."""
    rank, size, _, _ = STARTERS[starter]
    if missing := {rank, size} - environment.keys():
        [there] = {rank, size} - missing
        raise UserError(
            f"{there} is set in the environment and {min(missing)} is not. Set both, as torchrun does, or neither."
        )
    local_size = _first(environment, [names[3] for names in STARTERS.values()])
    wanted = {
        "RANK": environment[rank],
        "WORLD_SIZE": environment[size],
        "LOCAL_RANK": _local_rank(environment, int(environment[rank]), local_size),
        "MASTER_ADDR": _master(environment, environment[size], local_size, starter),
        "MASTER_PORT": _port(environment),
    }
    return {name: value for name, value in wanted.items() if name not in environment}


def _first(environment: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _local_rank(environment: Mapping[str, str], rank: int, local_size: str | None) -> str:
    """This process's number on its host; where nothing tells, it is the only one there (as in a pod of a PyTorchJob)."""
    names = [names[2] for names in STARTERS.values()]
    known = _first(environment, [*names, "SLURM_LOCALID"])
    if known is None and local_size is not None and local_size.isdigit():
        known = str(rank % int(local_size))
    return known or "0"


def _master(environment: Mapping[str, str], size: str, local_size: str | None, starter: str) -> str:
    if environment.get("MASTER_ADDR"):
        return environment["MASTER_ADDR"]
    if size in ("1", local_size):
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if nodes:
        return first_host(nodes)
    if environment.get("LSB_MCPU_HOSTS"):
        return environment["LSB_MCPU_HOSTS"].split()[0]
    raise UserError(
        f"{starter} started this as one of {size} ranks, and MASTER_ADDR, the host of the first, is not set. Set it for all "
        "(mpirun -x MASTER_ADDR=HOST, or env: in a PyTorchJob), or start them with torchrun."
    )


def _port(environment: Mapping[str, str]) -> str:
    """A port on which all ranks of a job agree without asking."""
    job = _first(environment, JOBS)
    return str(PORT if job is None else 20000 + zlib.crc32(job.encode()) % 10000)


def _slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """torch's variables from those of a Slurm step. The port follows from the job and the step; MASTER_PORT overrides it."""
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


def _check_hosts(environment: Mapping[str, str]) -> None:
    """UserError where a platform started one process on each of several hosts: each would train by itself."""
    for platform, (number, hosts, first) in PLATFORMS.items():
        if environment.get(number) and (count := _count(environment.get(hosts, ""))) > 1:
            raise UserError(
                f"{platform} started this on {count} hosts ({number} is {environment[number]}), and nothing says which rank "
                f"it is: each would train by itself. On each, start torchrun --nnodes {count} --node_rank "
                f"{_number(environment, number, hosts)} --nproc_per_node GPUS --master_addr "
                f"{_head(environment.get(first, '')) or 'HOST'} --master_port {PORT} -m aligner.training.finetune FLAGS"
            )


def _count(hosts: str) -> int:
    """A number of hosts, or how many a list names."""
    return int(hosts) if hosts.isdigit() else len(_names(hosts))


def _names(hosts: str) -> list[str]:
    """The hosts of a JSON list or of lines."""
    return re.findall(r"[^\s,\[\]\"']+", hosts)


def _head(hosts: str) -> str:
    return next(iter(_names(hosts)), "")


def _number(environment: Mapping[str, str], number: str, hosts: str) -> str:
    """This host's number; SageMaker gives its name instead."""
    named, own = _names(environment.get(hosts, "")), environment[number]
    return str(named.index(own)) if own in named else own


def idle_gpus(environment: Mapping[str, str], gpus: int) -> str | None:
    """A line where this host has more GPUs than ranks, so that some would be idle; None where it has not.

    `environment`: a rank's, with what `rank_variables` found.
    """
    local = _first(environment, [names[3] for names in STARTERS.values()])
    if local is None and environment.get("SLURM_STEP_TASKS_PER_NODE"):
        local = re.split(r"\D", environment["SLURM_STEP_TASKS_PER_NODE"])[0]
    ranks = int(local) if local and local.isdigit() else int(environment.get("LOCAL_RANK") or 0) + 1
    if gpus <= ranks or int(environment.get("LOCAL_RANK") or 0):
        return None
    return (
        f"this host has {gpus} GPUs and {ranks} rank{'s' if ranks > 1 else ''}: {gpus - ranks} would be idle. Start one rank a "
        f"GPU (torchrun --nproc_per_node {gpus}; under Slurm --ntasks-per-node {gpus}; under mpirun -np)"
    )
