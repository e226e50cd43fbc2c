"""People look at corrections: two readers a row, and a second pass by another where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from aligner.building.agreement import agreement
from aligner.building.config import BuildConfig, PeopleConfig
from aligner.building.label_tools import FIRST, SECOND, VERDICTS, Opinion, read_opinions, write_for_people
from aligner.building.stage import Row, Sieve, draw_of
from aligner.jsonl import LineLog
from aligner.parsing import json_value
from aligner.quality.edits import edits
from aligner.records import UserError

ALIKE = 0.9  # similarity from which on two readers' own texts are taken for the same


def row_needs_people(row: Row, config: BuildConfig) -> bool:
    """Whether people look at a row: it has no draft, or is drawn for review."""
    return row["correction"] is None or draw_of(config.seed, "people", row["id"]) < config.people.review


class Decision(NamedTuple):
    """What holds for a row: a verdict and, if it is `edited`, the text."""

    verdict: str
    text: str


class Desk:
    """The folder where files for people lie, and what they said. UserError where its journal is damaged."""

    def __init__(self, folder: Path, config: PeopleConfig) -> None:
        self.folder, self.config = folder, config
        self._log, self._opinions = LineLog(folder / "opinions.jsonl"), dict[tuple[str, int, str], Opinion]()
        try:
            for line in self._log.lines:
                self._add(Opinion(*json_value(line)))
        except (ValueError, TypeError):
            raise UserError(f"{self._log.file}: is damaged. Remove it and give all --annotations again.") from None

    def _add(self, opinion: Opinion) -> None:
        self._opinions[opinion.row, opinion.pass_number, opinion.reader] = opinion

    def take_in(self, files: Sequence[str], known: Set[str]) -> str:
        """Keep what exports say of known rows; a reader's later opinion of a row takes the place of the earlier. Returns what was
        read, in words; UserError where an export says nothing of this build."""
        opinions: list[Opinion] = []
        for file in files:
            some = list(read_opinions(file))
            if not some:
                raise UserError(f"{file}: holds no opinion. Export the project after its rows were submitted.")
            if not any(each.row in known for each in some):
                raise UserError(
                    f"{file}: says something of {some[0].row!r} and of no row of this build. Give this build's own export."
                )
            opinions += some
        new = [each for each in opinions if each.row in known]
        foreign = len(opinions) - len(new)
        others = f", {foreign:,} of rows that are not in this build left out" if foreign else ""
        text = f"people: {len(opinions):,} opinions read{others}"
        new = [each for each in new if self._opinions.get((each.row, each.pass_number, each.reader)) != each]
        if new:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._log.start()
            for opinion in new:
                self._add(opinion)
                self._log.append(list(opinion))
            self._log.close()
        return text

    def of_row(self, row: str, pass_number: int) -> list[Opinion]:
        """The opinions of a row in a pass, by reader."""
        some = [each for each in self._opinions.values() if (each.row, each.pass_number) == (row, pass_number)]
        return sorted(some, key=lambda each: each.reader)

    def lay_out(self, rows: Sequence[Row]) -> tuple[int, tuple[Path, ...]]:
        """Write what people still have to look at; how many rows, and the files. The second pass waits for no first one."""
        by_pass: dict[int, list[Row]] = {FIRST: [], SECOND: []}
        for row in rows:
            first = self.of_row(row["id"], FIRST)
            if len(first) < self.config.readers:
                by_pass[FIRST].append(row)
            elif not self.of_row(row["id"], SECOND) and shared_decision(first) is None:
                by_pass[SECOND].append({**row, "remarks": _remarks(first)})
        files: list[Path] = []
        for number, name in ((FIRST, "readers"), (SECOND, "second-reader")):
            for old in self.folder.glob(f"{name}.*"):
                old.unlink()
            if by_pass[number]:
                readers = self.config.readers if number == FIRST else 1
                files += write_for_people(self.folder, name, by_pass[number], number, readers)
        return sum(map(len, by_pass.values())), tuple(files)

    def opinions(self, rows: Sequence[Row]) -> dict[str, list[Opinion]]:
        """All opinions of each row, both passes."""
        return {row["id"]: [*self.of_row(row["id"], FIRST), *self.of_row(row["id"], SECOND)] for row in rows}


def shared_decision(opinions: Sequence[Opinion]) -> Decision | None:
    """What all readers of the first pass say alike; None where they differ."""
    first, *others = opinions
    for other in others:
        if other.verdict != first.verdict:
            return None
        if first.verdict == "edited" and edits(first.text, other.text).similarity < ALIKE:
            return None
    return Decision(first.verdict, first.text)


def decide(opinions: Sequence[Opinion], readers: int) -> Decision | None:
    """What holds for a row: the second reader's word, else what the first ones say alike; None where neither is there yet."""
    second = [each for each in opinions if each.pass_number == SECOND]
    if second:
        return Decision(second[-1].verdict, second[-1].text)
    return shared_decision(opinions) if len(opinions) >= readers else None


def _remarks(opinions: Sequence[Opinion]) -> str:
    """What the first readers said, for the second one."""
    return "\n\n".join(
        f"Reader {number}: {VERDICTS[each.verdict]}." + (f"\n{each.text}" if each.text else "")
        for number, each in enumerate(opinions, 1)
    )


def collect_readings(
    rows: Sequence[Row], to_read: Sequence[Row], opinions: Mapping[str, Sequence[Opinion]], config: PeopleConfig
) -> Sieve:
    """The rows with what people decided."""
    sieve, looked_at, second = Sieve(len(rows)), {row["id"] for row in to_read}, 0
    for row in rows:
        if row["id"] not in looked_at:
            sieve.keep(row)
            continue
        of_row = opinions.get(row["id"], ())
        second += any(each.pass_number == SECOND for each in of_row)
        outcome = decide(of_row, config.readers)
        verdict = outcome.verdict if outcome else ""
        about = {**row, "people": verdict}
        if outcome is None:
            sieve.drop(row, "people have not settled it")
        elif verdict == "neither":
            sieve.drop(about, "people: neither answer nor correction can be used")
        elif verdict == "draft" and row["correction"] is None:
            sieve.drop(about, "people: 'draft' of a row that has none")
        else:
            text = {"edited": outcome.text, "answer": row["answer"], "draft": row["correction"]}[verdict]
            sieve.keep({**about, "correction": text})
    labels = {
        name: {each.reader: each.verdict for each in of_row if each.pass_number == FIRST}
        for name, of_row in opinions.items()
    }
    sieve.notes = {"looked at": len(to_read), "second reader": second, "agreement": agreement(labels)}
    return sieve
