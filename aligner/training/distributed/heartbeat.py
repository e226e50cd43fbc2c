"""Signs of life: each rank keeps a small file fresh while it lives and writes its last words into it.

When a run fails, the launch script reads them to name the rank and the cause; a rank that ended without a word was killed
or hangs. And a rank ends when its launch script is gone, so that nothing is orphaned.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aligner.files import write_json
from aligner.training.distributed.stop_signals import Stopped

FOLDER = "ranks"
BEAT = 2.0  # seconds between two signs of life
PATIENCE = 60.0  # seconds that a run may go on after the last words of one of its ranks
LAUNCHER = "ALIGNER_LAUNCHER"  # host:process of the launch script, for its ranks
TOLD = "was told to end"
_OTHERS = re.compile(r"gloo|nccl|ProcessGroup|TCPStore|Connection (closed|reset|refused)|Broken pipe|timed? ?out", re.I)


def launcher_mark() -> dict[str, str]:
    """The variable by which ranks know that this process started them."""
    return {LAUNCHER: f"{socket.gethostname()}:{os.getpid()}"}


@contextmanager
def sign_of_life(folder: Path, rank: int) -> Iterator[None]:
    """Keep this rank's file fresh, and leave in it why the block ended; nothing where it ended well."""
    file = folder / FOLDER / f"{rank:05}.json"
    who = {"rank": rank, "host": socket.gethostname(), "process": os.getpid()}
    write_json(file, {**who, "words": None})
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(file, who, over, _wakeup_pipe()), daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Stopped):
            _say(file, who, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        raise
    else:
        file.unlink(missing_ok=True)
        with suppress(OSError):
            file.parent.rmdir()  # the last one
    finally:
        over.set()


def _wakeup_pipe() -> int | None:
    """Under the launch script: where SIGTERM is heard also while the rank waits for others inside a collective call."""
    if LAUNCHER not in os.environ:
        return None
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _watch(file: Path, who: dict[str, Any], over: threading.Event, pipe: int | None) -> None:
    while not over.is_set():
        with suppress(OSError):
            os.utime(file)
        if pipe is None:
            over.wait(BEAT)
        elif select.select([pipe], [], [], BEAT)[0] and signal.SIGTERM in os.read(pipe, 64):
            _say(file, who, TOLD)
            os._exit(128 + signal.SIGTERM)
        if is_orphan():
            os._exit(128 + signal.SIGHUP)


def is_orphan() -> bool:
    """Whether the launch script that started this rank, on this host, is gone."""
    host, _, process = os.environ.get(LAUNCHER, "").rpartition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is there, and another user's
        pass
    return False


def _say(file: Path, who: dict[str, Any], words: str) -> None:
    with suppress(OSError):
        write_json(file, {**who, "words": words, "time": time.time()})


def forget(folder: Path) -> None:
    """Remove the signs of life of a stage's earlier ranks."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _records(folder: Path) -> list[dict[str, Any]]:
    found = []
    for file in sorted((folder / FOLDER).glob("*.json")):
        with suppress(OSError, json.JSONDecodeError):
            found.append({**json.loads(file.read_text(encoding="utf-8")), "seen": file.stat().st_mtime})
    return found


def is_lost(folder: Path) -> bool:
    """Whether a rank ended some time ago, so that the others cannot go on."""
    return any(r["words"] and time.time() - r["time"] > PATIENCE for r in _records(folder))


def diagnosis(folder: Path) -> str | None:
    """The rank that a failed run failed by, and the cause; None where no rank left a trace."""
    records = _records(folder)
    spoken = sorted((r for r in records if r["words"] and r["words"] != TOLD), key=lambda r: r["time"])
    silent = [r for r in records if not r["words"]]
    own = [r for r in spoken if not _OTHERS.search(r["words"])]
    if own:
        return f"rank {own[0]['rank']} on {own[0]['host']} failed: {own[0]['words']}"
    if silent:
        r = min(silent, key=lambda r: r["seen"])
        seen = time.strftime("%H:%M:%S", time.localtime(r["seen"]))
        return (f"rank {r['rank']} (process {r['process']} on {r['host']}) gave no sign of life after {seen} and left no word: "
                "killed (for memory?), hanging, or cut off")  # fmt: skip
    return f"rank {spoken[0]['rank']} on {spoken[0]['host']} failed: {spoken[0]['words']}" if spoken else None
