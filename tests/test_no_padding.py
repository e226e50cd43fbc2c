"""First equal, then fast: flattened records and the head on learned places alone give the plain padded gradient."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import TEMPLATE, read_rows
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from aligner.demo import embedded_model
from aligner.encoder import Encoder
from aligner.prompts import CORRECTION
from aligner.records import Correction, Origin
from aligner.training.datasets.run_prompts import RunPrompts
from aligner.training.datasets.supervised import Tokens, tokenise
from aligner.training.engine import attention, head_loss
from aligner.training.engine.attention import FAMILIES, is_listed, segment_attention, supports
from aligner.training.engine.batching import Layout, Segments, collate, micro_batches, row_weights
from aligner.training.engine.head_loss import weighted_nll_of_hidden
from aligner.training.engine.loss import weighted_nll
from aligner.training.engine.objective import Objective
from aligner.training.engine.recompute import checkpointed_layers, recompute_activations

SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "mistral": transformers.MistralConfig(**GROUPED, sliding_window=5),
    "qwen2": transformers.Qwen2Config(
        **SMALL, num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": transformers.Qwen3Config(**GROUPED),
    "gemma": transformers.GemmaConfig(**{**GROUPED, "num_key_value_heads": 1}),
    "gemma2": transformers.Gemma2Config(
        **GROUPED, sliding_window=5, attn_logit_softcapping=3.0, final_logit_softcapping=2.0
    ),
    "gemma3_text": transformers.Gemma3TextConfig(**GROUPED, sliding_window=5),
    "gpt_neox": transformers.GPTNeoXConfig(**SMALL),
    "opt": transformers.OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=64, num_hidden_layers=3, num_attention_heads=4, word_embed_proj_dim=16,
        max_position_embeddings=64, dropout=0.0,
    ),
}  # fmt: skip


def rows() -> list[Tokens]:
    draw = np.random.default_rng(1)
    lengths = [(3, 4), (1, 1), (9, 8), (6, 2), (2, 11)]
    return [
        Tokens(draw.integers(1, 97, p + t).astype(np.int32), p, Origin("f", n), False, False)
        for n, (p, t) in enumerate(lengths, 1)
    ]


def gradient(model, value: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("reduction", ["micro_batch", "token"])
@pytest.mark.parametrize("family", CONFIGS)
def test_loss_and_gradient_equal_the_padded_model_s(family, reduction):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], attn_implementation="eager").train()
    weights = row_weights([row.target_length for row in rows()], 2, reduction)
    plain = Objective(model, flat=False)(collate(rows(), weights, Layout(False, 8, 100, 0)))
    plain_gradient = gradient(model, plain)
    ours = Objective(model, flat=True)(collate(rows(), weights, Layout(True, 8, 100, 0)))
    ours_gradient = gradient(model, ours)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    assert (ours_gradient - plain_gradient).norm() / plain_gradient.norm() < 1e-6


@pytest.mark.parametrize("window", [None, 5])
def test_capped_scores_in_one_flex_attention_equal_those_record_by_record(window):
    """Off by default, for it has not run on a GPU; on a CPU torch has its forward pass alone."""
    torch.manual_seed(0)
    lengths = [len(row.ids) for row in rows()]
    starts = np.cumsum([0, *lengths])
    segments = Segments(tuple(itertools.pairwise(starts.tolist())), torch.from_numpy(starts.astype(np.int32)))
    q, k, v = torch.randn(1, 4, starts[-1], 16), *torch.randn(2, 1, 2, starts[-1], 16)
    expected, _ = segment_attention(
        torch.nn.Module(), q, k, v, None, segments=segments, scaling=0.3, sliding_window=window, softcap=2.0
    )
    ours = attention._flex(q, k, v, segments, 0.3, window, 2.0)
    assert not attention.uses_untried() and ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-6


def test_wide_heads_take_the_kernel_on_large_cards_and_elsewhere_on_request(monkeypatch):
    def takes(head: int, capability: tuple[int, int]) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        query = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device=None, shape=(1, 1, 1, head))
        return attention.has_varlen_kernel(query)  # type: ignore[arg-type]

    assert takes(256, (9, 0)) and takes(192, (8, 6)) and not takes(256, (8, 6)) and not takes(64, (7, 5))
    monkeypatch.setenv(attention.UNTRIED, "1")
    assert takes(256, (8, 6)) and not takes(256, (7, 5)) and not takes(264, (9, 0))


def test_every_listed_family_is_compared_and_others_are_padded():
    assert set(CONFIGS) == set(FAMILIES)
    assert all(is_listed(config) for config in CONFIGS.values())
    assert not is_listed(transformers.GPT2Config()) and not is_listed(transformers.BloomConfig())


def test_a_model_with_code_of_its_own_is_padded():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    assert supports(model)

    class Other(type(model)):
        """As a model that comes with --trust_remote_code."""

    assert not supports(Other(CONFIGS["llama"]))


@pytest.mark.parametrize(("layers", "count"), [("none", 0), ("some", 1), ("all", 3)])
def test_recomputing_activations_changes_nothing(layers, count):
    """Of three layers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).train()
    batch = collate(rows(), [1.0] * 5, Layout(True, 8, 100, 0))
    expected = gradient(model, Objective(model, True)(batch))
    recompute_activations(model, layers)
    assert sum(bool(layer.gradient_checkpointing) for layer in checkpointed_layers(model)) == count
    assert torch.equal(gradient(model, Objective(model, True)(batch)), expected)


def test_one_record_does_not_see_another():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    objective = Objective(model, True)
    alone = [objective(collate([row], [1.0], Layout(True, 1, 100, 0))).item() for row in rows()]
    together = objective(collate(rows(), [1.0] * 5, Layout(True, 5, 100, 0))).item()
    assert together == pytest.approx(sum(alone), rel=1e-6)


def test_what_the_attention_does_not_know_is_refused():
    q = torch.zeros(1, 2, 3, 4)
    segments = Segments(((0, 3),), torch.tensor([0, 3], dtype=torch.int32))
    with pytest.raises(NotImplementedError, match="s_aux"):
        segment_attention(torch.nn.Identity(), q, q, q, None, segments=segments, s_aux=torch.ones(2))
    with pytest.raises(NotImplementedError, match="a mask"):
        segment_attention(torch.nn.Identity(), q, q, q, torch.ones(1), segments=segments)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("workspace", [1, 97 * 4 * 3, 1 << 20])
def test_the_head_in_pieces_equals_the_head_at_once(softcap, bias, workspace, monkeypatch):
    """Pieces of one row, of three, and all eight at once."""
    monkeypatch.setattr(head_loss, "CPU_WORKSPACE", workspace)
    torch.manual_seed(0)
    hidden, head = torch.randn(8, 16, dtype=torch.float64), torch.randn(97, 16, dtype=torch.float64)
    offset = torch.randn(97, dtype=torch.float64) if bias else None
    targets, weights = torch.randint(0, 97, (8,)), torch.rand(8)
    inputs = [t.float().requires_grad_() for t in (hidden, head, offset) if t is not None]
    ours = weighted_nll_of_hidden(*inputs[:2], inputs[2] if bias else None, softcap, targets, weights)
    ours.backward()
    exact = [t.requires_grad_() for t in (hidden, head, offset) if t is not None]
    logits = F.linear(exact[0], exact[1], exact[2] if bias else None)
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    plain = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    plain.backward()
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for mine, theirs in zip(inputs, exact, strict=True):
        assert (mine.grad - theirs.grad).norm() / theirs.grad.norm() < 1e-6


def test_gradients_too_small_for_fp16_survive_until_the_loss_scaler_lifts_them():
    torch.manual_seed(0)
    hidden, head = torch.randn(8, 16), torch.randn(97, 16)
    targets, weights = torch.randint(0, 97, (8,)), torch.full((8,), 1e-7)
    half = [t.half().requires_grad_() for t in (hidden, head)]
    (weighted_nll_of_hidden(*half, None, None, targets, weights) * 2.0**16).backward()
    exact = [t.detach().double().requires_grad_() for t in half]
    nll = F.cross_entropy(F.linear(*exact), targets, reduction="none")
    ((nll * weights).sum() * 2.0**16).backward()
    for mine, theirs in zip(half, exact, strict=True):
        assert (mine.grad - theirs.grad).norm() / theirs.grad.norm() < 0.01


def test_sums_too_large_for_fp16_do_not_overflow():
    hidden, head = torch.full((2000, 4), 60.0), torch.zeros(9, 4)
    half = [t.half().requires_grad_() for t in (hidden, head)]
    weighted_nll_of_hidden(*half, None, None, torch.zeros(2000, dtype=torch.long), torch.full((2000,), 5e-4)).backward()
    assert half[1].grad[0].tolist() == pytest.approx([-60 * 8 / 9] * 4, rel=1e-2)


def test_evaluation_makes_no_gradient():
    hidden, head = torch.randn(4, 8), torch.randn(9, 8)
    with torch.no_grad():
        value = weighted_nll_of_hidden(hidden, head, None, None, torch.zeros(4, dtype=torch.long), torch.ones(4))
    plain = weighted_nll((hidden @ head.T)[None], torch.arange(4), torch.zeros(4, dtype=torch.long), torch.ones(4))
    assert value.item() == pytest.approx(plain.item(), rel=1e-6) and not value.requires_grad


def test_the_loss_s_memory_does_not_grow_with_the_prompt_and_stays_small_with_a_large_vocabulary():
    from torch._subclasses.fake_tensor import FakeTensorMode

    from aligner.training.planning.memory import _Live

    peaks = []
    with FakeTensorMode():
        for vocabulary, tokens in ((32_000, 800), (32_000, 3200), (262_144, 3200)):
            hidden = torch.zeros(tokens, 2048, dtype=torch.bfloat16, requires_grad=True)
            head = torch.zeros(vocabulary, 2048, dtype=torch.bfloat16, requires_grad=True)
            places, targets, weights = (
                torch.zeros(600, dtype=torch.long),
                torch.zeros(600, dtype=torch.long),
                torch.ones(600),
            )
            live = _Live([hidden, head, places, targets, weights])
            with live:
                weighted_nll_of_hidden(hidden[places], head, None, None, targets, weights)
            peaks.append(live.peak - 4 * head.numel())  # without the head's own gradient
    assert peaks[1] <= 1.02 * peaks[0] and peaks[2] < 512 << 20


class Reads(TorchDispatchMode):
    """Counts the operations that make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2"):
            self.found.append(name)
        return function(*arguments, **(keywords or {}))


def test_nothing_is_read_back_between_micro_batches():
    with Reads() as reads:
        torch.ones(1).item()
    assert reads.found == ["_local_scalar_dense"]  # it does see a reading
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).train()
    objective, weights = Objective(model, flat=True), row_weights([r.target_length for r in rows()], 2, "micro_batch")
    batches = micro_batches(rows(), np.arange(5), weights, Layout(True, 4, 16, 0), ranks=1, rank=0)
    assert len(batches) > 1
    loss = torch.zeros(())
    with Reads() as reads:
        for batch in batches:
            part = objective(batch.to(torch.device("cpu")))
            part.backward()
            loss += part.detach()
    assert not reads.found


def test_a_micro_batch_of_many_records_costs_what_its_tokens_cost():
    """Each record's attention is its own piece of the graph: the numbers moved grow with the tokens, not tokens x records."""

    def moved(records: int) -> int:
        q = torch.randn(1, 2, 16 * records, 8, requires_grad=True)
        starts = torch.arange(0, 16 * records + 1, 16, dtype=torch.int32)
        bounds = tuple((16 * n, 16 * n + 16) for n in range(records))
        module = torch.nn.Module()
        with Moved() as counted:
            segment_attention(module, q, q, q, None, segments=Segments(bounds, starts))[0].sum().backward()
        return counted.numbers

    assert moved(64) < 17 * moved(4)  # sixteen times as many tokens


class Moved(TorchDispatchMode):
    """Counts the numbers that operations write."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        parts = made if isinstance(made, tuple | list) else [made]
        self.numbers += sum(part.numel() for part in parts if isinstance(part, torch.Tensor))
        return made


@pytest.mark.slow
def test_on_real_weights_loss_and_gradient_are_as_near_to_double_precision_as_the_plain_ones(capsys):
    """The embedded model, whose activations are far larger than a random one's; four of the project's records."""
    folder = embedded_model()
    encoder = Encoder(AutoTokenizer.from_pretrained(folder))
    records = [Correction(**row) for row in read_rows(TEMPLATE, 4)]
    tokens, _ = tokenise(records, RunPrompts(CORRECTION), encoder, 512)
    weights = row_weights([row.target_length for row in tokens], 4, "token")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()

    def measured(flat: bool) -> tuple[float, torch.Tensor]:
        objective = Objective(model, flat)
        value = objective(collate(tokens, weights, Layout(flat, 4, 4096, 0)))
        result = value.item(), gradient(model, value).double()
        objective.set_flat(False)
        return result

    ours, plain = measured(True), measured(False)
    model.double()
    exact = measured(False)
    size = exact[1].norm()
    apart = (ours[1] - plain[1]).norm() / size
    errors = [(abs(loss / exact[0] - 1), float((grad - exact[1]).norm() / size)) for loss, grad in (ours, plain)]
    with capsys.disabled():
        print(
            f"\nreal weights: gradient {apart:.1e} from the plain one; loss and gradient from double precision: {errors}"
        )
    assert abs(ours[0] / plain[0] - 1) < 1e-6 and apart < 5e-6
    assert errors[0][0] < errors[1][0] + 1e-6 and errors[0][1] < 1.1 * errors[1][1]
