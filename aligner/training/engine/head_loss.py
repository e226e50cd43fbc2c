"""The head and the objective in one step, from the hidden states at the target positions.

The head is applied only where a token is learned, in pieces of rows, and each piece's gradient is computed at once while
its logits exist: memory grows neither with the prompt nor with the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

WORKSPACE = (
    1 << 30
)  # bytes of fp32 logits at once on a GPU: for 256,000 tokens a thousand rows, or the products are thin
CPU_WORKSPACE = 32 << 20  # a CPU's cache holds less
PRODUCT = 256 << 20  # bytes that decide how many rows of the head's gradient a CPU adds to at once


def weighted_nll_of_hidden(
    hidden_TH: torch.Tensor,
    head_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    softcap: float | None,
    targets_T: torch.Tensor,
    weights_T: torch.Tensor,
) -> torch.Tensor:
    """`weighted_nll` from the hidden states at the T target positions and the head's weights.

    softcap: logits are c x tanh(logits / c).
    """
    train = torch.is_grad_enabled()
    value: torch.Tensor = _HeadLoss.apply(hidden_TH, head_VH, bias_V, softcap, targets_T, weights_T, train)
    return value


class _HeadLoss(torch.autograd.Function):
    """Head and weighted negative log-likelihood in one step: 6 x T x V x H operations (4 where the head is frozen), and never
    T x V numbers at once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        head_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        softcap: float | None,
        targets_T: torch.Tensor,
        weights_T: torch.Tensor,
        train: bool,
    ) -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden_TH.device)
        # fp16 would lose gradients this small before the loss scaler sees them: weigh by 1 at most, and keep fp32.
        narrow = hidden_TH.dtype == torch.float16
        lift = weights_T.amax().clamp_min(1e-30) if narrow and len(weights_T) else None
        learns_head, learns_bias = (train and needed for needed in ctx.needs_input_grad[1:3])  # a frozen head does not
        grad_hidden = torch.empty_like(hidden_TH, dtype=torch.float32 if narrow else None) if train else None
        grad_head = torch.zeros_like(head_VH, dtype=torch.float32) if learns_head else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if learns_bias and bias_V is not None else None
        room = WORKSPACE if hidden_TH.is_cuda else CPU_WORKSPACE
        rows = max(1, room // (4 * head_VH.shape[0]))
        starts = range(0, len(hidden_TH), rows)
        if isinstance(hidden_TH, FakeTensor):  # watched for its memory alone: no later piece holds more than the second
            starts = starts[:2]
        for start in starts:
            piece = slice(start, start + rows)
            logits_PV = F.linear(hidden_TH[piece], head_VH, bias_V)
            weights_P = weights_T[piece] if lift is None else weights_T[piece] / lift
            nll, gradient_PV = _piece(logits_PV, softcap, targets_T[piece], weights_P, train)
            loss += nll
            if grad_bias is not None:
                grad_bias += gradient_PV.sum(0, dtype=torch.float32)
            if grad_hidden is not None:
                grad_hidden[piece] = gradient_PV @ head_VH
            if grad_head is not None:
                _add_product(grad_head, gradient_PV.t(), hidden_TH[piece])
            del logits_PV, gradient_PV  # or they would live on beside the next piece's
        ctx.gradients, ctx.lift, ctx.dtype = (grad_hidden, grad_head, grad_bias), lift, head_VH.dtype
        return loss if lift is None else loss * lift

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        scale = grads[0] if ctx.lift is None else grads[0] * ctx.lift
        gradients = (None if g is None else g.mul_(scale.to(g.dtype)).to(ctx.dtype) for g in ctx.gradients)
        ctx.gradients = None
        return *gradients, None, None, None, None


def _piece(
    logits_PV: torch.Tensor, softcap: float | None, targets_P: torch.Tensor, weights_P: torch.Tensor, train: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of some rows in fp32, and its gradient by their logits in the logits' own type.

    As few passes over (P x V) as torch's own operations allow: on a GPU each costs what reading and writing it costs.
    """
    kind, slope_PV = logits_PV.dtype, None
    if logits_PV.device.type == "cpu":
        logits_PV = logits_PV.float()  # there a normalisation that changes the type is slower than both steps
    if softcap:
        logits_PV = logits_PV.float().div(softcap).tanh_()
        slope_PV = 1 - logits_PV.square() if train else None
        logits_PV.mul_(softcap)
    log_p_PV = F.log_softmax(logits_PV, dim=1, dtype=torch.float32)
    del logits_PV
    nll = -(log_p_PV.gather(1, targets_P[:, None]).squeeze(1) * weights_P).sum()
    if not train:
        return nll, log_p_PV
    gradient_PV = log_p_PV.exp_()
    gradient_PV.scatter_add_(1, targets_P[:, None], gradient_PV.new_full((len(targets_P), 1), -1))
    if slope_PV is not None:
        gradient_PV.mul_(slope_PV)
    if kind == torch.float32:
        return nll, gradient_PV.mul_(weights_P[:, None])
    return nll, torch.mul(gradient_PV, weights_P[:, None], out=torch.empty_like(gradient_PV, dtype=kind))


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left @ right, in fp32 also where the factors are 16 bit."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    if total.is_cuda:  # one product that sums in fp32 and reads and writes the total once
        torch.ops.aten.addmm.dtype_out(total, left, right, torch.float32, out=total)
        return
    rows = max(1, PRODUCT // (32 * total.shape[1]))
    for start in range(0, len(total), rows):  # in pieces, or the product would be as large as the head itself
        piece = slice(start, start + rows)
        if left.dtype == torch.float16:  # its sums overflow, and no loss scale would help: the weights are lifted
            total[piece] += left[piece].float() @ right.float()
        else:
            total[piece] += left[piece] @ right
