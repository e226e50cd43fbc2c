"""A file of answers in shards: each is corrected as a file of its own, and their corrections, joined, are the output.

A shard is whole when its summary is there, which is written last. A job that is stopped repeats no whole shard; of one that was
under way its journal has the finished rows. All of it lies in a folder beside the output, which every worker must see.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from aligner.files import json_line, read_json, remove_folder, sha256_of, whole_file, write_json, write_lines
from aligner.inference.correct_file import CorrectionJob, correct_items, items_of, journal_of, no_rows, settings_of
from aligner.inference.items import Item
from aligner.inference.servers import ServerGone
from aligner.inference.summary import CorrectionSummary, Drift, combined
from aligner.parsing import json_value
from aligner.records import DataError, Origin, UserError

JOB = "job.json"  # what is corrected, and in how many shards; written when all of them are cut
MOST_STARTS = 5  # of a shard by workers that die: what kills each of them is the shard, or too little memory


@dataclass(frozen=True)
class Shard:
    """The files of a shard, by its number in the folder."""

    folder: Path
    number: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.number:08d}"

    @property
    def rows(self) -> Path:
        """What is to be corrected."""
        return self.folder / f"{self.name}.rows.jsonl"

    @property
    def corrected(self) -> Path:
        """Its part of the output."""
        return self.folder / f"{self.name}.corrected.jsonl"

    @property
    def summary(self) -> Path:
        """What came of it; the shard is whole."""
        return self.folder / f"{self.name}.summary.json"

    @property
    def starts(self) -> Path:
        """A byte for each worker that began it in this run."""
        return self.folder / f"{self.name}.starts"


def folder_of(job: CorrectionJob) -> Path:
    """Where the shards of a job lie."""
    return Path(f"{job.output}.shards")


def cut(job: CorrectionJob, size: int) -> list[Shard]:
    """The shards of a job, `size` rows each: those of an earlier run of it, else cut anew.

    UserError where the output is there already, no row can be corrected, or shards of another job are there and some were begun.
    """
    folder = folder_of(job)
    if not folder.is_dir():
        if Path(job.output).is_file():
            raise UserError(f"{job.output}: is already there. Name another output, or remove it to correct anew.")
        if (journal := journal_of(job)).exists():
            raise UserError(f"{journal}: was begun without --engine ray. Go on without it, or remove it to start over.")
    about = json_value(json_line({"input": sha256_of(job.input), **settings_of(job), "shard_rows": size}))
    begun: dict[str, Any] = read_json(folder / JOB) if (folder / JOB).is_file() else {"about": {}, "shards": 0}
    earlier, count = begun["about"], begun["shards"]
    if changed := sorted(name for name in about.keys() | earlier.keys() if about.get(name) != earlier.get(name)):
        if count and any(each for kind in ("summary.json", "journal") for each in folder.glob(f"*.{kind}")):
            raise UserError(
                f"{folder}: was begun with another {', '.join(changed)}. Use the same as then to continue, or remove it to start "
                "over."
            )
        count = _cut_anew(job, folder, size)
        write_json(folder / JOB, {"about": about, "shards": count})
    shards = [Shard(folder, number) for number in range(count)]
    for shard in shards:
        shard.starts.unlink(missing_ok=True)
    return shards


def _cut_anew(job: CorrectionJob, folder: Path, size: int) -> int:
    """Write the rows of every shard; their number. The rows are read once, one by one, as on one machine."""
    remove_folder(folder)
    folder.mkdir(parents=True)
    try:
        items, count, fault, usable = items_of(job), 0, None, False
        while part := list(islice(items, size)):
            fault = fault or next((item.fault for item in part if item.fault), None)
            usable = usable or any(not item.fault for item in part)
            write_lines(Shard(folder, count).rows, map(_as_json, part))
            count += 1
        if not usable:
            raise fault or no_rows(job)
    except BaseException:
        remove_folder(folder)
        raise
    return count


def _as_json(item: Item) -> dict[str, Any]:
    return {"origin": item.origin, "fields": item.fields, "fault": _fault_as_json(item.fault) if item.fault else None}


def _fault_as_json(fault: DataError) -> list[Any]:
    return [fault.file, fault.row, fault.problem, fault.remedy]


def read_shard(shard: Shard, job: CorrectionJob) -> Iterator[Item]:
    """The rows of a shard as they were cut."""
    with shard.rows.open("rb") as lines:
        for line in lines:
            row = json_value(line)
            fault = DataError(*row["fault"]) if row["fault"] else None
            yield Item(Origin(*row["origin"]), row["fields"], job.columns, fault)


def correct_shard(jobs: Sequence[CorrectionJob], shard: Shard) -> None:
    """Correct a shard as `correct_file` a file. Nothing is done where that is whole. `jobs`: the same one for each server of the
    Aligner, of which the next one goes on where one is gone.

    UserError where this machine would correct it otherwise than the job says (another model under the same name), or workers die
    of it; ServerGone of the last server.
    """
    if shard.summary.exists():
        return
    settings = json_value(json_line(settings_of(jobs[0])))
    about = read_json(shard.folder / JOB)["about"]
    if changed := sorted(name for name in settings if settings[name] != about.get(name)):
        raise UserError(
            f"the {', '.join(changed)} of a worker is another one than where the job was begun. Give all of them the same."
        )
    _note_start(shard)
    for place, job in enumerate(jobs, 1):
        try:
            summary = correct_items(
                replace(job, output=str(shard.corrected)),
                list(read_shard(shard, job)),
                {"shard": shard.name, **settings},
                lambda outcomes, **bar: outcomes,
            )
            break
        except ServerGone:
            if place == len(jobs):
                raise
    faults = [_fault_as_json(fault) for fault in summary.faults]
    write_json(shard.summary, {**asdict(replace(summary, faults=[])), "faults": faults})
    shard.rows.unlink()


def _note_start(shard: Shard) -> None:
    with shard.starts.open("ab") as file:
        file.write(b".")
        if file.tell() > MOST_STARTS:
            raise UserError(
                f"{shard.rows}: {MOST_STARTS} workers died of it. Look at Ray's log of them; where memory is short, lower "
                "--workers or --batch_size."
            )


def _summary_of(shard: Shard) -> CorrectionSummary:
    values = read_json(shard.summary)
    faults = [DataError(*fault) for fault in values.pop("faults")]
    drift = [Drift(**each) for each in values.pop("drift")]
    return CorrectionSummary(**values, faults=faults, drift=drift)


def join(job: CorrectionJob, shards: Sequence[Shard]) -> CorrectionSummary:
    """Put the corrections of all shards into the output, in order, and remove the shards. Memory does not grow with them."""
    summary = combined([_summary_of(shard) for shard in shards])
    with whole_file(job.output, "wb") as output:
        for shard in shards:
            with shard.corrected.open("rb") as part:
                shutil.copyfileobj(part, output, 1 << 20)
    remove_folder(folder_of(job))
    return summary


def left(shards: Iterable[Shard]) -> list[Shard]:
    """Those that are not whole."""
    return [shard for shard in shards if not shard.summary.exists()]
