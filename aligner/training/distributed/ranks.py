"""This process among all ranks: joining their group, deciding together, failing together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

if not torch.cuda.is_available():  # here and nowhere else: the launcher on a login node starts ranks that have GPUs
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before the import, or each rank logs a search for one

import deepspeed
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from aligner.records import UserError
from aligner.system_errors import system_error

PATIENCE = 30  # minutes that ranks wait for each other: one may fetch the base model, or write a state, alone
Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among all of them, and the device it computes on."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def on_this_host(self) -> int:
        """How many of the ranks run on this one's host."""
        hosts: list[str] = [""] * self.count
        dist.all_gather_object(hosts, socket.gethostname())
        return hosts.count(socket.gethostname())

    def wait(self) -> None:
        """Return when all ranks have come here."""
        dist.barrier()

    def broadcast_from_rank0(self, compute: Callable[[], Value]) -> Value:
        """What the first rank computes, given to all; its error is raised by all. (Folders may look different to others.)"""
        box: list[Any] = [None]
        if self.first:
            try:
                box[0] = compute()
            except (UserError, OSError) as error:
                box[0] = error if isinstance(error, UserError) else system_error(error)
        dist.broadcast_object_list(box, src=0, device=self.device)
        if isinstance(box[0], UserError):
            raise box[0]
        value: Value = box[0]
        return value

    def all_succeed(self, act: Callable[[], None]) -> None:
        """Each rank acts; where one raises a UserError, all raise it, with the number of the first rank that did."""
        errors: list[UserError | None] = [None] * self.count
        own_error: UserError | None = None
        try:
            act()
        except (UserError, OSError) as error:
            own_error = error if isinstance(error, UserError) else system_error(error)
        dist.all_gather_object(errors, own_error)
        for rank, failure in enumerate(errors):
            if failure is not None:
                raise UserError(f"rank {rank}: {failure}" if self.count > 1 else str(failure))

    def assert_same_on_all_ranks(self, values: dict[str, Any]) -> None:
        """UserError, on all, where a rank has other values than the first: files of one name may differ between hosts."""
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, (socket.gethostname(), values))
        first_host, first_values = gathered[0]
        for rank, (host, theirs) in enumerate(gathered):
            if differing := sorted(name for name in theirs if theirs[name] != first_values.get(name)):
                raise UserError(
                    f"rank {rank} on {host} has another {', '.join(differing)} than rank 0 on {first_host}. "
                    "Give all hosts the same files and packages."
                )

    def any(self, value: bool) -> bool:
        """Whether the value is true on some rank."""
        return self.sum(torch.tensor([float(value)]))[0] > 0

    def sum(self, values: torch.Tensor) -> list[float]:
        """Sums over all ranks, in double precision, read once."""
        total = values.to(self.device, torch.float64)
        dist.all_reduce(total)
        return total.tolist()


def connect(local_rank: int) -> Ranks:
    """Join the process group that the launcher's environment describes."""
    accelerator = get_accelerator()
    local_rank = int(os.environ.get("LOCAL_RANK", max(local_rank, 0)))
    on_cpu = accelerator.device_name() == "cpu"
    if on_cpu:
        # DeepSpeed would compile a C++ op for gloo: a minute, and a crash where there is no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        local_rank %= max(1, accelerator.device_count())  # Slurm may show a task its own GPU alone
        os.environ["LOCAL_RANK"] = str(local_rank)  # DeepSpeed and accelerate read it again
        accelerator.set_device(local_rank)
    if not dist.is_initialized():
        backend = "gloo" if on_cpu else accelerator.communication_backend_name()
        limit = timedelta(minutes=int(os.environ.get("DEEPSPEED_TIMEOUT") or PATIENCE))
        deepspeed.init_distributed(dist_backend=backend, timeout=limit, verbose=False)
    device = torch.device("cpu") if on_cpu else torch.device(accelerator.current_device_name())
    return Ranks(dist.get_rank(), dist.get_world_size(), device)
