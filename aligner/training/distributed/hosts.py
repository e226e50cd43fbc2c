"""Many nodes over pdsh (`--hostfile`): their names, the variables they receive, and words quoted for their shells.

DeepSpeed hands its command to a shell on each host and quotes only words with a blank, with double quotes; pdsh itself
reads '%'. It exports PYTHON* and, on GPUs, NCCL*; the rest of FORWARDED travels in front of the command, through `env`.
"""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aligner.files import read_text, write_text
from aligner.records import UserError

FORWARDED = re.compile(
    r"(HF_HOME|HF_ENDPOINT|HF_HUB_|HF_DATASETS_|TRANSFORMERS_|WANDB_(MODE|DIR|BASE_URL|ENTITY)|ALIGNER_|NCCL_|GLOO_|TORCH_|"
    r"DEEPSPEED_TIMEOUT|DS_ACCELERATOR|LOCAL_SIZE|OMP_|MALLOC_|TOKENIZERS_PARALLELISM|LD_LIBRARY_PATH|TMPDIR)"
)
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW")  # they would show in every host's process list
# DeepSpeed's form and OpenMPI's: `w1 slots=8`, `w1 slots = 2 max_slots=8`, `w1:2`, `w1` (a slot each time it stands there).
_LINE = re.compile(
    r"(?P<name>[^\s:=\[\]]+)(:(?P<count>[0-9]+)|\s+slots\s*=\s*(?P<slots>[0-9]+))?(\s+max[-_]slots\s*=\s*[0-9]+)?"
)
_RANGE = re.compile(r"\[([0-9][0-9,-]*)\]")
LAUNCHER_FLAGS = {"--master_addr", "--master_port", "--ssh_port", "--venv_script", "--no_ssh_check", "--launcher_args"}


def launcher_words(text: str) -> list[str]:
    """The words of `--launcher_args`. UserError for a flag that is not about reaching the hosts."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--launcher_args {text}: {error}.") from None
    flags = [word.split("=")[0] for word in words if word.startswith("-")]
    if words and (not flags or not words[0].startswith("-") or set(flags) - LAUNCHER_FLAGS):
        raise UserError(f"--launcher_args {text}: may hold {', '.join(sorted(LAUNCHER_FLAGS))}, each with its value.")
    return words


@dataclass(frozen=True)
class Host:
    """A line of a hostfile: a name that ssh knows, and the ranks to start there."""

    name: str
    slots: int


def read_hostfile(file: str) -> list[Host]:
    """The hosts of a hostfile, lines like `worker-1 slots=8`, or OpenMPI's forms. UserError names a line that is none.

    `w[1-3] slots=8` stands for w1, w2 and w3; a host without a number of slots has one for each line that it stands in.
    """
    hosts: dict[str, int] = {}
    bare: set[str] = set()
    for number, line in enumerate(read_text(file).lstrip("\ufeff").splitlines(), 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        place = f"{file} line {number}"
        names, rest = expanded(text, place)
        match = _LINE.fullmatch(f"{names[0]}{rest}")
        slots = int((match["count"] or match["slots"] or 1) if match else 0)
        if not match or slots < 1:
            raise UserError(f"{place}: '{text}' is not like 'worker-1 slots=8'.")
        alone = not (match["count"] or match["slots"])
        for name in names:
            if name in hosts and not (alone and name in bare):
                raise UserError(f"{place}: {name} stands twice.")
            hosts[name] = hosts.get(name, 0) + slots
            bare |= {name} if alone else set()
    if not hosts:
        raise UserError(f"{file}: names no host. Write lines like 'worker-1 slots=8'.")
    return [Host(name, slots) for name, slots in hosts.items()]


def expanded(text: str, place: str) -> tuple[list[str], str]:
    """The names that a line's first word stands for, as Slurm writes them (w[1-2,07]), and the rest of the line."""
    word = re.match(r"(?:\[[^\]]*\]|[^\s:\[])+", text)
    first, names = (word[0] if word else text), [""]
    for index, part in enumerate(_RANGE.split(first)):
        values = [part] if index % 2 == 0 else [value for piece in part.split(",") for value in _numbers(piece, place)]
        names = [name + value for name in names for value in values]
    return names, text[len(first) :]


def _numbers(piece: str, place: str) -> list[str]:
    """The numbers of a range, as wide as its first is written: 08-10 is 08, 09, 10."""
    low, dash, high = piece.partition("-")
    last = high if dash else low
    if not (low.isdigit() and last.isdigit() and 0 <= int(last) - int(low) < 10_000):
        raise UserError(f"{place}: '{piece}' is not a range like 1-4.")
    return [str(value).zfill(len(low)) for value in range(int(low), int(last) + 1)]


def hostfile_for_deepspeed(file: str, folder: Path) -> str:
    """A hostfile that DeepSpeed's launcher reads as we do: the file itself, or one in the run's folder with a line a host."""
    plain = [f"{host.name} slots={host.slots}" for host in read_hostfile(file)]
    lines = [" ".join(line.split("#")[0].split()) for line in read_text(file).splitlines()]
    if [line for line in lines if line] == plain:
        return file
    write_text(folder / "hostfile", "".join(f"{line}\n" for line in plain))
    return str(folder / "hostfile")


def is_here(name: str) -> bool:
    """Whether a host's name is this machine's: only then can its address be listened at."""
    try:
        with socket.socket() as listener:
            listener.bind((socket.gethostbyname(name), 0))
    except OSError:
        return False
    return True


def forwarded_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that go to the other hosts; never one whose name is like that of a secret."""
    return {k: v for k, v in sorted(environment.items()) if FORWARDED.match(k) and not SECRET.search(k)}


def remote_words(words: Sequence[str]) -> list[str]:
    """The words of a command written so that they reach the program on a host as they are here."""
    return [_quoted(word).replace("%", "%%") for word in words]


def _quoted(word: str) -> str:
    # DeepSpeed puts double quotes around a word with a blank, and a backslash before its double quotes.
    return re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)
