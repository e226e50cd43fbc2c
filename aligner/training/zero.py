"""ZeRO-3's limits, in parameters and from the model: what a rank may hold whole at once, and what it fetches ahead."""

from __future__ import annotations

from typing import Any

LIVE, PREFETCH = 1_000_000_000, 50_000_000  # DeepSpeed's defaults


def zero3_limits(text: Any) -> dict[str, int]:
    """Limits for a model with this text configuration. (The original's are below one matrix of a 7B model.)

    Norms and biases are never split; a whole decoder layer is fetched ahead; the largest matrix and two layers may be whole
    at once.
    """
    hidden = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", 4 * hidden)
    inner = max(inner) if isinstance(inner, list | tuple) else inner  # one for each layer
    layer = 4 * hidden * hidden + 3 * hidden * inner
    return {
        "stage3_param_persistence_threshold": 10 * hidden,
        "stage3_prefetch_bucket_size": max(PREFETCH, layer),
        "stage3_max_live_parameters": max(LIVE, hidden * text.vocab_size + 2 * layer),
    }
