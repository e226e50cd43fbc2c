"""`aligner correct --engine ray`: the shards of a file as a pipeline of Ray Data.

Ray starts the workers, gives them shards and starts those again that die. A worker has an Aligner of its own, or asks served ones,
and does with a shard what `aligner correct` does with a file. What passes through Ray are the shards' numbers alone: its own
readers would give all rows the fields of the first.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aligner.console import progress, setup_logging
from aligner.inference.command import job_of, report
from aligner.inference.config import CorrectConfig
from aligner.inference.correct_file import CorrectionJob, StackedAligner
from aligner.inference.corrector import Aligner
from aligner.inference.servers import ServerGone
from aligner.inference.shards import Shard, correct_shard, cut, folder_of, join, left
from aligner.locks import take
from aligner.models import quiet_libraries
from aligner.records import UserError
from aligner.system_errors import system_error
from aligner.terminal import print_errors

SHARD_ROWS = 1000
RAY = "ray[data]==2.60.0"  # as in pyproject.toml
MOST_BLOCKS = 4096  # what Ray keeps account of; more shards than these travel several in a block


def correct_on_cluster(config: CorrectConfig) -> int:
    """Correct a file by all workers of a Ray cluster and print what happened; the exit status is that of one machine."""
    ray = open_ray()
    quiet_libraries()
    job = shared_job(config)
    folder = folder_of(job)
    free = take(Path(f"{folder}.lock"), f"{folder}: another run is at it. Wait for it, or name another output.")
    try:
        shards = cut(job, config.cluster.shard_rows or SHARD_ROWS)
        try:
            correct_shards(ray, config, shards)
        except BaseException:
            print_errors(f"finished rows are kept in {folder}: the same command continues")
            raise
        return report(join(job, shards), config)
    finally:
        free()


def open_ray() -> Any:
    """The package, without its reports to its makers. UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"--engine ray needs the package ray ({error}): pip install '{RAY}'.") from None
    return ray


def shared_job(config: CorrectConfig) -> CorrectionJob:
    """The job, told by what all workers share: the dtype is each one's own where none is given."""
    job = job_of(config)
    return replace(job, about={**job.about, "dtype": config.options.dtype or "the worker's"})


def correct_shards(ray: Any, config: CorrectConfig, shards: Sequence[Shard]) -> None:
    """Correct what is not whole. UserError of the first shard that cannot be; the others under way stop."""
    if not (rest := left(shards)):
        return
    try:
        ray.init(include_dashboard=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"Ray cannot be started or reached: {_line(error)}. RAY_ADDRESS says where it is.") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray set its own
    try:
        rows = pipeline(ray, config, rest).iter_rows()
        for row in progress(rows, total=len(rest), desc="correcting", unit=" shards"):
            if row["error"]:
                raise (ServerGone if row["gone"] else UserError)(row["error"])
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray cannot go on: {_line(error)}") from None
    finally:
        ray.shutdown()


def pipeline(ray: Any, config: CorrectConfig, shards: Sequence[Shard]) -> Any:
    """The numbers of the shards through a pool of workers, as they are whole."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    workers, resources = workers_of(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    numbers = [{"shard": shard.number} for shard in shards]
    return ray.data.from_items(numbers, override_num_blocks=min(len(numbers), MOST_BLOCKS)).map(
        Worker,
        fn_constructor_args=[config, str(Path.cwd())],
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers))),
        **resources,
    )


def workers_of(config: CorrectConfig, machines: Sequence[dict[str, float]]) -> tuple[int, dict[str, float]]:
    """How many workers there are, and what each takes of its machine. By default one a GPU, and where there is none, or the Aligner
    is served, one a machine, which has all its cores. Several share a GPU or the cores. One without cores for Ray has none."""
    gpus = 0 if config.aligner_url else int(sum(machine.get("GPU", 0) for machine in machines))
    machines = [machine for machine in machines if machine.get("CPU")] or [{"CPU": 1}]
    workers = config.cluster.workers or gpus or len(machines)
    if gpus:
        return workers, {"num_gpus": 1 / -(-workers // gpus), "num_cpus": 0}
    cores = min(machine["CPU"] for machine in machines)
    each = cores / -(-workers // len(machines))
    return workers, {"num_cpus": each if each < 1 else int(each)}


class Worker:
    """An Aligner in a process of Ray, opened for its first shard and kept, or one behind each of the servers. `place`: the folder
    from which the paths of the settings are meant."""

    def __init__(self, config: CorrectConfig, place: str) -> None:
        setup_logging()
        quiet_libraries()
        self.config, self.place = config, place
        self.jobs: list[CorrectionJob] = []

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Correct the shard of this number; what was wrong, in a line, where it could not be."""
        number, outcome = int(row["shard"]), {"shard": row["shard"], "error": "", "gone": False}
        try:
            os.chdir(self.place)  # Ray starts it wherever Ray was started
            self.jobs = self.jobs or list(self._jobs())
            size = self.config.cluster.shard_rows or SHARD_ROWS
            jobs = [_drawn_anew(job, number * size) for job in self.jobs]
            first = number % len(jobs)  # so that all servers have as much to do
            correct_shard(jobs[first:] + jobs[:first], Shard(folder_of(jobs[0]), number))
        except (UserError, OSError) as error:
            known = system_error(error) if isinstance(error, OSError) else error
            return {**outcome, "error": str(known), "gone": isinstance(error, ServerGone)}
        return outcome

    def _jobs(self) -> Iterator[CorrectionJob]:
        """The job, for each server of the Aligner; an Aligner that was opened once stays."""
        for url in self.config.aligner_url or ("",):
            job = shared_job(replace(self.config, aligner_url=(url,) if url else ()))
            yield replace(job, stack=[replace(each, open=functools.cache(each.open)) for each in job.stack])


def _drawn_anew(job: CorrectionJob, first: int) -> CorrectionJob:
    """A job whose draws, where it draws, are those of rows from `first` on: not those of another shard."""
    if "sampling" not in job.about:
        return job

    def reopened(member: StackedAligner) -> Aligner:
        aligner: Any = member.open()
        sampling = replace(aligner.settings.sampling, seed=aligner.settings.sampling.seed + first)
        drawn: Aligner = replace(aligner, settings=replace(aligner.settings, sampling=sampling))
        return drawn

    return replace(job, stack=[replace(each, open=functools.partial(reopened, each)) for each in job.stack])


def _line(error: BaseException) -> str:
    """What Ray says of an error, of whose trace the first line says where and the last one what."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys([*said[:1], *said[-1:]]))[:400]
