"""Aligner: a small model that rewrites any model's answer into a better one (Ji et al., NeurIPS 2024).

From Python: `from aligner import Corrector, Correction, register`. Each is imported when it is first used, so that
`import aligner` itself loads neither torch nor anything else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aligner.inference.corrector import Corrector
    from aligner.records import Correction
    from aligner.training.datasets import register

__version__ = "0.1.0"
__all__ = ["Correction", "Corrector", "register"]
_MODULES = {
    "Corrector": "aligner.inference.corrector",
    "Correction": "aligner.records",
    "register": "aligner.training.datasets",
}


def __getattr__(name: str) -> Any:
    """A name of the package's interface, imported now."""
    if name not in _MODULES:
        raise AttributeError(f"module 'aligner' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)
