"""What a run needs of one machine, looked at in seconds: each finding is good, or comes with its remedy."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from aligner import network
from aligner.file_systems import abilities
from aligner.files import cache_folder
from aligner.surroundings import OFFLINE, prepared_folder

GOOD, WARNING, BAD = "good", "warning", "bad"
SKEW = 5.0  # seconds between clocks that do no harm
PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "safetensors", "wandb")


@dataclass(frozen=True)
class Check:
    """One line of the doctor's screen. `state`: good, warning (a run may be slow or lose something), bad (it would end)."""

    name: str
    state: str
    finding: str
    remedy: str = ""


def _check(name: str, finding: str, *faults: tuple[bool, str, str]) -> Check:
    """A check whose first fault (condition, state, remedy) that holds decides it."""
    for holds, state, remedy in faults:
        if holds:
            return Check(name, state, finding, remedy)
    return Check(name, GOOD, finding)


def software() -> Iterator[Check]:
    """Python and the packages."""
    old = sys.version_info < (3, 11)
    remedy = "Load a module or activate an environment with Python 3.11 or newer"
    yield _check("python", f"{platform.python_version()}, {sys.executable}", (old, BAD, remedy))
    versions, missing = [], []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    remedy = f"Missing: {', '.join(missing)}. Run 'bash scripts/sft-correction.sh --help', which sets them up"
    yield _check("packages", ", ".join(versions), (bool(missing), BAD, remedy))


def devices() -> Iterator[Check]:
    """CUDA, its driver, and the GPUs."""
    import torch

    file, driver = Path("/proc/driver/nvidia/version"), ""
    with suppress(OSError):
        driver = (re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", file.read_text()) or [file.read_text()[:40]] * 2)[1]
    cuda, count = torch.version.cuda, torch.cuda.device_count() if torch.cuda.is_available() else 0
    hardware = bool(driver) or any(Path("/dev").glob("nvidia[0-9]*"))
    yield _check(
        "CUDA",
        f"torch is built for {f'CUDA {cuda}' if cuda else 'CPU'}, driver {driver or 'none'}",
        (hardware and not cuda, BAD, "There is a GPU and torch has no CUDA: install torch from the default index"),
        (
            hardware and not count,
            BAD,
            f"torch sees no GPU: update the driver to one for CUDA {cuda}, or check CUDA_VISIBLE_DEVICES",
        ),
    )
    names: dict[str, int] = {}
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        what = f"{properties.name} with {properties.total_memory / 1e9:.0f} GB"
        names[what] = names.get(what, 0) + 1
    shown = ", ".join(f"{number} x {what}" for what, number in names.items())
    yield _check(
        "GPUs",
        shown or "none",
        (not count, WARNING, "Training runs on the CPU: fine for a first look, too slow for more"),
        (
            len(names) > 1,
            WARNING,
            "GPUs of several kinds wait for the slowest: name equal ones in CUDA_VISIBLE_DEVICES",
        ),
    )


def _limit(*files: str) -> str:
    """The first of these files of the control group that there is."""
    for file in files:
        with suppress(OSError):
            return Path("/sys/fs/cgroup", file).read_text().strip()
    return ""


def limits() -> Iterator[Check]:
    """Cores and memory that this process may use, shared memory, and the system's limits."""
    cores, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota, period = (*_limit("cpu.max").split(), "", "")[:2]
    if quota and quota != "max":
        usable = min(usable, max(1, round(int(quota) / int(period))))
    remedy = "Ask for more cores (--cpus-per-task, resources.limits.cpu): a rank needs a few"
    yield _check("cores", f"{usable} of {cores}", (usable < min(cores, 2), WARNING, remedy))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    granted = _limit("memory.max", "memory/memory.limit_in_bytes")
    memory = min(total, int(granted) / 1e9) if granted.isdigit() else total
    remedy = "The first command needs 8 GB on one rank: ask for more (--mem, resources.limits.memory)"
    yield _check(
        "memory", f"{memory:,.1f} of {total:,.1f} GB", (memory < 4, BAD, remedy), (memory < 8, WARNING, remedy)
    )
    try:
        shm = shutil.disk_usage("/dev/shm").free / 1e6
    except OSError:
        shm = 0
    remedy = "NCCL between GPUs needs more: docker run --shm-size 16g, or a memory volume at /dev/shm"
    yield _check("/dev/shm", f"{shm:,.0f} MB free", (shm < 1000, WARNING, remedy))
    files, locked = resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    few = files != resource.RLIM_INFINITY and files < 1024
    pinned = "unlimited" if locked == resource.RLIM_INFINITY else f"{locked / 1e6:,.0f} MB"
    shown = "unlimited" if files == resource.RLIM_INFINITY else f"{files:,}"
    yield _check(
        "ulimits", f"{shown} open files, {pinned} of locked memory", (few, WARNING, "Run 'ulimit -n 4096' first")
    )


def networks() -> Iterator[Check]:
    """Package index, hub, and wandb: reachable, or left alone by choice."""
    prepared = prepared_folder()
    if prepared and not (prepared / "prepared.json").is_file():
        yield Check("offline", BAD, f"{OFFLINE} is {prepared}", f"Fill it: bash scripts/prepare-offline.sh {prepared}")
    index = os.environ.get("PIP_INDEX_URL") or network.INDEX
    wandb = os.environ.get("WANDB_BASE_URL") or network.WANDB
    services = (
        (
            "index",
            index,
            bool(prepared),
            f"Prepare a folder where it can be reached: scripts/prepare-offline.sh DIR, {OFFLINE}=DIR",
        ),
        (
            "hub",
            network.hub_address(),
            network.hub_is_offline(),
            "Give models and data as files, or set HF_HUB_OFFLINE=1 to use the cache",
        ),
        (
            "wandb",
            wandb,
            os.environ.get("WANDB_MODE") in ("offline", "disabled"),
            "Set WANDB_MODE=offline; 'wandb sync' sends runs later",
        ),
    )
    with ThreadPoolExecutor() as together:
        urls = [url for _, url, by_choice, _ in services if not by_choice]
        reachable = dict(zip(urls, together.map(network.is_reachable, urls), strict=True))
    for name, url, by_choice, remedy in services:
        host = urlsplit(url).hostname or "a file"  # never the URL: it may hold a password
        if by_choice:
            yield Check(name, GOOD, "offline by choice")
        else:
            reached = host == "a file" or reachable[url]
            yield _check(name, f"{host} {'can' if reached else 'cannot'} be reached", (not reached, WARNING, remedy))


def file_systems(output: Path, need: float) -> Iterator[Check]:
    """Checkout, cache and output: what they refuse, and whether there is room. `need`: bytes that the run writes."""
    from aligner.training.flags import ROOT

    free = shutil.disk_usage(ROOT).free / 1e9
    writable = os.access(ROOT, os.W_OK)
    yield Check("checkout", GOOD, f"{ROOT}: {'writable' if writable else 'read-only'}, {free:,.1f} GB free")
    for name, folder, needed, variable in (
        ("cache", cache_folder(), 0.6e9, "ALIGNER_CACHE"),
        ("output", output, need, "--output_dir"),
    ):
        new = not folder.exists()
        able = abilities(folder)
        refused = [each.name for each in able if not each.works]
        ends = [f"{each.name} ({each.error})" for each in able if each.needed and not each.works]
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        room = shutil.disk_usage(there).free
        if new:
            with suppress(OSError):
                folder.rmdir()
        words = f"{folder}: {room / 1e9:,.1f} GB free of {needed / 1e9:,.1f} needed" + (
            f", refuses {', '.join(refused)}" if refused else ""
        )
        yield _check(
            name,
            words,
            (bool(ends), BAD, f"It cannot {'; '.join(ends)}: set {variable} to another file system"),
            (room < needed, BAD, f"Make room, or set {variable} to another file system"),
        )


def clock(output: Path) -> Iterator[Check]:
    """This machine's clock against that of the output's file server."""
    place = next(p for p in (output, *output.absolute().parents) if p.is_dir())
    try:
        before = time.time()
        with tempfile.NamedTemporaryFile(dir=place) as stream:
            stream.write(b"now")
            stream.flush()
            skew = os.fstat(stream.fileno()).st_mtime - (before + time.time()) / 2
    except OSError:
        return
    yield _check(
        "clock",
        f"{skew:+.1f} s at the file server of {place}",
        (abs(skew) > SKEW, WARNING, "Set the clock (chrony, ntp)"),
    )


def check_machine(output: Path, need: float) -> list[Check]:
    """All checks of this machine. `need`: bytes that the run writes to the output."""
    return [*software(), *devices(), *limits(), *networks(), *file_systems(output, need), *clock(output)]
