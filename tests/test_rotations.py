"""Rows on both sides of a rotation's border are computed apart: the loss is that of every row alone (law 1)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from families import tiny_config
from transformers import AutoModelForCausalLM

from aligner.records import Origin
from aligner.training.datasets.supervised import Tokens
from aligner.training.engine.batching import Layout, micro_batches, row_weights
from aligner.training.engine.objective import Objective
from aligner.training.engine.rotations import rotation_border

SHORT, LONG = [1.0 + n for n in range(4)], [3.0 + 2 * n for n in range(4)]
ROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "rope_theta": 1e4, "factor": 8.0,
        "short_mscale": 1.0, "long_mscale": 1.2,
        "original_max_position_embeddings": 20}  # fmt: skip


def tiny(kind: str):
    return tiny_config(
        kind,
        rope_parameters=ROPE,
        max_position_embeddings=160,
        original_max_position_embeddings=20,
        initializer_range=0.3,
    )


@pytest.mark.parametrize(
    ("kind", "flat"),
    [("llama", True), ("qwen2", True), ("mistral", True), ("phi3", False), ("phimoe", False), ("qwen3_moe", False),
     ("phi4_multimodal", False), ("olmo2", False), ("granite", False), ("stablelm", False), ("glm4", False)],
)  # fmt: skip
def test_a_rows_loss_does_not_depend_on_its_neighbours(kind, flat):
    config = tiny(kind)
    assert rotation_border(config) == 20
    torch.manual_seed(0)
    model, draw = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), np.random.default_rng(1)
    rows = [
        Tokens(draw.integers(3, 600, n).astype(np.int32), 3, Origin("f", n), False, False) for n in (8, 30, 20, 21, 9)
    ]
    weights = row_weights([row.target_length for row in rows], 2, "micro_batch")
    objective = Objective(model, flat)

    def loss(layout: Layout, ranks: int = 1) -> float:
        shares = [micro_batches(rows, np.arange(5), weights, layout, ranks, rank) for rank in range(ranks)]
        assert len({len(share) for share in shares}) == 1  # every rank makes the same calls
        return sum(objective(batch).item() for share in shares for batch in share)

    alone = loss(Layout(flat, 1, 1, 0))
    for ranks in (1, 2):
        assert loss(Layout(flat, 4, 1000, 0, border=20), ranks) == pytest.approx(alone, rel=1e-5)
    assert abs(loss(Layout(flat, 4, 1000, 0)) - alone) > 1e-5 * alone  # together it does depend on them


def test_the_border_is_the_configurations():
    def config(**settings):
        return SimpleNamespace(get_text_config=lambda: SimpleNamespace(**settings))

    layered = {"full_attention": ROPE, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    assert rotation_border(config(rope_parameters=layered)) == 20
    assert rotation_border(config(rope_scaling={"type": "longrope"}, original_max_position_embeddings=4096)) == 4096
    assert rotation_border(config(rope_scaling={"type": "su"}, original_max_position_embeddings=4096)) == 4096
    assert rotation_border(config(rope_scaling={"type": "longrope"}, max_position_embeddings=64)) == 64
    assert (
        rotation_border(config(rope_parameters={"a": ROPE, "b": {**ROPE, "original_max_position_embeddings": 12}}))
        == 12
    )
    for kind in ("default", "linear", "dynamic", "yarn", "llama3", "proportional"):
        assert rotation_border(config(rope_parameters={**ROPE, "rope_type": kind})) is None
    assert rotation_border(config(rope_parameters=None)) is None
    assert rotation_border(transformers.LlamaConfig()) is None
    assert rotation_border(transformers.GPT2Config()) is None
