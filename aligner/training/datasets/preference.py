"""A preference pair as a record: the rejected answer, to be corrected into the chosen one (paper, sections 1 and 2)."""

from __future__ import annotations

from aligner.records import Correction, Skipped


def correction_of_pair(question: str, rejected: str, chosen: str) -> Correction | Skipped:
    """The record of a pair; a pair that prefers nothing, or has nothing to prefer, is left out."""
    if not (question or "").strip() or not (rejected or "").strip() or not (chosen or "").strip():
        return Skipped("the question or one of the answers is empty")
    if rejected.strip() == chosen.strip():
        return Skipped("chosen and rejected are the same text")
    return Correction(question, rejected, chosen)
