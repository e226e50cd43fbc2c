"""What a direction does: corrections at several alphas, and how far they are from their answers.

    D_L(a, c) = Levenshtein(T(a), T(c)) / |T(a)|, on tokens (paper, section 3.4); its mean over rows against alpha, with a line

c is what `aligner correct` writes: a correction that does not end within the tokens it may have is not taken, and its answer stays.
How many those are stands beside, and so does the line with them as they are, cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from aligner.inference.corrector import Corrected, CorrectionRequest, Corrector
from aligner.interpretation.statistics import Line, line, mean
from aligner.steering.hooks import steer


@dataclass(frozen=True)
class Effect:
    """A sweep over alphas: the ratio of every row at every alpha, (N, A), the share of corrections that ended by themselves, the
    texts, and the line through the means; `cut_off`: the line where corrections that did not end count as they are."""

    alphas: tuple[float, ...]
    ratios_NA: np.ndarray
    finished_A: tuple[float, ...]
    texts_AN: tuple[tuple[str, ...], ...]
    line: Line
    cut_off: Line

    def figures(self) -> dict[str, Any]:
        """As JSON has it."""
        points = [
            {"alpha": alpha, "ratio": asdict(mean(ratios)), "finished": finished}
            for alpha, ratios, finished in zip(self.alphas, self.ratios_NA.T, self.finished_A, strict=True)
        ]
        return {"points": points, "line": asdict(self.line), "line_with_cut_off": asdict(self.cut_off)}


def ratio(encoder_ids: Callable[[str], list[int]], answer: str, corrected: str) -> float:
    """The Levenshtein ratio of one correction: 0 is a copy, 1 as many edits as the answer has tokens."""
    before = encoder_ids(answer)
    return Levenshtein.distance(before, encoder_ids(corrected)) / max(1, len(before))


def sweep(
    corrector: Corrector,
    layer: torch.nn.Module,
    unit_H: torch.Tensor,
    pairs: Sequence[tuple[str, str]],
    alphas: Sequence[float],
    unsteered: Sequence[Corrected] | None = None,
) -> Effect:
    """Correct the same answers at every alpha. `unit_H`: a direction of the residual's length. `unsteered`: the corrections at
    alpha 0, where they are known already: they are the same for every direction."""
    requests = [CorrectionRequest(*pair) for pair in pairs]
    outcomes = []
    for alpha in alphas:
        if alpha == 0 and unsteered is not None:
            outcomes.append(list(unsteered))
            continue
        handle = steer(layer, alpha * unit_H)
        try:
            outcomes.append(corrector.correct(requests))
        finally:
            handle.remove()
    return effect_of(corrector, pairs, alphas, outcomes)


def effect_of(
    corrector: Corrector, pairs: Sequence[tuple[str, str]], alphas: Sequence[float], outcomes: Sequence[list[Corrected]]
) -> Effect:
    """The figures of corrections at every alpha."""
    tokenizer = corrector.encoder.tokenizer

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    raw_NA = np.array(
        [[ratio(ids, answer, each[row].text) for each in outcomes] for row, (_, answer) in enumerate(pairs)]
    )
    finished_NA = np.array([[each[row].finished for each in outcomes] for row in range(len(pairs))])
    ratios_NA = np.where(finished_NA, raw_NA, 0.0)
    texts = tuple(
        tuple(c.text if c.finished else answer for c, (_, answer) in zip(each, pairs, strict=True)) for each in outcomes
    )
    lines = line(alphas, ratios_NA), line(alphas, raw_NA)
    return Effect(tuple(alphas), ratios_NA, tuple(finished_NA.mean(0).tolist()), texts, *lines)


def random_directions(count: int, width: int, seed: int = 0) -> Iterator[torch.Tensor]:
    """Unit vectors without a meaning: what any push of that length does."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(count):
        vector_H = torch.randn(width, generator=draw)
        yield vector_H / vector_H.norm()
