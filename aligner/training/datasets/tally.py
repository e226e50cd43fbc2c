"""What became of the rows of a data set on their way to tokens: every one is kept or counted with its reason and place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aligner.records import Origin


@dataclass
class Tally:
    """What became of the rows: for each reason the file and row number of every row it was met in.

    lost: the characters of corrections that the tokenizer cannot spell, each with how often it was lost.
    """

    rows: int = 0
    kept: int = 0
    places: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    NO_ROOM = "dropped: the prompt leaves no room for a target"
    TOO_LONG = "dropped: longer than max_length"
    CUT = "cut: the correction ends without end-of-text"
    MERGED = "border: the tokenizer merges prompt and correction"
    SPECIAL = "special: a field holds a special token's string, kept as text"
    UNSPELT = "unspellable: the tokenizer cannot spell the correction"
    NOT_SPELT = "dropped: the tokenizer cannot spell the correction"
    UNREAD = "feedback: the prompt has no slot for it"
    UNREAD_PREFIX = "prefix: the prompt has no slot for it"

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
            if reason in (self.UNSPELT, self.NOT_SPELT):
                lines.append(f"    what was lost: {told_losses(self.lost)}")
        return lines


def told_losses(lost: Mapping[str, int]) -> str:
    """The characters that were lost most often, for a reader."""
    names = {"\n": "newline", "\t": "tab", " ": "space", "": "the text comes back with other spaces"}
    most = sorted(lost.items(), key=lambda pair: -pair[1])
    shown = [f"{names.get(c) or (c if c.isprintable() else f'U+{ord(c):04X}')} x {count:,}" for c, count in most[:8]]
    return ", ".join(shown) + (f" and {len(most) - 8:,} other characters" if len(most) > 8 else "")
