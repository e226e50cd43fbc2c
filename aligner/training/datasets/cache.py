"""Tokenised records, cached between runs and shared by their ranks: each record is tokenised once, and in a host's memory once.

An entry is named by all that decides it: the records, the prompt, the tokenizer, the lengths, and the code. Entries are
whole files with a digest; one that does not open is computed anew, and a folder that cannot be written costs time, not a run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from safetensors.numpy import save

from aligner.encoder import Encoder
from aligner.files import cache_folder, whole_file
from aligner.records import Correction
from aligner.training.datasets.run_prompts import RunPrompts
from aligner.training.datasets.supervised import Tally, Tokens
from aligner.training.datasets.token_table import TokenTable, table_of

UNUSED = 30 * 86_400  # seconds after which an entry that no run has read is removed
HEADER = 1 << 20  # bytes of an entry's header at most
TYPES = {"I32": np.int32, "I64": np.int64, "U8": np.uint8}  # safetensors' names of what an entry holds
Tokenised = tuple[Sequence[Tokens], Tally]
log = logging.getLogger("aligner")


def name_of(
    records: Sequence[Correction],
    prompts: RunPrompts,
    encoder: Encoder,
    max_length: int,
    overlength: str,
    unspellable: str = "keep",
) -> str:
    """An entry's name: a digest of everything that decides what `tokenise` gives."""
    digest = hashlib.sha256(CODE.encode())
    digest.update(json.dumps([encoder.fingerprint(), max_length, overlength, unspellable]).encode())
    for r in records:
        parts = [
            part.encode("utf-8", "surrogatepass")
            for part in (r.question, r.answer, r.correction, r.feedback, r.prefix, r.origin.file, prompts.of(r).text)
        ]
        digest.update(f"{r.origin.row}:{','.join(str(len(part)) for part in parts)}:".encode() + b"".join(parts))
    return digest.hexdigest()


def _code() -> str:
    """A digest of the code that turns records into tokens, and of the packages under it."""
    digest, here = hashlib.sha256(), Path(__file__)
    neighbours = (here.with_name(name) for name in ("supervised.py", "token_table.py", "tally.py", "run_prompts.py"))
    for file in (
        here,
        *neighbours,
        *(here.parents[2] / name for name in ("encoder.py", "prompts.py", "known_prompts.py")),
    ):
        digest.update(file.read_bytes())
    return digest.hexdigest() + version("tokenizers") + version("transformers")


CODE = _code()


def load_or_compute(name: str, compute: Callable[[], Tokenised]) -> Tokenised:
    """An entry, computed where it is missing; of several processes one computes it and the others wait."""
    folder = cache_folder() / "tokens"
    file = folder / f"{name}.safetensors"
    if (
        entry := _read(file)
    ) is not None:  # without the lock: an entry that is there is whole, and ranks read it at once
        return entry
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=2)
        except Timeout:
            log.info("waiting for another process that tokenises the same records")
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # a read-only home, a file system without locks
        log.info("tokens are not kept: %s. ALIGNER_CACHE names another folder", error)
        return compute()
    try:
        if (entry := _read(file)) is not None:
            return entry
        computed = compute()
        try:
            _write(file, *computed)
            _tidy(folder)
        except OSError as error:
            log.info("tokens are not kept: %s. ALIGNER_CACHE names another folder", error)
            return computed
        return _read(file) or computed
    finally:
        lock.release()


def _write(file: Path, tokens: Sequence[Tokens], tally: Tally) -> None:
    table = table_of(tokens)
    about = json.dumps({"files": table.files, "tally": asdict(tally)}).encode()
    parts = {"ids": table.ids_N, "rows": table.rows, "about": np.frombuffer(about, dtype=np.uint8)}
    with whole_file(file, "wb") as stream:
        stream.write(save({**parts, "digest": _digest(parts)}))


def _read(file: Path) -> Tokenised | None:
    """What an entry holds, mapped and not copied; None where there is none, or it is not what was written."""
    try:
        parts = _mapped(file)
        if not np.array_equal(parts.pop("digest"), _digest(parts)):
            raise ValueError("the digest differs")
        os.utime(file)
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, TypeError):
        log.info("%s does not open as it was written: tokenising anew", file)
        return None
    about = json.loads(parts["about"].tobytes())
    return TokenTable(parts["ids"], parts["rows"], tuple(about["files"])), Tally(**about["tally"])


def _mapped(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as arrays in the file itself: all processes of a host share their memory."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        about = json.loads(stream.read(min(size, HEADER)))
    whole, begin = np.asarray(np.memmap(file, np.uint8, "r")), 8 + size
    return {
        name: whole[begin + part["data_offsets"][0] : begin + part["data_offsets"][1]]
        .view(TYPES[part["dtype"]])
        .reshape(part["shape"])
        for name, part in about.items()
    }


def _digest(parts: dict[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(parts[name].reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def _tidy(folder: Path) -> None:
    """Remove what was not read for long."""
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process removes it too
            if time.time() - file.stat().st_mtime > UNUSED:
                file.unlink()
