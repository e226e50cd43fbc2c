"""A checksum of every tensor in a resume state: a bit that flips on a disk is noticed before anything is made of it.

`rank-N/checksums.json` has the sha256 of each tensor of the rank and of its index, `COMPLETED` that of state.json. They are taken
of what was in memory, before it was written.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from aligner.files import read_json, sha256_of
from aligner.training.checkpoint.tensor_index import INDEX

log = logging.getLogger("aligner")
FILE = "checksums.json"
KIND = "sha256"
BLOCK = 1 << 22  # numbers that are hashed at once


def tensor_checksum(flat: Any) -> str:
    """The sha256 of a flat tensor, or a slice of a file that stands for one: its length, and its numbers as bytes."""
    size = flat.numel() if isinstance(flat, torch.Tensor) else flat.get_shape()[0]
    digest = hashlib.sha256(str(size).encode())
    for start in range(0, size, BLOCK):
        part = flat[start : start + BLOCK].detach().cpu().contiguous()
        digest.update(str(part.dtype).encode())
        digest.update(part.view(torch.uint8).numpy())
    return digest.hexdigest()


def has_checksums(state: Path) -> bool:
    """Whether a state has checksums: those of earlier versions have none, and damage to them is not noticed. Warns of it."""
    present = read_json(state / "state.json").get("checksums") == KIND
    if not present:
        log.warning("%s has no checksums (an earlier version wrote it): whether it is damaged cannot be seen", state)
    return present


@contextmanager
def state_reader(state: Path) -> Iterator[Callable[[Path], Any]]:
    """A function that gives the flat tensor in a file of a state, as a slice; each file is compared with its checksum once, when
    it is first opened, and each rank's index before. ValueError where one differs."""
    checked = has_checksums(state)

    @cache
    def noted(folder: Path) -> dict[str, str]:
        checksums = dict(read_json(folder / FILE))
        if checksums.get(INDEX) != sha256_of(folder / INDEX):
            raise ValueError(f"{folder.name}/{INDEX} is not as it was written")
        return checksums

    with ExitStack() as stack:

        @cache
        def opened(file: Path) -> Any:
            flat = stack.enter_context(safe_open(file, framework="pt")).get_slice("flat")
            if checked and noted(file.parent).get(file.name) != tensor_checksum(flat):
                raise ValueError(f"{file.parent.name}/{file.name} is not as it was written")
            return flat

        if checked:
            for folder in sorted(state.glob("rank-*")):
                noted(folder)
        yield opened
