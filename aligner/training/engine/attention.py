"""Attention over flattened records: (1 x N) tokens of several records, each seeing itself alone; nothing is padded.

On a GPU in 16 bit it is torch's variable-length kernel; elsewhere one causal attention a record, which on a CPU is faster
than one with a dense block mask. Registered as transformers' attention, so no model is patched. The bounds of the records
reach it as `segments`, which every model listed here hands down to its attention.

Two paths have not run on a GPU, and are off unless ALIGNER_UNTRIED_KERNELS is 1 in the environment: heads of 256 on cards
that are not LARGE, and torch's flex attention where scores are capped (Gemma-2).
"""

from __future__ import annotations

import inspect
import os
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from aligner.training.engine.batching import Segments

NAME = "aligner_segments"
# torch 2.11 takes fewer key heads than query heads as they are; later versions take them with an option.
HAS_GQA_OPTION = "enable_gqa" in inspect.signature(varlen_attn).parameters
UNTRIED = "ALIGNER_UNTRIED_KERNELS"
LARGE = ((8, 0), (9, 0), (10, 0))  # A100, H100 and H200, B200
# Model types whose attention gets `segments` and asks for nothing that is not done here; each is compared with padded rows.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt_neox", "opt")
HARMLESS = {
    "position_ids",
    "use_cache",
    "cache_position",
    "output_attentions",
    "is_causal",
    "position_bias",
    "layer_past",
}


def supports(model: Any) -> bool:
    """Whether a model can be trained without padding: of a listed family, and of transformers' own code."""
    return type(model).__module__.startswith("transformers.models.") and is_listed(model.config)


def is_listed(config: Any) -> bool:
    """Whether a configuration is of a listed family and asks for plain causal attention."""
    text = config.get_text_config()
    bidirectional = getattr(text, "use_bidirectional_attention", False)
    return text.model_type in FAMILIES and not bidirectional and not getattr(text, "alibi", False)


def has_varlen_kernel(query: torch.Tensor) -> bool:
    """Whether torch's variable-length attention takes this: 16 bit, on an NVIDIA GPU since Ampere, heads of a multiple of 8 up
    to 192, up to 256 on the large ones (its backward pass needs their shared memory; torch's source refuses no other)."""
    head = query.shape[-1]
    if not query.is_cuda or torch.version.hip or query.dtype not in (torch.float16, torch.bfloat16) or head % 8:
        return False
    capability = torch.cuda.get_device_capability(query.device)
    widest = 256 if capability in LARGE or uses_untried() else 192
    return capability >= (8, 0) and head <= widest


def uses_untried() -> bool:
    """Whether kernels may be used that have not run on a GPU yet."""
    return os.environ.get(UNTRIED) == "1"


def segment_attention(
    module: torch.nn.Module,
    query_BHND: torch.Tensor,
    key_BKND: torch.Tensor,
    value_BKND: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each record to itself; B is 1. Returns (1 x N x H x D).

    Raises NotImplementedError for what it would otherwise leave out in silence: a mask, or an argument it does not know.
    """
    unknown = {name for name, value in others.items() if value is not None} - HARMLESS
    if attention_mask is not None or unknown:
        raise NotImplementedError(f"flattened records with {', '.join(sorted(unknown)) or 'a mask'} are not supported")
    if has_varlen_kernel(query_BHND) and not softcap and not dropout:
        return _varlen(query_BHND, key_BKND, value_BKND, segments, scaling, sliding_window), None
    if softcap and not dropout and query_BHND.is_cuda and uses_untried():
        return _flex(query_BHND, key_BKND, value_BKND, segments, scaling, sliding_window, softcap), None
    lengths = [end - start for start, end in segments.bounds]
    # Split, not sliced: a slice's backward pass makes a gradient as long as the whole micro-batch, for every record.
    records = zip(*(t.split(lengths, dim=2) for t in (query_BHND, key_BKND, value_BKND)), strict=True)
    parts = [_one_record(q, k, v, scaling, dropout, sliding_window, softcap) for q, k, v in records]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _one_record(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    length, grouped = q.shape[2], q.shape[1] != k.shape[1]
    slides = window is not None and length > window
    if not slides and not softcap:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
    distance = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)
    visible = (distance >= 0) & (distance < (window or length))
    if not softcap:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
    if grouped:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
    scores = q @ k.transpose(2, 3) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~visible, torch.finfo(q.dtype).min)
    shares = F.dropout(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), dropout)
    return shares @ v


def _flex(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
    softcap: float,
) -> torch.Tensor:
    """All records in one kernel that caps the scores itself: without N x N scores, where it is compiled (on a GPU)."""
    count = q.shape[2]
    lengths_S = segments.starts_S.diff()
    record_N = torch.repeat_interleave(torch.arange(len(lengths_S), device=q.device), lengths_S, output_size=count)

    def is_visible(_b: Any, _h: Any, query: Any, key: Any) -> Any:
        return (record_N[query] == record_N[key]) & (query >= key) & (query - key < (window or count))

    def cap(score: Any, *_place: Any) -> Any:
        return softcap * torch.tanh(score / softcap)

    mask = create_block_mask(is_visible, None, None, count, count, device=q.device)
    attend = _compiled_flex() if q.is_cuda else flex_attention
    output = attend(q, k, v, score_mod=cap, block_mask=mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    assert isinstance(output, torch.Tensor)
    return output.transpose(1, 2).contiguous()


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments, scaling: float | None, window: int | None
) -> torch.Tensor:
    q_NHD, k_NHD, v_NHD = (t[0].transpose(0, 1) for t in (q, k, v))
    options: dict[str, Any] = {"scale": scaling, "window_size": (window - 1 if window else -1, 0)}
    if HAS_GQA_OPTION and q.shape[1] != k.shape[1]:
        options["enable_gqa"] = True
    bounds = segments.starts_S, segments.starts_S, segments.longest, segments.longest
    output = varlen_attn(q_NHD, k_NHD, v_NHD, *bounds, **options)
    assert isinstance(output, torch.Tensor)
    return output[None]


AttentionInterface.register(NAME, segment_attention)  # without a mask function: transformers then builds no mask
