"""`aligner pairs`: corrected files -> a folder of supervised rows and preferences, with what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.evaluation.pairs import Pair, named_fields, read_pairs
from aligner.files import COMPLETED, sha256_of, whole_folder, write_json, write_lines, write_text
from aligner.records import DataError, UserError
from aligner.rounds.filters import WANTED, Filters, read_verdicts, reason_against, reason_against_preference
from aligner.rounds.training_rows import FORMS
from aligner.training.datasets.options import QAC, parse_columns

SUPERVISED, PREFERENCE, DROPPED = "supervised.jsonl", "preference.jsonl", "dropped.jsonl"


@dataclass(frozen=True)
class PairsConfig:
    """What is read, what is kept, and how it is written. after: corrected files. form: of FORMS. least_edit, length_ratio,
    verdicts, wanted, dimensions: see Filters. aligner: the folder or the name of what corrected; round: its number; both stand in
    every row."""

    after: tuple[str, ...]
    output: str
    form: str = "trl"
    columns: tuple[str, ...] = ()
    least_edit: float = 0.0
    length_ratio: tuple[float, ...] = (0.0, float("inf"))
    verdicts: str | None = None
    wanted: str = WANTED[0]
    dimensions: tuple[str, ...] = ()
    aligner: str | None = None
    round: int | None = None

    def filters(self) -> Filters:
        """The filters. UserError where they contradict themselves."""
        least, most = self.length_ratio
        if (self.dimensions or self.wanted != WANTED[0]) and not self.verdicts:
            raise UserError("--dimensions and --wanted say which verdicts count: give --verdicts too.")
        read = read_verdicts(self.verdicts, self.dimensions) if self.verdicts else None
        return Filters(self.least_edit, (least, most), read, self.wanted)


@dataclass
class Selection:
    """Rows for training, and the pairs that none of them are, each with its reason."""

    supervised: list[dict[str, Any]] = field(default_factory=list)
    preference: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    rows: int = 0

    def drop(self, side: str, file: str, row: int | None, reason: str) -> None:
        """Note that a pair is no row of this side."""
        self.dropped.append({"file": file, "row": row, "from": side, "reason": reason})

    def counts(self) -> dict[str, Any]:
        """How many rows of each kind, and how many were dropped from which for which reason."""
        dropped = Counter((each["from"], each["reason"]) for each in self.dropped)
        reasons = [{"from": side, "reason": reason, "rows": n} for (side, reason), n in sorted(dropped.items())]
        sizes = {"rows": self.rows, "supervised": len(self.supervised), "preference": len(self.preference)}
        return {**sizes, "dropped": reasons}


def write_training_pairs(config: PairsConfig) -> Selection:
    """Write the folder whole, or not at all. UserError where it is there already, or no row is left."""
    output = Path(config.output)
    if output.exists():
        raise UserError(f"{output}: is already there. Name another --output, or remove it.")
    if len({Path(file).resolve() for file in config.after}) < len(config.after):
        raise UserError("a file is named twice: its rows would be there twice. Name it once.")
    if config.round is not None and config.round < 0:
        raise UserError(f"--round is {config.round}: rounds are counted from 0.")
    selection = select(config)
    if not selection.supervised:
        lines = "; ".join(f"{each['rows']:,} {each['reason']}" for each in selection.counts()["dropped"])
        raise UserError(f"no row is left of {selection.rows:,} ({lines}). Loosen the filters.")
    registry = FORMS[config.form].registry
    about = {
        "form": config.form,
        "files": {file: sha256_of(file) for file in config.after},
        "filters": {name: getattr(config, name) for name in ("least_edit", "length_ratio", "wanted", "dimensions")},
        "verdicts": {config.verdicts: sha256_of(config.verdicts)} if config.verdicts else None,
        **provenance(config),
        **selection.counts(),
    }
    about["filters"]["length_ratio"] = [ratio if ratio != float("inf") else None for ratio in config.length_ratio]
    with whole_folder(output) as partial:
        write_lines(partial / SUPERVISED, selection.supervised)
        write_lines(partial / PREFERENCE, selection.preference)
        write_lines(partial / DROPPED, selection.dropped)
        write_json(partial / "pairs.json", about)
        if registry:
            write_json(partial / "dataset_info.json", registry)
        write_text(partial / COMPLETED, "")
    return selection


def provenance(config: PairsConfig) -> dict[str, Any]:
    """Who corrected, by which prompt, in which round: of a folder with a card, what that says."""
    from aligner.card import read_card

    card = read_card(config.aligner) if config.aligner and Path(config.aligner).is_dir() else None
    about = {"aligner": config.aligner, "prompt": card.prompt.name if card else None, "round": config.round}
    return {name: value for name, value in about.items() if value is not None}


def select(config: PairsConfig) -> Selection:
    """The rows of all files, through the filters."""
    filters, form, about = config.filters(), FORMS[config.form], provenance(config)
    selection = Selection()
    for pair in _read(config):
        selection.rows += 1
        if isinstance(pair, DataError):
            selection.drop("both", pair.file, pair.row, f"unusable: {pair.problem}")
            continue
        if reason := reason_against(pair, filters):
            selection.drop("both", *pair.origin, reason)
            continue
        origin = {**({"upstream": pair.upstream} if pair.upstream else {}), **about, "source": str(pair.origin)}
        selection.supervised.append({**form.supervised(pair), **origin})
        if reason := reason_against_preference(pair):
            selection.drop("preference", *pair.origin, reason)
        else:
            selection.preference.append({**form.preference(pair), **origin})
    return selection


def _read(config: PairsConfig) -> Iterator[Pair | DataError]:
    fields = named_fields(parse_columns(config.columns, "") or QAC)
    for file in config.after:
        pairs, faults = read_pairs(file, None, **fields)
        yield from pairs
        yield from faults
