"""What became of the rows of a data set on their way to tokens: every one is kept or counted with its reason and place."""

from __future__ import annotations

from dataclasses import dataclass, field

from aligner.records import Origin


@dataclass
class Tally:
    """What became of the rows: for each reason the file and row number of every row it was met in."""

    rows: int = 0
    kept: int = 0
    places: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    NO_ROOM = "dropped: the prompt leaves no room for a target"
    TOO_LONG = "dropped: longer than max_length"
    CUT = "cut: the correction ends without end-of-text"
    MERGED = "border: the tokenizer merges prompt and correction"
    SPECIAL = "special: a field holds a special token's string, kept as text"
    UNREAD = "feedback: the prompt has no slot for it"

    def add(self, reason: str, origin: Origin) -> None:
        """Count one row under a reason."""
        self.places.setdefault(reason, {}).setdefault(origin.file, []).append(origin.row)

    def count(self, reason: str) -> int:
        """How many rows met a reason."""
        return sum(map(len, self.places.get(reason, {}).values()))

    def lines(self) -> list[str]:
        """The tally for a reader, a line per reason with its first places; the card has all of them."""
        lines = [f"{self.kept:,} of {self.rows:,} rows kept"]
        for reason, files in self.places.items():
            first = [f"{file} row {row}" for file, rows in files.items() for row in rows[:3]][:3]
            more = self.count(reason) - len(first)
            rest = f" and {more:,} more" if more else ""
            lines.append(f"  {self.count(reason):,} {reason} ({', '.join(first)}{rest})")
        return lines
