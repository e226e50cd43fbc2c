"""Flags and YAML: the original's names, one precedence, and errors that help."""

from __future__ import annotations

import types

import pytest
import yaml
from conftest import ROOT
from transformers import GemmaConfig, LlamaConfig

from aligner.records import UserError
from aligner.training.config import RunConfig
from aligner.training.engine.zero import deepspeed_config, zero3_limits
from aligner.training.flags import parse, parser, to_flags

ORIGINAL = (
    "--model_name_or_path m --max_length 2048 --trust_remote_code False --train_datasets correction-json::a b "
    "--eval_datasets c --epochs 3 --per_device_train_batch_size 4 --per_device_eval_batch_size 4 "
    "--gradient_accumulation_steps 8 --gradient_checkpointing --learning_rate 2e-5 --lr_scheduler_type cosine "
    "--lr_warmup_ratio 0.03 --weight_decay 0.0 --seed 42 --eval_strategy epoch --eval_interval 5 --need_eval "
    "--output_dir o --log_type wandb --log_dir l --log_project p --log_run_name n --zero_stage 3 --offload none "
    "--bf16 True --tf32 True --fp16 False --save_16bit --save_interval 7 --local_rank 0"
)


def test_the_originals_flags_keep_their_names_and_defaults():
    config, bare = parse(ORIGINAL.split()), parse([])
    assert config.data.train_datasets == ["correction-json::a", "b"]
    o, d = config.optimization, bare.optimization
    assert (o.bf16, o.tf32, o.fp16, config.output.save_16bit) == (True, True, False, True)
    assert config.recomputed == "all" and bare.recomputed == "auto", "the original's launcher recomputes every layer"
    names = "epochs per_device_train_batch_size gradient_accumulation_steps lr lr_scheduler_type lr_warmup_ratio weight_decay seed"
    for name in names.split():
        assert getattr(o, name) == getattr(d, name), name
    assert bare.model.max_length == 2048 and bare.launch.zero_stage == 3 and d.bf16 is None


@pytest.mark.parametrize(
    ("spelling", "layers"),
    [
        ("", "all"),
        ("True", "all"),
        ("true", "all"),
        ("some", "some"),
        ("no", "none"),
        ("False", "none"),
        ("auto", "auto"),
    ],
)
def test_which_layers_are_recomputed(spelling, layers):
    assert parse(["--gradient_checkpointing", *spelling.split()]).recomputed == layers


@pytest.mark.parametrize("spelling", ["--save_16bit False", "--save_16bit=no", "--no_save_16bit", "--no-save-16bit"])
def test_every_boolean_has_an_off_form(spelling):
    assert parse(spelling.split()).output.save_16bit is False
    assert parse(["--bf16", "False"]).optimization.bf16 is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epoch 3", "there is no flag '--epoch'. Did you mean 'epochs'?"),
        ("--learnig_rate 1", "Did you mean 'learning_rate'?"),
        ("--train_dataset x", "Did you mean 'train_datasets'?"),
        ("--bf16 Treu", "--bf16: Truthy value expected: got Treu"),
        ("--zero_stage 4", "invalid choice: 4"),
        ("--lr fast", "invalid float value: 'fast'"),
        ("--max_length", "expected one argument"),
        ("--epochs 0", "--epochs is 0: it must be at least 1"),
        ("--lr -1", "--lr is -1.0: it must be above 0"),
        ("--lr nan", "--lr is nan"),
        ("--identity_proportion 20", "must lie between 0 and 1"),
        ("--need_eval", "--need_eval needs --eval_datasets PATH or --eval_split_ratio SHARE"),
        ("--eval_datasets a --eval_split_ratio 0.1", "choose one"),
        ("--bf16 --fp16", "choose one"),
        ("--zero_stage 0 --offload optimizer", "--offload optimizer works at ZeRO stage 1, 2 or 3"),
        ("--zero_stage 2 --offload parameter", "--offload parameter works at ZeRO stage 3"),
        ("--launcher_args=--ssh_port=22", "needs --hostfile"),
        ("--hostfile h --gpus 2", "the hostfile's slots are the ranks"),
        ("--config nowhere.yaml", "nowhere.yaml: there is no such file"),
    ],
)
def test_a_wrong_flag_is_one_line_that_helps(flags, message):
    with pytest.raises(UserError) as caught:
        parse(flags.split())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_default_gives_way_to_yaml_and_yaml_to_a_flag(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 5\nlr: 1e-4\ntrain_datasets: [a, b]\ngradient_checkpointing: false\nhostfile:\n")
    config = parse(["--config", str(file), "--epochs", "7"])
    assert (config.optimization.epochs, config.optimization.lr, config.optimization.seed) == (7, 1e-4, 42)
    assert config.data.train_datasets == ["a", "b"] and config.recomputed == "none"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("leaning_rate: 1", "there is no key 'leaning_rate'. Did you mean 'learning_rate'?"),
        ("epochs: many", "run.yaml: argument --epochs: invalid int value: 'many'"),
        ("bf16: ja", "run.yaml: argument --bf16: Truthy value expected"),
        ("epochs: [1, 2]", "'epochs' takes one value"),
        ("- epochs", "must hold 'flag: value' lines"),
        ("epochs: [", "is not YAML"),
    ],
)
def test_a_wrong_yaml_file_is_named(content, message, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        parse(["--config", str(file)])
    assert message.replace(" / ", "/") in str(caught.value).replace("/--" + "no", "/--no")


def test_flags_made_from_a_configuration_parse_back_to_it():
    flags = [
        *ORIGINAL.replace("--local_rank 0", "").split(),
        "--no_save_16bit",
        "--identity_proportion",
        "0.2",
        "--seed",
        "1",
        "--hostfile",
        "hosts",
        "--launcher_args=--ssh_port=22",
    ]
    config = parse(flags)
    assert parse(to_flags(config)) == config


RUNS = sorted({*(ROOT / "configs").glob("*.yaml")} - {ROOT / "configs/objectives.yaml"})


@pytest.mark.parametrize("file", RUNS, ids=lambda f: f.name)
def test_every_shipped_configuration_parses(file):
    assert isinstance(parse(["--config", str(file)]), RunConfig)
    assert yaml.safe_load(file.read_text())


def test_help_names_every_flag_with_its_unit(capsys):
    from aligner.launch.launch import main

    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "bash scripts/sft-correction.sh" in text and "longest prompt plus correction, in tokens" in text


def test_deepspeeds_configuration_leaves_the_accumulation_to_us():
    config = parse(["--bf16", "--zero_stage", "3", "--offload", "all"])
    made = deepspeed_config(config.optimization, config.launch, LlamaConfig())
    assert made["gradient_accumulation_steps"] == 1 and made["gradient_clipping"] == 1.0
    assert (
        made["zero_optimization"]["offload_param"]
        == made["zero_optimization"]["offload_optimizer"]
        == {"device": "cpu"}
    )
    assert made["bf16"] == {"enabled": True} and made["data_types"] == {"grad_accum_dtype": "fp32"}
    half = parse(["--fp16", "--zero_stage", "1"])
    assert deepspeed_config(half.optimization, half.launch, LlamaConfig())["fp16"]["loss_scale"] == 0


def test_zero3_s_limits_fit_the_model():
    seven = zero3_limits(LlamaConfig())  # 7B: a layer is 202 million parameters, a matrix of it 45 million
    assert seven["stage3_prefetch_bucket_size"] == 4 * 4096**2 + 3 * 4096 * 11008
    assert seven["stage3_max_live_parameters"] == 1_000_000_000
    uneven = types.SimpleNamespace(hidden_size=64, vocab_size=100, intermediate_size=[128, 256], get_text_config=None)
    assert zero3_limits(uneven)["stage3_prefetch_bucket_size"] == 50_000_000
    large = zero3_limits(GemmaConfig(hidden_size=8192, vocab_size=256_000, intermediate_size=28_672))
    assert large["stage3_max_live_parameters"] > 8192 * 256_000


def test_help_shows_each_flag_in_one_spelling_and_both_are_read():
    import re

    shown = parser("usage").format_help()
    assert not re.findall(r"--[a-z]+-[a-z-]+", shown)
    assert "the same as --save_16bit False" in " ".join(shown.split())
    assert parse(["--max-length", "7"]) == parse(["--max_length", "7"])
    assert not parse(["--no_save_16bit"]).output.save_16bit
