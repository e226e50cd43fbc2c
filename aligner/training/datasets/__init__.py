"""Data sets: register one, name one with a proportion, mix several, turn records into tokens.

from aligner.training.datasets import Correction, register

@register("support-tickets")
def support_tickets(row):
    return Correction(row["ticket"], row["draft"], row["sent"])
"""

import importlib

from aligner.records import Correction, Skipped
from aligner.training.datasets.registry import register

__all__ = ["Correction", "Skipped", "register"]

importlib.import_module("aligner.training.datasets.raw")  # registers the data sets there; they may use the names above
