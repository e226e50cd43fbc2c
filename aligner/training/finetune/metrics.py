"""The log of a run: one progress bar, train_log.jsonl always, wandb and tensorboard where wanted. Logging never fails a run."""

from __future__ import annotations

import json
import logging
import netrc
import os
import statistics
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from aligner import network
from aligner.console import NOW_AND_THEN, has_terminal, print_progress
from aligner.files import write_lines, write_text
from aligner.training.config import OutputConfig
from aligner.training.datasets.supervised import Tokens
from aligner.training.train_log import FILE, read_log

RECENT = 50  # losses that a new one is compared with
log = logging.getLogger("aligner")


def is_far_above(loss: float, recent: Sequence[float]) -> bool:
    """Whether a loss is out of line: half above the median of at least ten, and six times their usual distance from it."""
    if len(recent) < 10:
        return False
    middle = statistics.median(recent)
    usual = statistics.median(abs(value - middle) for value in recent)
    return loss > max(1.5 * middle, middle + 6 * usual)


def throughput(records: Sequence[Tokens], rows: np.ndarray, seconds: float) -> dict[str, float]:
    """The tokens of an update's rows, and its seconds."""
    tokens = sum(len(records[row].ids) for row in rows)
    targets = sum(records[row].target_length for row in rows)
    speed = round(tokens / seconds, 1)
    return {"target_tokens": targets, "tokens": tokens, "seconds": round(seconds, 4), "tokens_per_second": speed}


class Metrics:
    """Where the figures of a run go. Only the first rank has one that writes."""

    def __init__(
        self,
        output: OutputConfig,
        folder: Path,
        name: str,
        updates: int,
        start: int,
        settings: dict[str, Any],
        watched: bool = True,  # a loss far above the others is warned of
    ):
        kept = [line for line in read_log(folder) if line["update"] <= start and start > 0]
        write_lines(folder / FILE, kept)
        self._file = (folder / FILE).open("a", encoding="utf-8")
        self._bar = tqdm(
            total=updates, initial=start, desc=name, unit="update", dynamic_ncols=True, disable=not has_terminal()
        )
        self._name, self._updates, self._start, self._done = name, updates, start, start
        self._watched = watched
        self._began = self._last = time.monotonic()
        self._recent = deque((line["loss"] for line in kept if "loss" in line), maxlen=RECENT)
        self._trackers = [t for t in (_tracker(output, folder, name, settings, start > 0),) if t]

    def record(self, values: dict[str, Any]) -> None:
        """One line of the log: an update's figures, or an evaluation's `update` and `eval_loss`."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        if "skipped" in values:
            log.warning("%s; skipped", values["skipped"])
            self._advance("")
        elif "loss" in values:
            if self._watched and is_far_above(values["loss"], self._recent):
                log.warning(
                    "update %s: the loss is %.3f, far above its recent course (%.3f); see its records if it stays",
                    values["update"],
                    values["loss"],
                    statistics.median(self._recent),
                )
            self._recent.append(values["loss"])
            speed = f", {values['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in values else ""
            self._advance(f"loss {values['loss']:.3f}, lr {values['lr']:.1e}{speed}")
        else:
            loss = values["eval_loss"]
            log.info("update %s: held-out loss %s", values["update"], "not finite" if loss is None else f"{loss:.4f}")
        for tracker in list(self._trackers):
            try:
                tracker({name: value for name, value in values.items() if name != "skipped"})
            except Exception as error:  # a tracker's fault is not the run's
                log.warning("logging to %s stopped: %s", type(error).__module__, error)
                self._trackers.remove(tracker)

    def set_updates(self, updates: int) -> None:
        """How many there are, where another program than this one plans them."""
        self._updates = self._bar.total = updates

    def _advance(self, figures: str) -> None:
        """Advance the progress bar. Where nobody reads it any more (a pipe whose reader is gone), the run goes on without."""
        self._done += 1
        with suppress(OSError):
            if figures:
                self._bar.set_postfix_str(figures)
            self._bar.update()
        now, ends = time.monotonic(), self._done in (self._start + 1, self._updates)
        if self._bar.disable and (ends or now - self._last >= NOW_AND_THEN):  # a file: a plain line now and then
            each = (now - self._began) / (self._done - self._start)
            print_progress(self._name, self._done, self._updates, " updates", each, figures)
            self._last = now

    def close(self) -> None:
        """Close bar and files."""
        with suppress(OSError):
            self._bar.close()
        self._file.close()
        for tracker in self._trackers:
            try:
                tracker(None)
            except Exception as error:
                log.warning("logging did not end well: %s", error)


def tracker_keys(line: dict[str, Any]) -> dict[str, Any]:
    """A line of figures under the original's keys: train/loss, train/lr, train/epoch, ..., and eval/loss."""
    return {
        f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}": value
        for key, value in line.items()
        if key != "update" and value is not None
    }


Tracker = Callable[[dict[str, Any] | None], None]


def _tracker(output: OutputConfig, folder: Path, name: str, settings: dict[str, Any], resumed: bool) -> Tracker | None:
    """A function that takes one line of figures, and None at the end. None where no tracker is wanted or works."""
    kind = output.log_type or ("wandb" if wandb_key_is_set() else "none")
    if kind == "none":
        return None
    directory = Path(output.log_dir or folder)
    try:
        if kind == "tensorboard":
            return _tensorboard(directory / "tensorboard" / name)
        run_name = output.log_run_name or Path(output.output_dir or folder).resolve().name
        return _wandb(directory, output.log_project, f"{run_name}-{name}", settings, resumed)
    except Exception as error:  # a missing package, no permission, no network: the run goes on
        log.warning("no %s logging: %s", kind, error)
        return None


def wandb_key_is_set() -> bool:
    """Whether this user has given wandb a key."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def _wandb(directory: Path, project: str, name: str, settings: dict[str, Any], resumed: bool) -> Tracker:
    """Online where the network and a key allow it, offline (`wandb sync` sends it later) where not. One run of wandb, however
    often this one is resumed: its id is kept beside wandb's files."""
    import wandb

    identity = directory / "wandb" / f"run-id-{name}"
    identity.parent.mkdir(parents=True, exist_ok=True)
    if not (resumed and identity.is_file()):
        write_text(identity, uuid.uuid4().hex)
    quiet = wandb.Settings(init_timeout=20, finish_timeout=60, silent=True, x_disable_stats=True, save_code=False)
    options: dict[str, Any] = {"project": project, "name": name, "dir": directory, "config": settings}
    options |= {"id": identity.read_text(encoding="utf-8"), "resume": "allow"}
    wanted: Any = os.environ.get("WANDB_MODE") or ("online" if wandb_key_is_set() else "offline")
    address = os.environ.get("WANDB_BASE_URL") or network.WANDB
    if wanted == "online" and not network.is_reachable(address):
        log.warning("wandb is offline (%s cannot be reached); 'wandb sync' sends the run later", address)
        wanted = "offline"
    try:
        run = wandb.init(**options, mode=wanted, settings=quiet)
    except Exception as error:
        log.warning("wandb cannot be reached (%s)", str(error).splitlines()[0])
        run = wandb.init(**options, mode="offline", settings=quiet)
    if run.offline:
        log.info("wandb is offline; this sends the run later: wandb sync --append %s/offline-run-*", identity.parent)
    else:
        log.info("wandb: %s", run.url)

    def track(values: dict[str, Any] | None) -> None:
        if values is None:
            run.finish()
        else:
            run.log(tracker_keys(values), step=values["update"])

    return track


def _tensorboard(directory: Path) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory))

    def track(values: dict[str, Any] | None) -> None:
        if values is None:
            writer.close()
            return
        for key, value in tracker_keys(values).items():
            writer.add_scalar(key, value, values["update"])

    return track
