"""The hosts of a job, as its scheduler or its platform names them: the first of them, and whether there are several."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aligner.records import UserError

PORT = 29500  # torch's own default
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


def first_host(nodelist: str) -> str:
    """The first name of Slurm's list of nodes: gpu[03-05,07],cpu1 begins with gpu03, and r[1-2]n[1-4] with r1n1."""
    name = re.match(r"(?:[^,\[\]]|\[[0-9][^\]]*\])+", nodelist)
    if name is None:
        raise UserError(f"SLURM_STEP_NODELIST is '{nodelist}', which begins with no node's name. Set MASTER_ADDR.")
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", name[0])


def first_of_job(there: Mapping[str, str]) -> str | None:
    """The first host of this job, as its scheduler or platform names it; None where none does."""
    if nodes := first_set(there, ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"]):
        return first_host(nodes)
    if pairs := there.get("LSB_MCPU_HOSTS", "").split():
        slots = {host: int(count) for host, count in zip(pairs[::2], pairs[1::2], strict=False) if count.isdigit()}
        batch = next(iter(slots), None)  # the host of the batch script, where it has one slot and runs no rank
        return next((host for host, count in slots.items() if count > 1), batch)
    if names := first_set(there, HOST_LISTS):
        return _head(names).split(":")[0]
    for variable in HOST_FILES:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if variable in there and (words := Path(there[variable]).read_text().split()):
                return words[0]
    return None


def check_hosts(there: Mapping[str, str]) -> None:
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


def first_set(environment: Mapping[str, str], names: Sequence[str]) -> str | None:
    """The value of the first of these variables that is set; None where none is."""
    return next((environment[name] for name in names if environment.get(name)), None)
