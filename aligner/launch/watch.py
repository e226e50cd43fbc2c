"""A started run from outside: passing on a request to stop, noticing ranks that are lost, naming the cause of a failure."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from aligner.files import is_completed
from aligner.training.distributed import heartbeat, stop_signals
from aligner.training.distributed.stop_signals import EXIT_AGAIN
from aligner.training.stages import BEFORE

log = logging.getLogger("aligner")


def launch_and_watch(command: Sequence[str], variables: Mapping[str, str], folder: Path, last_stage: Path) -> int:
    """Run the command that starts all ranks, in a session of its own, so that ending it ends every rank.

    folder: the run's, where the ranks hear of a request to stop through a file, which a signal to this process makes, as
    anybody may. last_stage: the folder that is complete at the end. Returns the exit status: 0; 2 for an error that the
    user can correct; 75 where the run was stopped and can go on; another for a fault, whose cause is logged.
    """

    def pass_on(number: signal.Signals) -> None:
        stop_signals.request_stop(folder)
        log.warning("%s: stopping after this update; Ctrl-C again ends at once", number.name)

    heartbeat.clear_heartbeats(folder)
    signals = stop_signals.StopSignals(pass_on)
    environment = {**os.environ, **variables, **heartbeat.launcher_mark()}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    guard = start_guard(process.pid)
    try:
        status = wait(process, folder)
        if status == 0 and not is_completed(last_stage):
            status = (
                EXIT_AGAIN if stop_signals.stop_requested(signals, folder) else 1
            )  # DeepSpeed's launcher was killed
        if status not in (0, 2, EXIT_AGAIN):
            cause = (
                killed_launcher(process) or heartbeat.root_cause(folder) or f"the ranks ended with exit status {status}"
            )
            log.error("%s. See above and %s", cause, newest_log(folder))
        return status
    finally:
        end_session(process)
        guard.communicate(b"ended")
        signals.restore()
        stop_signals.clear_stop_request(folder)
        heartbeat.clear_heartbeats(folder)


def start_guard(session: int) -> subprocess.Popen[bytes]:
    """A process that ends the session as soon as this one is gone, however that comes; it goes when it is told so."""
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py")), str(session)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)


def killed_launcher(process: subprocess.Popen[bytes]) -> str | None:
    """The cause where DeepSpeed's launcher itself was killed, so that its ranks, which it ends, are not to blame."""
    if process.returncode is None or process.returncode >= 0:
        return None
    name = signal.Signals(-process.returncode).name
    return f"DeepSpeed's launcher (process {process.pid}) was killed by {name} (for memory, or by somebody)"


def wait(process: subprocess.Popen[bytes], folder: Path) -> int:
    """The exit status of DeepSpeed's launcher; 1 where it still waits for a host long after a rank has failed."""
    while True:
        try:
            return process.wait(heartbeat.INTERVAL)
        except subprocess.TimeoutExpired:
            if heartbeat.is_lost(folder):
                return 1


def newest_log(folder: Path) -> Path:
    """The train.log of the stage that was under way."""
    places = [folder / "train.log", *(folder / stage / "train.log" for stage in BEFORE)]
    logs = [log for log in places if log.is_file()]
    return max(logs, key=lambda log: log.stat().st_mtime, default=folder / "train.log")


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the launched session: SIGTERM, time to end, SIGKILL."""
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
