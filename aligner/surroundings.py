"""What the program needs of its surroundings before anything heavy is imported: a home, and no network where none is wanted.

ALIGNER_OFFLINE names a folder that scripts/prepare-offline.sh has filled: then hub, index and trackers are not asked.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from aligner.terminal import print_errors

OFFLINE = "ALIGNER_OFFLINE"
PACKAGES, MODELS, HUB = "packages", "models", "hub"  # the rooms of a prepared folder


def prepare_process(arguments: Sequence[str]) -> None:
    """Set what libraries read from the environment when they are imported. `arguments`: the command line, for --output_dir."""
    open_outputs()
    if (home := missing_home(arguments)) is not None:
        os.environ["HOME"] = str(home)
        os.environ.setdefault("USER", f"user{os.getuid()}")
        print_errors(f"there is no home for user id {os.getuid()}: caches are kept in {home}")
    if not (
        sys.stderr and sys.stderr.isatty()
    ):  # bars are for terminals: the hub's libraries draw theirs into files, too
        for library in ("HF_DATASETS", "HF_HUB"):
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    if folder := prepared_folder():
        os.environ |= offline_variables(folder)
        os.environ.setdefault("WANDB_MODE", "offline")


def open_outputs() -> None:
    """Put /dev/null in the place of inputs and outputs that are closed: the next file opened would take their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")


# What libraries say where the system gives no more memory, threads or handles: none of them has an error of its own for it.
_SHORTAGES = {
    "failed to map segment": "memory (ulimit -v)",
    "annot allocate memory": "memory (ulimit -v)",
    "std::bad_alloc": "memory (ulimit -v)",
    "can't start new thread": "threads (ulimit -u)",
    "Too many open files": "open files (ulimit -n)",
}


def shortage(error: BaseException) -> str | None:
    """One line for an error that says that a limit of this process is reached; None for another one."""
    first = (str(error).splitlines() or [""])[0][:200]
    lacking = "memory (ulimit -v)" if isinstance(error, MemoryError) else None
    lacking = lacking or next((what for words, what in _SHORTAGES.items() if words in str(error)), None)
    finding = f" ({first})" if first else ""
    return lacking and f"this process gets no more {lacking}{finding}. Raise that limit, or the container's."


def missing_home(arguments: Sequence[str]) -> Path | None:
    """Where a home is made for a user without one (a container's user id): beside the output; None where there is one."""
    try:
        Path.home()
        return None
    except RuntimeError:
        named = [value for flag, value in itertools.pairwise(arguments) if flag == "--output_dir"]
        named += [word.partition("=")[2] for word in arguments if word.startswith("--output_dir=")]
        return (Path(named[-1]).absolute().parent if named else Path.cwd() / "output") / "aligner-home"


def prepared_folder() -> Path | None:
    """The folder that ALIGNER_OFFLINE names."""
    named = os.environ.get(OFFLINE)
    return Path(named).absolute() if named else None


def offline_variables(folder: Path) -> dict[str, str]:
    """What keeps the hub's libraries from the network and leads them to a prepared folder."""
    never = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {"HF_HOME": str(folder / HUB), **never}
