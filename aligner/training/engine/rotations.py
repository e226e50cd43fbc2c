"""Rotations that depend on the longest row of a micro-batch: those rows are kept apart, or law 1 would break in silence."""

from __future__ import annotations

from typing import Any

LONGROPE = ("longrope", "su")  # the second is its older name, in models that bring their own code


def rotation_border(config: Any) -> int | None:
    """The number of tokens from which a model turns its positions otherwise, all of a micro-batch at once; None without one.

    LongRoPE has two sets of frequencies, and takes the long one where any row is longer than the original context. (Dynamic
    NTK begins beyond all positions that the model has, which no row here has.)
    """
    text = config.get_text_config()
    borders = [
        int(original)
        for rope in _ropes(getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {})
        if (rope.get("rope_type") or rope.get("type")) in LONGROPE
        for original in [rope.get("original_max_position_embeddings") or _original(text)]
        if original
    ]
    return min(borders, default=None)


def _original(text: Any) -> int | None:
    return getattr(text, "original_max_position_embeddings", None) or getattr(text, "max_position_embeddings", None)


def _ropes(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of a model's rotations: one, or one for each kind of layer."""
    inner = [value for value in parameters.values() if isinstance(value, dict)]
    return inner or [parameters]
