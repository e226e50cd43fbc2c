"""What a model takes, tried on a few short texts: the cache that drafts are verified with, and padding in front of a prompt.

On any one text a trained model in 16 bit may be all rounding (63 % of the logits' spread were measured), so most of three decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig, PreTrainedModel

from aligner.inference.greedy import forward
from aligner.inference.row_cache import RowCache

FAULT, NOISE = 0.05, 0.3  # differences of logits, in their own spread: below is rounding, above is a fault in any type
FAULT_16 = 0.2  # of padding, in 16 bit
_TAKES_PADDING: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.inference_mode()
def supports_drafts(model: PreTrainedModel) -> bool:
    """Whether a model gives the same logits with `RowCache` as without a cache: tried on pairs of short rows of unequal length.

    It does not where a model keeps another state than keys and values, or takes no positions. What so short rows cannot show is
    known by name: rotations that depend on the longest row of a pass, and local attention that counts from its end. In 16 bit the
    same sums in other pieces differ: by twice as much as with transformers' own cache is no fault of this one.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if config.model_type == "gpt_neo" or any(kind in str(rope) for kind in ("dynamic", "longrope")):
        return False
    rows = _rows_to_try(config.vocab_size)
    try:
        cache, begun = RowCache(), [0] * len(rows)
        forward(model, cache, 0, [row[:-3] for row in rows], begun, 1)
        cached = forward(model, cache, 0, [row[-3:] for row in rows], [len(row) - 3 for row in rows], 3).float()
        plain = [model(input_ids=torch.tensor([row], device=model.device)).logits[0, -3:].float() for row in rows]
        own = own_cache_logits(model, rows).to(cached.device) if model.dtype.itemsize < 4 else None
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever its code raises, it does not take this cache
        return False
    expected = torch.stack([logits.to(cached.device) for logits in plain])
    pairs = (slice(at, at + 2) for at in range(0, len(rows), 2))
    same = [_agree(expected[pair], cached[pair], None if own is None else own[pair]) for pair in pairs]
    return 2 * sum(same) > len(same)


def _rows_to_try(vocabulary: int) -> list[list[int]]:
    """Three pairs of rows from different parts of a vocabulary."""
    starts = (min(start, vocabulary - 12) for start in (3, vocabulary // 3, 2 * vocabulary // 3))
    return [list(range(start + skip, start + end)) for start in starts for skip, end in ((0, 12), (2, 9))]


def _agree(expected: torch.Tensor, cached: torch.Tensor, own: torch.Tensor | None) -> bool:
    """Whether logits with a cache are those without, but for rounding. own: those with the model's own cache."""
    spread = (expected - expected.mean(-1, keepdim=True)).norm()
    noise = 0 * spread if own is None else (own - expected).norm()
    return bool((cached - expected).norm() < max(FAULT * spread, min(2 * noise, NOISE * spread)))


def own_cache_logits(model: PreTrainedModel, rows: Sequence[list[int]]) -> torch.Tensor:
    """The logits of each row's last three tokens behind the others, with the model's own cache."""
    logits = []
    for row in rows:
        front, back = (torch.tensor([ids], device=model.device) for ids in (row[:-3], row[-3:]))
        cache = model(input_ids=front, use_cache=True).past_key_values
        logits.append(model(input_ids=back, past_key_values=cache).logits[0].float())
    return torch.stack(logits)


def takes_padding(model: PreTrainedModel, pad: int) -> bool:
    """Whether a model gives the same logits behind a prompt with padding in front of it: tried once. It does not where it
    counts its positions from the first token, whatever the mask says."""
    if model not in _TAKES_PADDING:
        fault = FAULT if model.dtype.itemsize >= 4 else FAULT_16
        far = [_moved(model, row, pad) for row in _rows_to_try(model.config.get_text_config().vocab_size)[::2]]
        _TAKES_PADDING[model] = sorted(far)[len(far) // 2] < fault
    return _TAKES_PADDING[model]


def _moved(model: PreTrainedModel, row: Sequence[int], pad: int) -> float:
    """How far padding moves the logits behind a text, in their own spread."""
    config = GenerationConfig(
        max_new_tokens=1, pad_token_id=pad, output_logits=True, return_dict_in_generate=True, do_sample=False
    )
    logits = []
    for front in (0, 5):
        ids_1L = torch.tensor([[pad] * front + list(row)], device=model.device)
        mask_1L = torch.tensor([[0] * front + [1] * len(row)], device=model.device)
        output = model.generate(input_ids=ids_1L, attention_mask=mask_1L, generation_config=config)  # type: ignore[operator]
        logits.append(output.logits[0].float())
    alone, padded = logits
    return float((alone - padded).norm() / (alone - alone.mean()).norm())
