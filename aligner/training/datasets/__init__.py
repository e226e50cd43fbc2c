"""Data sets: register one, name one with a proportion, mix several, turn records into tokens.

from aligner.training.datasets import Correction, register

@register("support-tickets")
def support_tickets(row):
    return Correction(row["ticket"], row["draft"], row["sent"])
"""

from aligner.records import Correction
from aligner.training.datasets.raw import correction as _correction  # noqa: F401  (registers correction-json)
from aligner.training.datasets.registry import register

__all__ = ["Correction", "register"]
