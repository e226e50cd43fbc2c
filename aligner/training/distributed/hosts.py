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

from aligner.files import read_text
from aligner.records import UserError

FORWARDED = re.compile(
    r"(HF_HOME|HF_ENDPOINT|HF_HUB_|HF_DATASETS_|TRANSFORMERS_|WANDB_(MODE|DIR|BASE_URL|ENTITY)|ALIGNER_|NCCL_|GLOO_|TORCH_|"
    r"DEEPSPEED_TIMEOUT|DS_ACCELERATOR|LOCAL_SIZE|OMP_|MALLOC_|TOKENIZERS_PARALLELISM|LD_LIBRARY_PATH|TMPDIR)"
)
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW")  # they would show in every host's process list
_LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>[0-9]+)")
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
    """The hosts of a DeepSpeed hostfile, lines like `worker-1 slots=8`. UserError names a line that is none."""
    hosts: list[Host] = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if not match or int(match["slots"]) < 1:
            raise UserError(f"{file} line {number}: '{text}' is not like 'worker-1 slots=8'.")
        if match["name"] in {host.name for host in hosts}:
            raise UserError(f"{file} line {number}: {match['name']} stands twice.")
        hosts.append(Host(match["name"], int(match["slots"])))
    if not hosts:
        raise UserError(f"{file}: names no host. Write lines like 'worker-1 slots=8'.")
    return hosts


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
