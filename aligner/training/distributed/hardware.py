"""What this machine has, and the settings that follow from it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from aligner.records import UserError
from aligner.training.config import RunConfig
from aligner.training.config_check import check, check_packages


def gpus_here() -> int:
    """GPUs that this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def nvidia_devices(root: Path = Path("/dev")) -> list[Path]:
    """The NVIDIA GPUs that the machine has, whether torch can use them or not."""
    return sorted(root.glob("nvidia[0-9]*"))


def nvidia_driver(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of the NVIDIA driver, as its kernel module says it."""
    version = re.search(r"\b\d{3}\.\d+(\.\d+)?", file.read_text(errors="replace")) if file.is_file() else None
    return version[0] if version else "of unknown version"


def check_gpus_are_usable(config: RunConfig) -> None:
    """UserError where the machine has GPUs that torch cannot use, and nobody asked for the CPU: by `--device cpu`, or by an empty
    CUDA_VISIBLE_DEVICES. An 8-GPU node would otherwise train on one CPU process."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")
    if config.launch.device == "cpu" or hidden or gpus_here() or not nvidia_devices():
        return
    wheel = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a CPU build"
    raise UserError(
        f"this machine has {len(nvidia_devices())} NVIDIA GPU(s) and torch sees none: the driver is {nvidia_driver()}, and torch "
        f"{torch.__version__} {wheel} (CUDA 13 needs driver 580 or newer). Install a torch wheel that fits the driver, or update "
        "the driver, or train on the CPU with --device cpu."
    )


def ranks_here(config: RunConfig) -> int:
    """Processes to start on this machine: a GPU each, or one on a machine without any. UserError for too many."""
    gpus = gpus_here()
    if config.launch.gpus and gpus and config.launch.gpus > gpus:
        raise UserError(f"--gpus {config.launch.gpus}: this machine has {gpus}.")
    return config.launch.gpus or gpus or 1


def gpu_memory() -> int | None:
    """Bytes of the smallest GPU here, or None where there is none."""
    return min((torch.cuda.get_device_properties(i).total_memory for i in range(gpus_here())), default=None)


def spare_memory() -> int:
    """Bytes of this host's memory that can still be taken, by the system's account and by its control group's limit."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    spare = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError, StopIteration):  # no control group, or one without a limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        kinds = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        spare = min(spare, limit - used + next(int(size) for kind, size in kinds if kind == "inactive_file"))
    return spare


def threads_per_rank(ranks: int) -> int:
    """CPU threads for each of `ranks` processes on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def bf16_here() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware: an Ampere GPU or later, a CPU with AMX or AVX-512's
    bfloat16 products."""
    if gpus_here():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with its open choices (bf16, tf32) settled by what the device has. UserError for fp16, or
    weights of 4 bits, on CPU.

    With a hostfile and no GPU here (a login node) the hosts are taken to have both, unless DS_ACCELERATOR says cpu.
    """
    if config.launch.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for the first time; the ranks inherit it
    check_gpus_are_usable(config)
    check_packages(config)
    gpu, remote = gpus_here() > 0, bool(config.launch.hostfile) and os.environ.get("DS_ACCELERATOR") != "cpu"
    o = config.optimization
    if remote and not gpu:
        bf16, tf32 = (not o.fp16 if o.bf16 is None else o.bf16), (True if o.tf32 is None else o.tf32)
        return settled(config, bf16, tf32)
    if o.fp16 and not gpu:
        raise UserError("--fp16 needs a GPU; on a CPU choose --bf16 or neither.")
    if config.lora.lora_4bit and not gpu:
        raise UserError("--lora_4bit needs a GPU, and torch sees none here: leave it out.")
    bf16 = (not o.fp16 and bf16_here()) if o.bf16 is None else o.bf16
    tf32 = (gpu and torch.cuda.get_device_capability()[0] >= 8) if o.tf32 is None else o.tf32
    return settled(config, bf16, tf32)


def settled(config: RunConfig, bf16: bool, tf32: bool) -> RunConfig:
    """The configuration with these choices, checked once more."""
    config = replace(config, optimization=replace(config.optimization, bf16=bf16, tf32=tf32))
    check(config)
    return config


def dtype_of(config: RunConfig) -> torch.dtype:
    """The type the model computes in."""
    o = config.optimization
    return torch.bfloat16 if o.bf16 else torch.float16 if o.fp16 else torch.float32
