"""Heartbeats: each rank keeps a small file fresh while it lives, and writes into it why it failed.

When a run fails, the launch script reads them to name the rank and the cause; a rank that ended without writing one was
killed or hangs. And a rank ends when its launch script is gone, so that nothing is orphaned.
"""

from __future__ import annotations

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
from aligner.parsing import json_value
from aligner.training.distributed.stop_signals import Stopped

FOLDER = "ranks"
INTERVAL = 2.0  # seconds between two heartbeats
PATIENCE = 60.0  # seconds that a run may go on after one of its ranks has failed
LAUNCHER = "ALIGNER_LAUNCHER"  # host:process of the launch script, for its ranks
TERMINATED = "received SIGTERM"
_CONSEQUENCE = re.compile(
    r"gloo|nccl|ProcessGroup|TCPStore|Connection (closed|reset|refused)|Broken pipe|timed? ?out", re.I
)  # errors that a rank has because another one is gone


def launcher_mark() -> dict[str, str]:
    """The variable by which ranks know that this process started them."""
    return {LAUNCHER: f"{socket.gethostname()}:{os.getpid()}"}


def has_launcher() -> bool:
    """Whether a launch script started this rank: it keeps the folder and takes the signals."""
    return LAUNCHER in os.environ


@contextmanager
def heartbeat(folder: Path, rank: int) -> Iterator[None]:
    """Keep this rank's file fresh, and leave in it why the block failed; nothing where it ended well."""
    file = folder / FOLDER / f"{rank:05}.json"
    identity = {"rank": rank, "host": socket.gethostname(), "process": os.getpid()}
    write_json(file, {**identity, "error": None})
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(file, identity, over, _wakeup_pipe()), daemon=True)
    thread.start()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Stopped):
            _write_error(file, identity, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        raise
    else:
        file.unlink(missing_ok=True)
        with suppress(OSError):
            file.parent.rmdir()  # the last one
    finally:
        over.set()


def _wakeup_pipe() -> int | None:
    """Under the launch script: where SIGTERM is heard also while the rank waits for others inside a collective call."""
    if not has_launcher():
        return None
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _beat(file: Path, identity: dict[str, Any], over: threading.Event, pipe: int | None) -> None:
    while not over.is_set():
        with suppress(OSError):
            os.utime(file)
        if pipe is None:
            over.wait(INTERVAL)
        elif select.select([pipe], [], [], INTERVAL)[0] and signal.SIGTERM in os.read(pipe, 64):
            _write_error(file, identity, TERMINATED)
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


def is_consequence(error: BaseException) -> bool:
    """Whether an error is one that a rank has because another one is gone."""
    return bool(_CONSEQUENCE.search(f"{type(error).__name__}: {error}"))


def _write_error(file: Path, identity: dict[str, Any], error: str) -> None:
    with suppress(OSError):
        write_json(file, {**identity, "error": error, "time": time.time()})


def clear_heartbeats(folder: Path) -> None:
    """Remove the heartbeats of a run's earlier ranks."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _read_heartbeats(folder: Path) -> list[dict[str, Any]]:
    heartbeats = []
    for file in sorted((folder / FOLDER).glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            heartbeats.append({**json_value(file.read_bytes()), "last_beat": file.stat().st_mtime})
    return heartbeats


def is_lost(folder: Path) -> bool:
    """Whether a rank failed some time ago, so that the others cannot go on."""
    return any(beat["error"] and time.time() - beat["time"] > PATIENCE for beat in _read_heartbeats(folder))


def root_cause(folder: Path) -> str | None:
    """The rank that a failed run failed by, and the cause; None where no rank left a trace."""
    beats = _read_heartbeats(folder)
    failed = sorted((b for b in beats if b["error"] and b["error"] != TERMINATED), key=lambda b: b["time"])
    own_errors = [b for b in failed if not _CONSEQUENCE.search(b["error"])]
    silent = [b for b in beats if not b["error"]]
    if silent and not own_errors:
        beat = min(silent, key=lambda b: b["last_beat"])
        last = time.strftime("%H:%M:%S", time.localtime(beat["last_beat"]))
        return (
            f"rank {beat['rank']} (process {beat['process']} on {beat['host']}) gave no sign of life after {last} and left "
            "no word: killed (for memory?), hanging, or cut off"
        )
    first = next(iter([*own_errors, *failed]), None)
    return f"rank {first['rank']} on {first['host']} failed: {first['error']}" if first else None
