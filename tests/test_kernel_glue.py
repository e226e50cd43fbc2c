"""What surrounds torch's variable-length attention kernel, which needs a GPU: its place is taken by an implementation for the CPU
that is as strict as the kernel and computes each record by itself from the definition."""

import itertools

import pytest
import torch
import transformers
from test_no_padding import CONFIGS, GROUPED, gradient, rows
from torch.nn.attention import varlen
from transformers import AutoModelForCausalLM

from aligner.training.engine import attention
from aligner.training.engine.batching import Layout, collate, row_weights
from aligner.training.engine.objective import Objective

# Softcapped attention is not the kernel's: these layers must take the other way.
FAMILIES = {**CONFIGS, "gemma2 without a softcap": transformers.Gemma2Config(
    **GROUPED, sliding_window=5, attn_logit_softcapping=None, final_logit_softcapping=2.0
)}  # fmt: skip
calls = []


def strict(q_NHD, k_NKD, v_NKD, starts, starts_k, longest, longest_k, window, grouped):
    """What the kernel demands; on a GPU some of it is a wrong answer and no error."""
    assert starts is starts_k or torch.equal(starts, starts_k)
    assert starts.dtype == torch.int32 and starts.is_contiguous() and starts[0] == 0 and starts[-1] == len(q_NHD)
    assert type(longest) is int and longest == longest_k == int(starts.diff().max())
    assert all(t.dim() == 3 and t.stride(-1) == 1 for t in (q_NHD, k_NKD, v_NKD))
    assert k_NKD.shape == v_NKD.shape and q_NHD.shape[1] % k_NKD.shape[1] == 0
    assert grouped == (q_NHD.shape[1] != k_NKD.shape[1])
    assert window[1] == 0, "attention to what comes later"


def records(q_NHD, k_NKD, v_NKD, starts, scale, window):
    """Of each record in double precision: its place, its query, keys and values by head, and who attends to whom how much."""
    for a, b in itertools.pairwise(starts.tolist()):
        q, k, v = (t[a:b].double().transpose(0, 1) for t in (q_NHD, k_NKD, v_NKD))
        k, v = (t.repeat_interleave(len(q) // len(t), dim=0) for t in (k, v))
        q = q * (scale if scale is not None else q.shape[-1] ** -0.5)
        distance = torch.arange(b - a)[:, None] - torch.arange(b - a)
        seen = (distance >= 0) & (distance <= (window[0] if window[0] >= 0 else b))
        yield slice(a, b), q, k, v, (q @ k.transpose(1, 2)).masked_fill(~seen, -torch.inf).softmax(-1)


def forward(q, k, v, starts, starts_k, longest, longest_k, is_causal, scale, window, grouped=False, *_):
    strict(q, k, v, starts, starts_k, longest, longest_k, window, grouped)
    assert is_causal == (window == [-1, 0])
    calls.append(window)
    out = torch.empty_like(q)
    for place, _, _, v_HLD, shares_HLL in records(q, k, v, starts, scale, window):
        out[place] = (shares_HLL @ v_HLD).transpose(0, 1).to(q.dtype)
    return out, torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)


def backward(
    grad, q, k, v, out, lse, starts, starts_k, longest, longest_k, is_causal, rng_state, scale=None, window=None, *_
):
    """The derivatives by hand: below autograd nothing is recorded."""
    grads = [torch.zeros_like(t) for t in (q, k, v)]
    factor = scale if scale is not None else q.shape[-1] ** -0.5
    for place, q_HLD, k_HLD, v_HLD, shares in records(q, k, v, starts, scale, window):
        grad_HLD = grad[place].double().transpose(0, 1)
        of_shares = grad_HLD @ v_HLD.transpose(1, 2)
        of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True))
        each = factor * (of_scores @ k_HLD), of_scores.transpose(1, 2) @ q_HLD, shares.transpose(1, 2) @ grad_HLD
        for total, own in zip(grads, each, strict=True):
            shared = own.unflatten(0, (total.shape[1], -1)).sum(1)  # query heads that share a key head
            total[place] = shared.transpose(0, 1).to(total.dtype)
    return tuple(grads)


@pytest.fixture
def kernel(monkeypatch):
    varlen._varlen_attn.register_kernel("cpu", forward)
    varlen._varlen_attn_backward.register_kernel("cpu", backward)
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda query: True)
    calls.clear()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_through_the_kernel_loss_and_gradient_equal_the_padded_model_s(family, checkpointing, kernel):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager").train()
    weights = row_weights([row.target_length for row in rows()], 2, "micro_batch")
    plain = Objective(model, flat=False)(collate(rows(), weights, Layout(False, 8, 100, 0)))
    expected = gradient(model, plain)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss = Objective(model, flat=True)(collate(rows(), weights, Layout(True, 8, 100, 0)))
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert (gradient(model, loss) - expected).norm() / expected.norm() < 1e-6
    assert bool(calls) == (family != "gemma2"), "softcapped layers have no kernel, all others do"


def test_a_window_reaches_the_kernel_as_the_tokens_before_a_token(kernel):
    """A window of five tokens: a token and the four before it."""
    model = AutoModelForCausalLM.from_config(FAMILIES["gemma2 without a softcap"], attn_implementation="eager")
    Objective(model, flat=True)(collate(rows(), [1.0] * 5, Layout(True, 8, 100, 0)))
    assert [4, 0] in calls and [-1, 0] in calls
