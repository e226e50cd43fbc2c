"""Law 1 where it can be checked by eye: which records an update has, what they weigh, where they are computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aligner.records import Origin
from aligner.training.datasets.supervised import Tokens
from aligner.training.engine.batching import (
    Layout,
    balanced_layout,
    collate,
    micro_batches,
    padded_layout,
    row_weights,
    rows_of_update,
)
from aligner.training.engine.loss import weighted_nll
from aligner.training.plan import Plan
from tests.benchmarks.balance import balance
from tests.benchmarks.workloads import Workload, available, lengths_of, rows_of

PADDED, FLAT = Layout(flat=False, rows=4, tokens=20, pad=0), Layout(flat=True, rows=4, tokens=20, pad=0)
REAL_ROWS = Workload(49_152, "real")
PLAN = Plan(records=10, records_per_update=4, micro_batch_size=2, ranks=1, epochs=2, warmup_ratio=0.1)


def tokens(prompt: int, target: int, first: int = 5) -> Tokens:
    return Tokens(np.arange(first, first + prompt + target, dtype=np.int32), prompt, Origin("f", 1), False, False)


def test_every_epoch_sees_every_record_once_and_the_remainder_is_an_update_of_its_own():
    assert (PLAN.updates_per_epoch, PLAN.updates) == (3, 6)
    for epoch in (0, 1):
        updates = [rows_of_update(PLAN, 42, epoch * 3 + place) for place in range(3)]
        assert [len(rows) for _, rows in updates] == [4, 4, 2]
        assert [e for e, _ in updates] == [epoch] * 3
        assert sorted(np.concatenate([rows for _, rows in updates])) == list(range(10))


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    def order(seed: int, epoch: int) -> list[int]:
        return [int(r) for place in range(3) for r in rows_of_update(PLAN, seed, epoch * 3 + place)[1]]

    assert order(42, 0) != order(42, 1)
    assert order(42, 0) != order(43, 0)
    assert order(42, 1) == order(42, 1)


def test_weights_of_virtual_micro_batches_by_eye():
    # rows of 1, 3 | 4, 4 | 2 target tokens in micro-batches of 2: three means, each a third
    weights = row_weights([1, 3, 4, 4, 2], 2, "micro_batch")
    assert weights == pytest.approx([1 / 12, 1 / 12, 1 / 24, 1 / 24, 1 / 6])


def test_weights_by_token_by_eye():
    assert row_weights([1, 3, 4], 2, "token") == pytest.approx([1 / 8] * 3)


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=70), st.integers(1, 9), st.sampled_from(["micro_batch", "token"])
)
def test_the_weights_of_an_update_sum_to_one(lengths, size, reduction):
    assert float(np.dot(row_weights(lengths, size, reduction), lengths)) == pytest.approx(1)


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 17))
def test_every_row_is_computed_once_and_every_rank_makes_as_many_calls(rows, size, ranks):
    laid = padded_layout(rows, size, ranks)
    assert sorted(int(p) for rank in laid for batch in rank for p in batch) == list(range(rows))
    assert {len(rank) for rank in laid} == {math.ceil(math.ceil(rows / size) / ranks)}


LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=70)


@given(LENGTHS, st.integers(1, 17), st.integers(1, 2000))
def test_flattened_too_every_row_is_computed_once_within_the_budget_and_every_rank_makes_as_many_calls(
    lengths, ranks, budget
):
    laid = balanced_layout(lengths, lengths, budget, ranks)
    assert sorted(int(p) for rank in laid for places in rank for p in places) == list(range(len(lengths)))
    assert len({len(rank) for rank in laid}) == 1
    for places in (places for rank in laid for places in rank):
        assert len(places) < 2 or sum(lengths[p] for p in places) <= budget


def test_balanced_by_eye():
    # the longest first, each to the emptiest: 9 | 5, 3, 2 | 4, 4
    (first,), (second,), (third,) = balanced_layout([4, 9, 2, 5, 3, 4], [4, 9, 2, 5, 3, 4], budget=10, ranks=3)
    assert list(map(list, (first, second, third))) == [[2, 3, 4], [1], [0, 5]]


def lengths_of_rows(count: int, longest: int = 2048) -> list[int]:
    """Lognormal lengths of question, answer and correction, as of real rows."""
    return [min(prompt + target, longest) for prompt, target in lengths_of("lognormal", count, seed=0)]


def balance_in_eight(lengths: list[int], ranks: int) -> float:
    """The balance of an update laid into eight micro-batches a rank."""
    laid = balanced_layout(lengths, lengths, int(1.1 * sum(lengths) / (ranks * 8)), ranks)
    assert len(laid[0]) == 8
    return balance(lengths, laid, padded=False)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_ranks_hardly_wait_for_each_other(ranks):
    lengths = lengths_of_rows(256, longest=1500)  # a row longer than the mean micro-batch could not be balanced
    assert balance_in_eight(lengths, ranks) > 0.99
    assert balance(lengths, padded_layout(256, 4, 8), padded=True) < 0.4  # the original's: four rows each as they come


@pytest.mark.skipif(not available(REAL_ROWS), reason="there are no real rows here")
def test_eight_ranks_hardly_wait_for_each_other_on_256_real_rows():
    assert balance_in_eight([len(row.ids) for row in rows_of(REAL_ROWS, 256)], ranks=8) > 0.99


def test_the_layout_is_quick_for_a_thousand_ranks():
    lengths = lengths_of_rows(8192)
    laid = balanced_layout(lengths, lengths, 8192, 1024)
    assert len(laid) == 1024 and balance(lengths, laid, padded=False) > 0.95


@pytest.mark.parametrize("layout", [PADDED, FLAT])
def test_a_rank_without_rows_carries_a_micro_batch_that_weighs_nothing(layout):
    laid = micro_batches([tokens(2, 3)] * 3, np.arange(3), np.ones(3), layout, ranks=4, rank=3)
    assert len(laid) == 1 and laid[0].ids_BL.shape == (1, 5) and len(laid[0].targets_T) == 0


def test_flattened_rows_by_eye():
    batch = collate([tokens(2, 2, first=10), tokens(1, 1, first=20)], [0.5, 0.25], FLAT)
    assert batch.ids_BL.tolist() == [[10, 11, 12, 13, 20, 21]] and batch.attention_BL is None
    assert batch.positions_BL.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.segments.bounds == ((0, 4), (4, 6)) and batch.segments.starts_S.tolist() == [0, 4, 6]
    assert batch.target_positions_T.tolist() == [1, 2, 4] and batch.targets_T.tolist() == [12, 13, 21]


def test_padding_and_targets_by_eye():
    batch = collate([tokens(2, 2, first=10), tokens(1, 1, first=20)], [0.5, 0.25], PADDED)
    assert batch.ids_BL.tolist() == [[10, 11, 12, 13], [20, 21, 0, 0]]
    assert batch.attention_BL.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    # target 12 is predicted at place 1, 13 at place 2; target 21 at place 0 of the second row, 4 in the flat grid
    assert batch.target_positions_T.tolist() == [1, 2, 4]
    assert batch.targets_T.tolist() == [12, 13, 21]
    assert batch.weights_T.tolist() == [0.5, 0.5, 0.25]


def test_attention_is_not_read_off_the_padding_token():
    row = Tokens(np.array([7, 0, 0], dtype=np.int32), 1, Origin("f", 1), False, False)  # pad = eos = 0 in the text
    batch = collate([row, tokens(2, 3)], [1, 1], PADDED)
    assert batch.attention_BL.tolist()[0] == [1, 1, 1, 0, 0]
    assert batch.targets_T.tolist()[:2] == [0, 0]


def test_the_loss_is_weight_times_negative_log_likelihood():
    logits = torch.zeros(1, 3, 4)  # uniform over four tokens: -log p = log 4
    loss = weighted_nll(logits, torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([0.5, 0.25]))
    assert loss.item() == pytest.approx(0.75 * math.log(4))


def test_a_loss_without_targets_is_zero_and_sends_zeros_back():
    logits = torch.randn(1, 3, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    weighted_nll(logits, none, none, torch.zeros(0)).backward()
    assert logits.grad is not None and not logits.grad.any()


def test_the_papers_arithmetic():
    paper = Plan(50_000, 256, 4, 8, 3, 0.03)
    assert (paper.updates, paper.warmup_updates, paper.accumulation) == (588, 18, 8)
    assert paper.line().startswith(
        "8 ranks x 4 rows x 8 accumulation = 256 rows per update; 50,000 rows x 3 epochs = 588 updates"
    )


def test_the_schedule_ends_where_it_should():
    """The original plans with ceil and makes fewer updates, so its cosine never comes down."""
    from transformers import get_scheduler

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler("cosine", optimizer, PLAN.warmup_updates, PLAN.updates)
    used = []
    for _ in range(PLAN.updates):
        used.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-12)
    assert used[1] == 1.0 and used[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 4 / 5)))


def test_an_epoch_is_shuffled_once_and_not_at_every_update(monkeypatch):
    """Four epochs of three updates, each asked for twice: four shuffles."""
    shuffled = []

    def counted(seed):
        shuffled.append(seed)
        return np.random.Generator(np.random.PCG64(0))

    monkeypatch.setattr(np.random, "default_rng", counted)
    for update in range(12):
        rows_of_update(PLAN, 977, update)
        rows_of_update(PLAN, 977, update)
    assert shuffled == [[977, 0], [977, 1], [977, 2], [977, 3]]
