"""Step 1: attention over flattened records, by the kernel in bf16 against one record at a time in fp32."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from aligner.training.engine.attention import has_varlen_kernel, segment_attention
from aligner.training.engine.batching import Segments
from tests.acceptance.common import CUDA, DEVICE, TINY, relative, report, seconds_of

CLOSE = 2e-2  # of bf16 against fp32


def segments_of(lengths: Sequence[int]) -> Segments:
    """Records of these lengths behind each other."""
    starts = np.cumsum([0, *lengths])
    bounds = tuple((int(a), int(b)) for a, b in itertools.pairwise(starts))
    return Segments(bounds, torch.from_numpy(starts.astype(np.int32)).to(DEVICE))


def inputs(heads: int, shared: int, size: int, tokens: int) -> list[torch.Tensor]:
    """Query, key, value, as a model hands them over: (1 x heads x N x D), and a gradient of the output."""
    shapes = [(heads, tokens), (heads // shared, tokens), (heads // shared, tokens)]
    made = [torch.randn(1, n, h, size, device=DEVICE).transpose(1, 2).bfloat16() for h, n in shapes]
    return [*made, torch.randn(1, tokens, heads, size, device=DEVICE).bfloat16()]


def attend(given: list[torch.Tensor], segments: Segments, window: int | None, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output and the gradients of query, key and value."""
    q, k, v = (t.detach().to(dtype).requires_grad_() for t in given[:3])
    out = segment_attention(torch.nn.Identity(), q, k, v, None, segments=segments, sliding_window=window)[0]
    out.backward(given[3].to(dtype))
    return [out, q.grad, k.grad, v.grad]  # type: ignore[list-item]


def main() -> None:
    torch.manual_seed(0)
    lengths = [(1,), (7, 50), (3, 20, 11)] if TINY else [(1,), (7, 2048), *[tuple(drawn(24))]]
    worst, missed, count = 0.0, [], 0
    for size, shared, window in itertools.product((64, 128, 256), (1, 4, 8), (None, 16 if TINY else 1024)):
        for chosen in lengths:
            given = inputs(8, shared, size, sum(chosen))
            if CUDA and not has_varlen_kernel(given[0]):
                missed.append(f"the kernel does not take heads of {size}")
                continue
            segments = segments_of(chosen)
            pairs = zip(attend(given, segments, window, torch.bfloat16),
                        attend(given, segments, window, torch.float32), strict=True)  # fmt: skip
            # The gradient of one token alone is zero but for rounding: compare with the output's size there.
            error = max(relative(a, b) if float(b.norm()) > 1e-3 else float((a.float() - b).norm()) for a, b in pairs)
            worst, count = max(worst, error), count + 1
            if not error < CLOSE:
                missed.append(f"heads of {size}, {shared} share, window {window}, lengths {chosen[:3]}: {error:.1e}")
    report(cases=count, worst=worst, missed=missed)
    report(tflops=speed())


def drawn(count: int) -> list[int]:
    """Lengths as of published rows."""
    return np.random.default_rng(0).lognormal(6.4, 0.6, count).astype(int).clip(2, 2048).tolist()


def speed() -> dict[str, float]:
    """TFLOP/s of forward and backward over drawn lengths, by head size: 3.5 times the forward products, halved by the mask."""
    made = {}
    chosen = [5, 9] if TINY else drawn(24)
    for size in (64, 128, 256):
        given, segments = inputs(8, 1, size, sum(chosen)), segments_of(chosen)
        operations = 3.5 * sum(2 * 2 * 8 * size * n * n / 2 for n in chosen)
        made[str(size)] = round(
            operations / seconds_of(lambda g=given, s=segments: attend(g, s, None, torch.bfloat16)) / 1e12, 1
        )
    return made


if __name__ == "__main__":
    main()
