"""Data sets: register one, name one with a proportion, mix several, turn records into tokens.

from aligner.training.datasets import Correction, register

@register("support-tickets")
def support_tickets(row):
    return Correction(row["ticket"], row["draft"], row["sent"])
"""

from aligner.records import Correction
from aligner.training.datasets import raw as _raw  # noqa: F401  (registers what lies in raw/)
from aligner.training.datasets.registry import register

__all__ = ["Correction", "register"]
