"""Greedy decoding that knows the answer makes plain greedy decoding's tokens, for every family of models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import TEMPLATE, read_rows
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from aligner import models
from aligner.demo import embedded_model
from aligner.inference.corrector import CorrectionRequest, Corrector, Settings
from aligner.inference.greedy import Cost, Decoder, DecoderRow, forward
from aligner.inference.row_cache import RowCache
from aligner.inference.sampling import Sampling
from aligner.inference.trials import supports_drafts, takes_padding
from aligner.records import UserError

FREE = Cost((1, 128), (1.0, 1.1))  # drafts cost nothing: many tokens are verified, and many are wrong
EOS, MOST = 2, 40
COMMON = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "head_dim": 8}
FAMILIES = {
    "llama": {}, "mistral": {"sliding_window": 8}, "qwen2": {}, "qwen3": {"head_dim": 8}, "gemma": {"head_dim": 8},
    "gemma2": SLIDING, "gemma3_text": SLIDING, "phi3": {"sliding_window": None}, "gpt_neox": {}, "gpt2": {}, "opt": {"ffn_dim": 48},
}  # fmt: skip
FALLING_BACK = {"bloom": {}, "mamba": {"state_size": 8}}


def model_of(family: str) -> torch.nn.Module:
    """A random model with sharp logits."""
    torch.manual_seed(0)
    own = {**FAMILIES, **FALLING_BACK}[family]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **COMMON, **own)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


def plain(model, prompt: list[int], most: int = MOST) -> list[int]:
    config = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=EOS, pad_token_id=0)
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :].tolist()


def decoded(decoder: Decoder, prompts: list[list[int]], answers: list[list[int]], batch_size: int) -> list[list[int]]:
    rows = [
        DecoderRow(prompt, answer, MOST, place)
        for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    made = {row.index: row.output for row in decoder.decode(rows, batch_size)}
    return [made[place] for place in range(len(rows))]


def prompts_of(lengths: tuple[int, ...]) -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(3, 64, (length,)).tolist() for length in lengths]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_plain_greedy_decodings(family, batch_size):
    model, prompts = model_of(family), prompts_of((9, 20, 14, 5, 11))
    assert supports_drafts(model)
    expected = [plain(model, prompt) for prompt in prompts]
    wrong_in_places = [[((t + 1) % 64 if i % 5 == 4 else t) for i, t in enumerate(e)] for e in expected]
    assert decoded(Decoder(model, EOS, FREE), prompts, wrong_in_places, batch_size) == expected
    assert decoded(Decoder(model, EOS, FREE), prompts, [p[::-1] for p in prompts], batch_size) == expected


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_cache_that_grows_and_rows_that_reach_the_models_end(batch_size, monkeypatch):
    monkeypatch.setattr("aligner.inference.row_cache.ROOM", 16)
    model, prompts = model_of("gpt2"), prompts_of((9, 100, 14, 120, 5))  # of 128 learned positions
    room = [min(MOST, 128 - len(prompt)) for prompt in prompts]
    expected = [plain(model, prompt, most) for prompt, most in zip(prompts, room, strict=True)]
    rows = [DecoderRow(p, e, most, i) for i, (p, e, most) in enumerate(zip(prompts, expected, room, strict=True))]
    made = {row.index: row.output for row in Decoder(model, EOS, FREE).decode(rows, batch_size)}
    assert [made[i] for i in range(5)] == expected


def test_measuring_stays_within_the_models_positions():
    decoder, prompts = Decoder(model_of("gpt2"), EOS), prompts_of((9,))
    assert [len(row.output) for row in decoder.decode([DecoderRow(prompts[0], prompts[0], 5)], 1)] == [5]
    assert decoder.cost.tokens[-1] == 64, "half of 128 positions"


def test_the_drafts_that_are_right_save_their_passes():
    model, prompts = model_of("llama"), prompts_of((9, 20, 14))
    expected = [plain(model, prompt) for prompt in prompts]
    knowing, ignorant = Decoder(model, EOS, FREE), Decoder(model, EOS, Cost((1, 128), (1.0, 128.0)))
    assert decoded(knowing, prompts, expected, 1) == decoded(ignorant, prompts, expected, 1) == expected
    tokens = sum(map(len, expected))
    assert knowing.tokens == ignorant.tokens == tokens
    assert ignorant.passes == tokens, "where verifying costs as much as decoding, a pass makes one token"
    assert knowing.passes <= 6, "forty tokens are at most one draft of 64, behind a pass over the prompt"


def test_end_of_text_is_drafted_too():
    model = model_of("llama")
    prompt, made = next((p, made) for p in prompts_of((9, 10, 11, 12)) if len(made := plain(model, p)) == MOST)
    last = made.index(made[20])
    decoder = Decoder(model, made[20], FREE)  # what comes there now ends a text
    [row] = decoder.decode([DecoderRow(prompt, made[: last + 1], MOST)], 1)
    assert row.output == made[: last + 1] and decoder.passes == 1


def test_a_row_never_has_more_tokens_than_it_may():
    model, prompts = model_of("llama"), prompts_of((9, 9))
    rows = [
        DecoderRow(prompts[0], plain(model, prompts[0]), 5, 0),
        DecoderRow(prompts[1], plain(model, prompts[1]), 1, 1),
    ]
    assert {row.index: len(row.output) for row in Decoder(model, EOS, FREE).decode(rows, 2)} == {0: 5, 1: 1}


def test_rotations_that_depend_on_the_longest_row_are_known_by_name():
    model = model_of("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    assert not supports_drafts(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FALLING_BACK)
def test_a_model_that_keeps_something_else_is_found_out(family, dtype):
    assert not supports_drafts(model_of(family).to(dtype))


def test_one_text_that_is_all_rounding_condemns_no_model(monkeypatch):
    """As measured on an Aligner in 16 bit: logits that differ by 63 % of their spread, with transformers' own cache too, for one
    text of three."""
    import aligner.inference.trials as trials

    agree, seen = trials._agree, []

    def disturbed(*logits):
        seen.append(logits)
        return len(seen) != 1 and agree(*logits)

    monkeypatch.setattr(trials, "_agree", disturbed)
    assert supports_drafts(model_of("llama")) and len(seen) == 3


def test_rounding_is_no_fault_of_padding_either():
    """The embedded model in 16 bit: padding moves the logits behind one text of three by 17 %, and that would cost every batch."""
    for dtype in (torch.bfloat16, torch.float32):
        assert takes_padding(models.load_model(str(embedded_model()), dtype).eval(), 2)


def test_rounding_is_no_fault_of_the_cache():
    """The embedded model's weights in 16 bit: the same sums in two pieces differ by a tenth, with transformers' own cache too."""
    model = models.load_model(str(embedded_model()), torch.bfloat16).eval()
    assert supports_drafts(model)


def test_rows_of_unequal_length_do_not_see_each_other_or_what_was_dropped():
    model, (short, long) = model_of("llama"), prompts_of((4, 11))
    cache = RowCache()
    forward(model, cache, 0, [short, long], [0, 0], 1)
    forward(model, cache, 0, [[60, 61, 62], [63]], [4, 11], 1)  # as drafts that turn out wrong
    found = forward(model, cache, 0, [[7], [8, 9]], [4, 11], 2)
    alone = [model(torch.tensor([row])).logits[0] for row in ([*short, 7], [*long, 8, 9])]
    assert torch.allclose(found[0, 1], alone[0][-1], atol=1e-5)
    assert torch.allclose(found[1], alone[1][-2:], atol=1e-5)


def test_a_row_keeps_its_keys_when_it_moves():
    model, (first, second) = model_of("llama"), prompts_of((6, 9))
    cache = RowCache()
    forward(model, cache, 0, [first, second], [0, 0], 1)
    cache.move(1, 0)
    found = forward(model, cache, 0, [[7]], [9], 1)[0, 0]
    assert torch.allclose(found, model(torch.tensor([[*second, 7]])).logits[0, -1], atol=1e-5)


def test_cost_lies_on_straight_lines_between_and_beyond_what_was_measured():
    cost = Cost((1, 2, 4), (10.0, 12.0, 20.0))
    assert [float(cost(n)) for n in (1, 2, 3, 4, 8)] == [10, 12, 16, 20, 36]


@pytest.fixture(scope="module")
def corrector(tiny_model) -> Corrector:
    return Corrector.load(str(tiny_model), "correction", Settings(batch_size=3, max_new_tokens=12))


def test_corrections_come_in_order_with_their_figures(corrector):
    pairs = [(row["question"], row["answer"]) for row in read_rows(TEMPLATE, 7)]
    together = corrector.correct(pairs)
    assert together == [corrector.correct([pair])[0] for pair in pairs]
    assert all(not made.finished and made.edits.identical is False for made in together)
    assert together[0].edits.length_ratio == pytest.approx(len(together[0].text) / len(pairs[0][1]))


def test_a_finished_correction_is_weighed_against_its_answer(corrector):
    """By the sums of log-probabilities over plain forward passes; a copy is worth its answer, what did not end has none."""
    weighed = replace(corrector, settings=replace(corrector.settings, weighed=True))
    eos, prompt, answer = corrector.encoder.eos, [5, 6, 7, 8], [9, 10, 11]

    def total(tokens: list[int]) -> float:
        logits = corrector.model(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
        return sum(logits[3 + place, token].item() for place, token in enumerate(tokens))

    def ahead(output: list[int]) -> float | None:
        return weighed.corrected(DecoderRow(prompt, [*answer, eos], 9, output=output), "x").nats_ahead

    assert ahead([20, 21, eos]) == pytest.approx(total([20, 21, eos]) - total([*answer, eos]), abs=1e-4)
    assert ahead([*answer, eos]) == 0.0 and ahead([20, 21, 22]) is None
    assert corrector.corrected(DecoderRow(prompt, [*answer, eos], 9, output=[20, eos]), "x").nats_ahead is None


def test_sampling_is_transformers_own_and_seeded(tiny_model):
    pairs = [(row["question"], row["answer"]) for row in read_rows(TEMPLATE, 4)]

    def texts(seed: int) -> list[str]:
        settings = Settings(2, 12, Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=seed))
        return [made.text for made in Corrector.load(str(tiny_model), "correction", settings).correct(pairs)]

    assert texts(1) == texts(1) != texts(2)


def test_decoded_by_transformers_a_row_with_little_room_does_not_cut_its_neighbours(corrector):
    plain_one = replace(corrector, decoder=None, settings=Settings(batch_size=3, max_new_tokens=12))
    rows = [
        DecoderRow([5] * length, [0], most, place) for place, (length, most) in enumerate([(9, 12), (9, 3), (7, 12)])
    ]
    assert {row.index: len(row.output) for row in plain_one.decoded(iter(rows))} == {0: 12, 1: 3, 2: 12}


def test_the_models_own_generation_settings_are_not_used(tiny_model, corrector, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"repetition_penalty": 9.0, "eos_token_id": 0}')
    penalised = Corrector.load(str(folder), "correction", corrector.settings)
    pairs = [(row["question"], row["answer"]) for row in read_rows(TEMPLATE, 3)]
    assert replace(penalised, decoder=None).correct(pairs) == corrector.correct(pairs)


def test_the_papers_values_are_the_preset():
    assert (Sampling().temperature, Sampling().top_k, Sampling().top_p) == (0.3, 10, 0.95)


def test_feedback_needs_a_slot_and_reaches_the_prompt(tiny_model, corrector, monkeypatch):
    pair = ("Why?", "Because.")
    with pytest.raises(UserError, match="'correction' has no slot for feedback"):
        corrector.correct([pair], feedback="empathy")
    with_slot = Corrector.load(str(tiny_model), "feedback", Settings(1, 12))
    read = list[str]()
    decode = Decoder.decode

    def reading(decoder, rows, batch_size):
        rows = list(rows)
        read.extend(with_slot.encoder.tokenizer.decode(row.prompt) for row in rows)
        return decode(decoder, rows, batch_size)

    monkeypatch.setattr(Decoder, "decode", reading)
    for feedback in ("harmless", "in rhymes"):
        with_slot.correct([pair], feedback=feedback)
    assert f"##Feedback: {with_slot.objectives['harmless']}\n" in read[0] and "##Feedback: in rhymes\n" in read[1]


def test_a_prompt_that_is_too_long_is_refused_and_the_others_go_on(corrector):
    pairs = [("Why?", "A."), ("Why?", "word " * 3000), ("Who?", "B.")]
    outcomes = dict(corrector.stream([CorrectionRequest(*pair) for pair in pairs]))
    assert isinstance(outcomes[1], UserError) and "2,048 positions" in str(outcomes[1])
    assert outcomes[0].text and outcomes[2].text
    with pytest.raises(UserError, match="request 2: its prompt has"):
        corrector.correct([("Why?", "A."), ("Why?", "word " * 3000)])


LIMITS = {
    "gpt2": "n_positions", "ctrl": "n_positions", "codegen": "n_positions", "mpt": "max_seq_len", "dbrx": "max_seq_len",
    "opt": "max_position_embeddings", "xlm": "max_position_embeddings", "whisper": "max_target_positions",
    "rwkv": "context_length", "gpt_neo": "max_position_embeddings", "prophetnet": "max_position_embeddings",
}  # fmt: skip


@pytest.mark.parametrize("kind", LIMITS)
def test_a_familys_limit_is_known_by_its_own_name(kind):
    from families import tiny_config

    assert models.positions_of(tiny_config(kind, **{LIMITS[kind]: 100})) == 100


@pytest.mark.parametrize("name", models.POSITIONS)
def test_a_limit_is_known_by_any_of_its_names_also_inside_a_wrapper(name):
    inner = PreTrainedConfig(**{name: 100})
    wrapper = PreTrainedConfig()
    wrapper.get_text_config = lambda **_: inner
    assert models.positions_of(inner) == models.positions_of(wrapper) == 100
    assert models.positions_of(PreTrainedConfig(**{name: None})) is None
    assert models.positions_of(PreTrainedConfig(**{name: -1})) is None  # as some write that there is none


@pytest.mark.parametrize("kind", ["gpt2", "mpt"])
def test_a_row_that_the_model_cannot_read_is_that_rows_error_and_others_are_corrected(
    kind, bpe_folder, tmp_path, monkeypatch
):
    """As with a limit that no known name tells."""
    from families import save_tiny

    name = {"gpt2": "n_positions", "mpt": "max_seq_len"}[kind]
    save_tiny(kind, bpe_folder, tmp_path / "model", **{name: 100})
    assert models.positions_of(AutoConfig.from_pretrained(tmp_path / "model")) == 100
    monkeypatch.setattr(models, "POSITIONS", ())
    corrector = Corrector.load(str(tmp_path / "model"), "correction", Settings(3, 8), dtype="float32")

    def tokens(question: str) -> int:
        [(prompt, _, _)] = corrector.encoder.pairs([corrector.template.render(question, "b")], ["b"])
        return len(prompt)

    question = next("7" * n for n in range(200) if tokens("7" * n) == 101)
    requests = [CorrectionRequest(*pair) for pair in (("a", "b"), (question, "b"), ("c", "d"))]
    outcomes = dict(corrector.stream(requests))
    assert isinstance(outcomes[1], UserError) and "the model fails on its 101 tokens (" in str(outcomes[1])
    alone = [corrector.correct([request])[0].text for request in (requests[0], requests[2])]
    assert [outcomes[0].text, outcomes[2].text] == alone
