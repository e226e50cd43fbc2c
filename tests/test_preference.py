"""An upstream is trained on preferences by TRL: its rows are this project's ids, its folder is whole, its flags are checked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import save_llama
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from aligner.chat_prompt import question_prompt
from aligner.demo import embedded_model
from aligner.encoder import Encoder
from aligner.known_prompts import find_template
from aligner.records import Correction, Origin, UserError
from aligner.training import config_check
from aligner.training.config_check import check_packages
from aligner.training.flags import parse, to_flags
from aligner.training.preference.rows import training_rows
from aligner.training.preference.weights import check_weights
from aligner.training.stages import stage_data

RECORDS = [
    Correction("Who?", "<|im_end|> me", "Ada.", Origin("rows.json", 1)),
    Correction("What?", "This.", "This.", Origin("rows.json", 2)),
    Correction("Why?", "Because I say so.", "It rained.", Origin("rows.json", 3)),
    Correction("Why?", "", "It rained.", Origin("rows.json", 4)),
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(embedded_model()))


def rows_of(method: str, encoder: Encoder, records=RECORDS, max_length: int = 64, overlength: str = "cut"):
    prompt = question_prompt(encoder.tokenizer)
    return training_rows(method, records, prompt, encoder, max_length, overlength, batch=2, seed=0)


def test_the_correction_is_preferred_to_the_answer_after_the_ids_that_the_upstream_is_asked_with(encoder):
    rows, tally = rows_of("dpo", encoder)
    asked = encoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    assert rows[0]["prompt_ids"] == asked["input_ids"]
    decode = encoder.tokenizer.decode
    assert decode(rows[0]["chosen_ids"]) == "Ada.<|im_end|>"
    assert rows[0]["rejected_ids"].count(encoder.eos) == 1, "a special token's string in an answer is text"
    assert [decode(row["chosen_ids"]) for row in rows] == ["Ada.<|im_end|>", "It rained.<|im_end|>"]
    lines = "\n".join(tally.lines())
    assert "2 of 4 rows kept" in lines and "nothing to prefer (rows.json row 2)" in lines
    assert "no answer to prefer the correction to (rows.json row 4)" in lines


def test_what_is_too_long_is_cut_without_its_end_or_dropped_and_counted(encoder):
    room = len(rows_of("dpo", encoder)[0][1]["prompt_ids"]) + 2
    (row, _), tally = rows_of("dpo", encoder, max_length=room)
    assert len(row["chosen_ids"]) == len(row["rejected_ids"]) == 2 and encoder.eos not in row["rejected_ids"]
    assert tally.count(tally.CUT) == 2
    with pytest.raises(UserError, match=r"no row is left: 0 of 4 rows kept; .*longer than max_length"):
        rows_of("dpo", encoder, max_length=room, overlength="drop")
    with pytest.raises(UserError, match=r"rows.json row 1: has \d+ tokens and max_length is"):
        rows_of("dpo", encoder, max_length=room, overlength="error")


def test_kto_sees_both_sides_by_themselves_and_beside_each_that_of_another_row_of_its_micro_batch(encoder):
    rows, _ = rows_of("kto", encoder)
    assert sorted(row["label"] for row in rows) == [False, False, True, True]
    for start in (0, 2):
        first, second = rows[start : start + 2]
        assert first["KL_completion_ids"] == second["completion_ids"]
        assert second["KL_completion_ids"] == first["completion_ids"]


def test_a_reward_model_is_trained_on_what_it_will_be_shown_and_drawn_answers_have_each_question_once(encoder):
    (row, _), _ = rows_of("reward", encoder)
    (asked, other), tally = rows_of("rloo", encoder, [RECORDS[0], *RECORDS[2:]])
    shown = encoder.tokenizer(asked["prompt"] + "Ada.", add_special_tokens=False)["input_ids"]
    assert row["chosen_ids"] == shown
    assert other["prompt"].count("Why?") == 1 and tally.count("dropped: the question stands in an earlier row") == 1


def test_an_upstream_sees_no_answer(encoder):
    with pytest.raises(UserError, match="the prompt 'correction' shows one"):
        training_rows("dpo", RECORDS, find_template("correction"), encoder, 64, "cut", 2, 0)


def test_without_a_prompt_the_question_is_asked_in_the_bases_own_chat_template(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{"question": "Who?", "answer": "Me.", "correction": "Ada."}]))
    flags = ["--method", "dpo", "--train_datasets", str(tmp_path / "rows.json"), "--model_name_or_path", "embedded"]
    prompt = stage_data(parse(flags), "correction").prompts.correcting
    assert prompt.name == "question" and prompt.text.endswith(
        "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("flags", "finding"),
    [
        (["--beta", "0.2"], "--beta is not for --method sft: leave it out"),
        (["--method", "dpo", "--temperature", "1"], "--temperature is not for --method dpo"),
        (["--method", "kto", "--sft_weight", "1"], "--sft_weight is not for --method kto"),
        (["--method", "rloo", "--reward_model", "x", "--sft_weight", "1"], "--sft_weight is not for --method rloo"),
        (["--method", "dpo", "--sft_weight", "-1"], "--sft_weight is -1.0: it must be at least 1e-06"),
        (["--method", "dpo", "--beta", "-1"], "--beta is -1.0: it must be at least 0"),
        (["--method", "dpo", "--loss_reduction", "token"], "--loss_reduction is for --method sft: TRL, which trains dpo"),
        (["--method", "dpo", "--lora_rank", "4"], "--lora_rank is for --method sft"),
        (["--method", "dpo", "--eval_split_ratio", "0.1"], "--eval_split_ratio is for --method sft"),
        (["--method", "rloo"], "--method rloo needs --reward_model: train one with --method reward"),
        (["--method", "kto", "--per_device_train_batch_size", "1"], "must be at least 2"),
        (["--method", "grpo", "--reward_model", "x", "--num_generations", "1"], "--num_generations is 1: it must be at least 2"),
        (["--method", "reward", "--gradient_checkpointing", "some"], "some is for --method sft"),
    ],
)  # fmt: skip
def test_a_flag_that_the_method_does_not_read_is_refused(flags, finding):
    with pytest.raises(UserError, match=re.escape(finding)):
        parse(flags)


def test_without_the_package_one_line_names_the_remedy(monkeypatch):
    config = parse(["--method", "dpo"])
    monkeypatch.setattr(config_check, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("--method dpo needs the package trl: pip install 'trl>=1.16,<1.17'")):
        check_packages(config)


def test_the_flags_of_a_method_reach_the_ranks_and_decide_the_run():
    from aligner.training.config import fingerprint_fields

    config = parse(["--method", "rloo", "--reward_model", "scorer", "--beta", "0.02"])
    assert parse(to_flags(config)) == config
    assert fingerprint_fields(config)["beta"] == 0.02 and "beta" not in fingerprint_fields(parse([]))
    assert fingerprint_fields(parse(["--method", "dpo", "--sft_weight", "20"]))["sft_weight"] == 20


@pytest.fixture
def folders(bpe_folder, tmp_path):
    """A base, and the same with one tensor changed, as a training leaves it."""
    base, trained = save_llama(bpe_folder, tmp_path / "base"), save_llama(bpe_folder, tmp_path / "trained")
    return base, trained


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {key: value for key, value in {**tensors, name: tensor}.items() if value is not None}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_are_whole_and_changed_are_taken(folders):
    base, trained = folders
    change(trained, "model.norm.weight", torch.full((32,), 2.0))
    assert check_weights(trained, str(base), reward=False) == 1


@pytest.mark.parametrize(
    ("name", "tensor", "finding"),
    [
        ("model.norm.weight", None, "1 of 20 tensors are missing, model.norm.weight among them"),
        ("model.norm.weight", torch.ones(31), r"model.norm.weight is \[31\] and was \[32\]"),
        ("model.norm.weight", torch.full((32,), torch.nan), "no finite number: training diverged"),
        ("model.more", torch.ones(1), "it has model.more, which"),
        ("model.norm.weight", torch.ones(32), "training left all 20 tensors as they were"),
    ],
)
def test_weights_that_are_not_are_named(name, tensor, finding, folders):
    base, trained = folders
    change(trained, name, tensor)
    with pytest.raises(UserError, match=finding):
        check_weights(trained, str(base), reward=False)


def test_a_folder_without_weights_is_not_taken_for_a_model(folders):
    base, trained = folders
    (trained / "model.safetensors").unlink()  # what TRL leaves under ZeRO-3 without being told to gather
    with pytest.raises(UserError, match="20 of 20 tensors are missing"):
        check_weights(trained, str(base), reward=False)


def test_a_reward_model_has_a_head_that_scores(folders):
    base, trained = folders
    change(trained, "model.norm.weight", torch.full((32,), 2.0))
    with pytest.raises(UserError, match=r"score.weight, which scores, is missing"):
        check_weights(trained, str(base), reward=True)
    change(trained, "score.weight", torch.ones(1, 32))
    assert check_weights(trained, str(base), reward=True) == 1
