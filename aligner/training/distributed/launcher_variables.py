"""Which rank this process is when something else has started all of them: torchrun, srun, mpirun, a PyTorchJob."""

from __future__ import annotations

import contextlib
import re
import socket
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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


TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
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
# What starters a host at a time call (this host's number, the number of hosts).
HOSTS = {"NODE_RANK": "NNODES", "GROUP_RANK": "GROUP_WORLD_SIZE", "PET_NODE_RANK": "PET_NNODES"}
# Lists that begin with the first rank's host, and files whose first line does.
HOST_LISTS = (
    "SM_HOSTS",
    "SKYPILOT_NODE_IPS",
    "AZ_BATCH_MASTER_NODE",
    "AZ_BATCHAI_MPI_MASTER_NODE",
    "PET_MASTER_ADDR",
    "LSB_HOSTS",
)
HOST_FILES = ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "PE_HOSTFILE", "COBALT_NODEFILE")


@dataclass(frozen=True)
class Platform:
    """What starts one process a host: how it calls this host's number, the number of hosts or all of them, and the first."""

    number: str
    hosts: tuple[str, ...]
    first: str
    certain: bool = True  # whether several hosts alone say that it has started this; else its number has to be there


PLATFORMS = {
    "SkyPilot": Platform("SKYPILOT_NODE_RANK", ("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_IPS"), "SKYPILOT_NODE_IPS"),
    "SageMaker": Platform("SM_CURRENT_HOST", ("SM_HOSTS",), "SM_HOSTS"),
    "PyTorchJob": Platform("PET_NODE_RANK", ("PET_NNODES",), "PET_MASTER_ADDR"),
    "Azure ML": Platform("NODE_RANK", ("AZUREML_NODE_COUNT",), "MASTER_ADDR", certain=False),
    "the environment": Platform("NODE_RANK", ("NNODES", "NUM_NODES"), "MASTER_ADDR", certain=False),
    "torchrun's environment": Platform("GROUP_RANK", ("GROUP_WORLD_SIZE",), "MASTER_ADDR", certain=False),
}


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
        _check_hosts(there)
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
    local_size = _first(there, [names[3] for names in STARTERS.values()])
    wanted = {
        "RANK": there[rank],
        "WORLD_SIZE": there[size],
        "LOCAL_RANK": _local_rank(starter, there, _whole(there, rank), local_size),
        "MASTER_ADDR": _master(starter, there, there[size], local_size),
        "MASTER_PORT": _port(there),
    }
    return {name: value for name, value in wanted.items() if name not in there}


def _first(environment: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _local_rank(starter: str, there: Mapping[str, str], rank: int, local_size: str | None) -> str:
    """This process's number on its host. Where nothing tells, a rank by torchrun's names is the only one there (as in a pod of a
    PyTorchJob), unless the pod is to hold several; an mpirun starts as many as it likes, and all would take the first GPU."""
    names = [names[2] for names in STARTERS.values()]
    known = _first(there, [*names, "SLURM_LOCALID"])
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
    if first := _first_of_job(there):
        return first
    raise UserError(
        f"{starter} started this as one of {size} ranks, and MASTER_ADDR, the host of the first, is not set. Set it for all "
        "(mpirun -x MASTER_ADDR=HOST, or env: in a PyTorchJob), or start them with torchrun."
    )


def _first_of_job(there: Mapping[str, str]) -> str | None:
    """The first host of this job, as its scheduler or platform names it; None where none does."""
    if nodes := _first(there, ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"]):
        return first_host(nodes)
    if pairs := there.get("LSB_MCPU_HOSTS", "").split():
        slots = {host: int(count) for host, count in zip(pairs[::2], pairs[1::2], strict=False) if count.isdigit()}
        batch = next(iter(slots), None)  # the host of the batch script, where it has one slot and runs no rank
        return next((host for host, count in slots.items() if count > 1), batch)
    if names := _first(there, HOST_LISTS):
        return _head(names).split(":")[0]
    for variable in HOST_FILES:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if variable in there and (words := Path(there[variable]).read_text().split()):
                return words[0]
    return None


def _port(there: Mapping[str, str]) -> str:
    """A port on which all ranks of a job agree without asking."""
    job = _first(there, JOBS)
    return str(PORT if job is None else 20000 + zlib.crc32(job.encode()) % 10000)


def _slurm_tasks(there: Mapping[str, str]) -> int:
    """The tasks of the step that this is one of. In a batch script, outside srun, there is no step."""
    if "SLURM_STEP_NUM_TASKS" in there:
        return _whole(there, "SLURM_STEP_NUM_TASKS")
    in_step = "SLURM_STEP_ID" in there and "SLURM_PROCID" in there
    return _whole(there, "SLURM_NTASKS") if in_step and "SLURM_NTASKS" in there else 1


def _slurm(there: Mapping[str, str], tasks: int) -> dict[str, str]:
    """torch's variables from those of a Slurm step. The port follows from the job and the step; MASTER_PORT overrides it."""
    first, local = _first_of_job(there), _slurm_local_rank(there)
    needed = {"SLURM_PROCID": there.get("SLURM_PROCID"), "SLURM_LOCALID": local,
              "SLURM_STEP_NODELIST": there.get("MASTER_ADDR") or first}  # fmt: skip
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
        r"(\d+)(\(x\d+\))?", _first(there, ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"]) or ""
    )
    in_order = there.get("SLURM_DISTRIBUTION", "block").startswith("block")
    if "SLURM_LOCALID" in there or not (tasks and int(tasks[1]) and in_order and "SLURM_PROCID" in there):
        return there.get("SLURM_LOCALID")
    return str(_whole(there, "SLURM_PROCID") % int(tasks[1]))


def _check_hosts(there: Mapping[str, str]) -> None:
    """UserError where a platform started one process on each of several hosts: each would train by itself."""
    for name, platform in PLATFORMS.items():
        count = next((_count(there[hosts]) for hosts in platform.hosts if hosts in there), 1)
        if count > 1 and (platform.certain or platform.number in there):
            number = there.get(platform.number, "not set")
            raise UserError(
                f"{name} started this on {count} hosts ({platform.number} is {number}), and nothing says which rank it is: each "
                f"would train by itself. On each, start torchrun --nnodes {count} --node_rank {_number(there, platform)} "
                f"--nproc_per_node GPUS --master_addr {_head(there.get(platform.first, '')) or 'HOST'} --master_port {PORT} "
                "-m aligner.training.finetune FLAGS"
            )


def _check_local(there: Mapping[str, str]) -> None:
    """UserError where this is one of several processes on this host, and nothing says of how many in all."""
    if there.get("LOCAL_RANK", "0") not in ("0", "-1") or there.get("LOCAL_WORLD_SIZE", "1") != "1":
        given = ", ".join(f"{name}={there[name]}" for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in there)
        raise UserError(
            f"{given} is set in the environment, and RANK and WORLD_SIZE are not: nothing says which rank this is. Set both, as "
            "torchrun does, or unset the others."
        )


def _count(hosts: str) -> int:
    """A number of hosts, the larger one of a range, or how many a list names."""
    number = hosts.rpartition(":")[2]
    return int(number) if number.isdigit() else len(_names(hosts))


def _names(hosts: str) -> list[str]:
    """The hosts of a JSON list or of lines."""
    return re.findall(r"[^\s,\[\]\"']+", hosts)


def _head(hosts: str) -> str:
    return next(iter(_names(hosts)), "")


def _number(there: Mapping[str, str], platform: Platform) -> str:
    """This host's number; SageMaker gives its name instead."""
    named, own = _names(there.get(platform.first, "")), there.get(platform.number, "NUMBER")
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
