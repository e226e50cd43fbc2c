"""Greedy decoding that knows the answer: plain greedy decoding's tokens in fewer forward passes.

A forward pass over one token reads every weight of the model, and over eight it often takes hardly longer. So the tokens that
probably come next are drafted (`drafts.py`) and read in the same pass as the last real one. Behind each of them the model says
which token *it* would put next: as long as that is the drafted one, it stands; the first that differs takes its place, and
what was drafted behind it is dropped. Every pass makes at least the one token that plain decoding makes, from the same logits
(Leviathan et al. 2023, with the answer in the place of the small model; Yang et al. 2023).

Several rows are read together though each accepts another number of tokens: `RowCache` lets every row have its own length.
A row that ends makes room for the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from aligner.inference.drafts import AcceptanceStats, Drafter, Guess, draft_length
from aligner.inference.row_cache import RowCache
from aligner.models import positions_of

WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)  # tokens of the passes that are timed
WIDTHS_OF_GPU = (*WIDTHS, 256, 512, 1024)  # where a pass takes as long for one as for a hundred
CONTEXT = 256  # tokens before them
NOTHING = Guess(0, 0, [])


@dataclass
class DecoderRow:
    """A correction that is being decoded."""

    prompt: list[int]
    answer: list[int]  # as the correction would have it: end-of-text behind it
    most: int  # tokens of the correction at most
    index: int = 0
    output: list[int] = field(default_factory=list)
    cached: int = 0  # tokens of prompt and correction whose keys and values are in the cache
    passes: int = 0  # forward passes that it took part in

    def __post_init__(self) -> None:
        self.drafter = Drafter(self.prompt, self.answer)

    def has_ended(self, eos: int) -> bool:
        """Whether it ends with end-of-text, or has as many tokens as it may."""
        return len(self.output) >= self.most or (bool(self.output) and self.output[-1] == eos)

    def pending(self) -> list[int]:
        """The tokens that the model has not read: the prompt at first, later the last generated token."""
        behind = self.cached - len(self.prompt)
        return self.output[behind:] if behind >= 0 else self.prompt[self.cached :] + self.output


@dataclass
class Cost:
    """Seconds of a forward pass by its number of tokens, between and beyond the measured ones on straight lines."""

    tokens: Sequence[int]
    seconds: Sequence[float]

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Seconds for each number of tokens."""
        slope = (self.seconds[-1] - self.seconds[-2]) / (self.tokens[-1] - self.tokens[-2])
        return np.interp(tokens, self.tokens, self.seconds) + slope * np.maximum(tokens - self.tokens[-1], 0)


# In passes over one token, as measured with 135M parameters in bfloat16 on one core.
STEADY_COST = Cost(WIDTHS, (1.0, 1.0, 1.05, 1.2, 1.5, 1.9, 2.9, 5.4))


class Decoder:
    """A model with the statistics of decoding with it. `passes` counts forward passes, `tokens` their generated tokens."""

    def __init__(self, model: PreTrainedModel, eos: int, cost: Cost | None = None) -> None:
        self.model, self.eos, self.acceptance = model, eos, AcceptanceStats()
        self.passes = self.tokens = 0
        self.cost = cost  # measured when it is first needed

    def begin_anew(self, cost: Cost) -> None:
        """Forget what was learned of drafts, and take this cost for a measured one. In 16 bit the length of a draft may decide a
        token, so what is to come out the same in every run begins every time alike."""
        self.acceptance, self.cost = AcceptanceStats(), cost

    def decode(self, rows: Iterable[DecoderRow], batch_size: int) -> Iterator[DecoderRow]:
        """Yield the rows as they end: `output` ends with end-of-text, or has as many tokens as it may."""
        waiting = iter(rows)
        for read in self.advance(lambda most: list(islice(waiting, most)), batch_size):
            yield from (row for row in read if row.has_ended(self.eos))

    def advance(
        self,
        new: Callable[[int], list[DecoderRow]],
        batch_size: int,
        dropped: Callable[[DecoderRow], bool] = lambda row: False,
    ) -> Iterator[list[DecoderRow]]:
        """Yield the rows of each forward pass, which have more tokens than before it. Ends when there is none left.

        `new(N)` is called before each pass for at most N more rows; a row that is `dropped` by then takes no part in it. A row
        whose `most` is lowered to what it has ends there.
        """
        self.cost = self.cost or self.measure()
        active, cache = list[DecoderRow](), RowCache()
        while True:
            for place in reversed(range(len(active))):
                if active[place].has_ended(self.eos) or dropped(active[place]):
                    last = active.pop()
                    if place < len(active):
                        active[place] = last
                        cache.move(len(active), place)
            added = new(batch_size - len(active)) if len(active) < batch_size else []
            first = len(active) if added else 0
            active += added
            if not active:
                return
            self._read(cache, first, active[first:], self.cost)
            yield active[first:]

    def _read(self, cache: RowCache, first: int, rows: Sequence[DecoderRow], cost: Cost) -> None:
        """One forward pass over the pending tokens and a draft of every row; each keeps the tokens that the model agrees with."""
        guesses = [row.drafter.guesses() for row in rows]
        chosen = [self.acceptance.best(row_guesses) if row_guesses else NOTHING for row_guesses in guesses]
        pending = [row.pending() for row in rows]
        length = draft_length([self.acceptance.survival(g) for g in chosen], max(map(len, pending)), cost)
        drafts = [g.tokens[: min(length, r.most - len(r.output) - 1)] for g, r in zip(chosen, rows, strict=True)]
        inputs = [p + d for p, d in zip(pending, drafts, strict=True)]
        choices = self._forward(cache, first, inputs, [row.cached for row in rows], 1 + max(map(len, drafts)))
        for row, draft, answer, row_guesses, read in zip(rows, drafts, choices, guesses, pending, strict=True):
            tokens = accepted(draft, answer[len(answer) - 1 - len(draft) :], self.eos)
            row.cached += len(read) + len(tokens) - 1
            row.output += tokens
            row.passes += 1
            row.drafter.extend(tokens)
            for guess in row_guesses:
                self.acceptance.learn(guess, tokens)
            self.tokens += len(tokens)

    def _forward(
        self, cache: RowCache, first: int, inputs: Sequence[Sequence[int]], starts: Sequence[int], keep: int
    ) -> list[list[int]]:
        """The model's choice behind each of the last `keep` tokens of every row."""
        self.passes += 1
        chosen: list[list[int]] = forward(self.model, cache, first, inputs, starts, keep).argmax(-1).tolist()
        return chosen

    def measure(self) -> Cost:
        """Time passes over more and more tokens: the best of three each, or of fewer where they take long; and of wider ones, since
        a pass costs no more than one over more tokens: what was slow was the machine."""
        cache, best = RowCache(), list[float]()
        half = (positions_of(self.model.config) or 2 * CONTEXT) // 2
        timed = WIDTHS_OF_GPU if self.model.device.type == "cuda" else WIDTHS
        context, widths = min(CONTEXT, half), [width for width in timed if width <= half]
        self._forward(cache, 0, [[0] * context], [0], 1)
        for width in widths:
            taken = list[float]()
            while len(taken) < 3 and sum(taken) < 0.1:
                began = time.perf_counter()
                self._forward(cache, 0, [[0] * width], [context], width)
                taken.append(time.perf_counter() - began)
            best.append(min(taken))
        self.passes = 0
        return Cost(widths, [min(best[place:]) for place in range(len(best))])


def accepted(draft: Sequence[int], choices: Sequence[int], eos: int) -> list[int]:
    """The tokens a row keeps: drafted ones while the model chooses the same, its own at the first difference, none behind
    end-of-text. `choices` has one token more than `draft`: the model's choice in its first place, ..., and behind its end."""
    right = 0
    while right < len(draft) and draft[right] == choices[right]:
        right += 1
    tokens = list(choices[: right + 1])
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


@torch.inference_mode()
def forward(
    model: PreTrainedModel,
    cache: RowCache,
    first: int,
    inputs: Sequence[Sequence[int]],
    starts: Sequence[int],
    keep: int,
) -> torch.Tensor:
    """Read more tokens of the rows `first`, first + 1, ... of the cache; `starts` says how many each has already.

    Returns the logits behind each row's last `keep` tokens, (B, keep, V). Rows end together: padding is in front.
    """
    width = max(map(len, inputs))
    ids_BQ = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in inputs])
    places_BQ = torch.tensor(
        [
            [-1] * (width - len(ids)) + list(range(start, start + len(ids)))
            for ids, start in zip(inputs, starts, strict=True)
        ]
    )
    length = int(places_BQ.max()) + 1
    positions_BQ = places_BQ.clamp(min=0)
    cache.open(first, places_BQ.to(model.device), length)
    logits_BQV: torch.Tensor = model(
        input_ids=ids_BQ.to(model.device),
        attention_mask=masks(model, positions_BQ, length),
        position_ids=positions_BQ.to(model.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
    ).logits
    return logits_BQV[:, -keep:]


def masks(model: PreTrainedModel, positions_BQ: torch.Tensor, length: int) -> Any:
    """The attention masks: a token sees the places up to its own, in layers with a sliding window only the nearest of them.

    (B, 1, Q, length); for models whose layers differ one for each kind, as transformers takes them.
    """
    config = model.config.get_text_config()
    positions_BQ1, places_L = positions_BQ.to(model.device)[..., None], torch.arange(length, device=model.device)
    kinds = {"full_attention": places_L <= positions_BQ1}
    if window := window_of(config):
        kinds["sliding_attention"] = kinds["full_attention"] & (places_L > positions_BQ1 - window)
    masks_by_kind = {}
    for kind, seen_BQL in kinds.items():
        seen = seen_BQL[:, None]
        if model.config._attn_implementation != "sdpa":  # the others add the mask to the scores
            hidden = torch.finfo(model.dtype).min
            seen = torch.zeros_like(seen, dtype=model.dtype).masked_fill(~seen, hidden)
        masks_by_kind[kind] = seen
    present = set(getattr(config, "layer_types", None) or [list(masks_by_kind)[-1]])
    return masks_by_kind if len(present) > 1 else masks_by_kind[present.pop()]


def window_of(config: Any) -> int | None:
    """The width of the sliding window in tokens; None where no layer has one."""
    layers = getattr(config, "layer_types", None)
    slides = "sliding_attention" in layers if layers else getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if slides else None
