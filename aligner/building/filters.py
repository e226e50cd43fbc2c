"""The second filter: which corrections are worth training on. What `aligner pairs` asks of a correction is asked here too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aligner.building.config import BuildConfig, FilterConfig
from aligner.building.stage import Row, Sieve, draw_of
from aligner.evaluation.pairs import Pair
from aligner.quality.edits import edits
from aligner.quality.suspicions import leftover_of_a_prompt, refusal_in
from aligner.records import Origin
from aligner.rounds.filters import Filters, read_verdicts, reason_against

SHARE_IS_FULL = "changed nothing: the share of unchanged rows is full"


def filter_corrections(rows: Sequence[Row], config: BuildConfig) -> Sieve:
    """The rows whose corrections pass.

    An unchanged one shows what to leave alone: as many stay as the settings say.
    """
    settings, sieve, unchanged = config.filter, Sieve(len(rows)), list[Row]()
    least, most = settings.length_ratio
    verdicts = read_verdicts(settings.verdicts, settings.dimensions) if settings.verdicts else None
    filters = Filters(settings.least_edit, (least, most), verdicts, settings.wanted)
    for row in rows:
        if reason := next(_reasons(row, settings, filters), None):
            sieve.drop(row, *reason)
        elif row["answer"] == row["correction"]:
            unchanged.append(row)
        else:
            sieve.keep(row)
    room = _room(len(sieve.kept), settings.unchanged, len(unchanged))
    stay = {row["id"] for row in sorted(unchanged, key=lambda row: draw_of(config.seed, "unchanged", row["id"]))[:room]}
    for row in unchanged:
        if row["id"] in stay:
            sieve.keep(row)
        else:
            sieve.drop(row, SHARE_IS_FULL)
    sieve.notes = {"unchanged": room}
    return sieve


def _room(changed: int, share: float, unchanged: int) -> int:
    """How many unchanged rows may stay beside the changed ones."""
    return unchanged if share >= 1 else min(unchanged, int(changed * share / (1 - share) + 1e-9))


def _reasons(row: Row, settings: FilterConfig, filters: Filters) -> Iterator[tuple[str, str]]:
    """Why a row goes, and what of it says so."""
    question, answer, correction = row["question"], row["answer"], row["correction"]
    if longest := max(len(answer), len(correction)) if max(len(answer), len(correction)) > settings.longest else 0:
        yield "too long", f"{longest:,} characters"
    if leftover := leftover_of_a_prompt(correction):
        yield "holds a prompt's marker", leftover
    harmless = row.get("harmless") or row.get("harmful") is False
    if settings.refusals == "drop" and harmless and (words := refusal_in(correction)):
        yield "refuses a harmless question", words
    if answer == correction:
        return
    changed = 1 - edits(answer, correction).similarity
    if changed > settings.most_edit:
        yield f"changed everything: more than {settings.most_edit:g} of the text", f"{changed:.2f}"
    if reason := reason_against(Pair(Origin(row["id"], 0), question, answer, correction), filters):
        yield reason, ""
