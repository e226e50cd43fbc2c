"""`aligner plan`: memory, updates, time, and what makes a run fit; before it costs anything."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT, TEMPLATE
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2
from transformers import LlamaConfig

from aligner.cli import main as aligner
from aligner.records import UserError
from aligner.training.flags import parse
from aligner.training.planning.memory import (
    Size,
    _peak,
    equal_layers,
    model_states,
    peak_activations,
    size_of,
    weightless,
)
from aligner.training.planning.memory_plan import Hardware, need_of, settle_recomputing, smallest_change, with_flags
from aligner.training.planning.report import PlanRequest, flops_per_token, report, resource_claim
from aligner.training.planning.shapes import PUBLISHED, Shape, shape_of_model

SIZE = Size(6_738_415_616, 131_072_000)
SCALES = {
    "gemma-2b": 2_506_172_416,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
}


def plan(capsys, *flags: object) -> str:
    assert aligner(["plan", *map(str, flags)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (8, 1), (32, 4)])
def test_model_states_agree_with_deepspeeds_estimator(gpus, nodes):
    each = {"num_gpus_per_node": gpus // nodes, "num_nodes": nodes}
    for offload, moved in (("none", (False, False)), ("optimizer", (True, False)), ("all", (True, True))):
        cpu, gpu, _ = zero3(
            SIZE.parameters, SIZE.largest_layer, **each, cpu_offload=moved[0], cpu_offload_params=moved[1]
        )
        ours = model_states(SIZE, True, 3, offload, gpus, nodes)
        assert ours.gpu == pytest.approx(gpu, rel=1e-9) and ours.cpu == pytest.approx(cpu, rel=1e-9)
    for offload in ("none", "optimizer"):
        cpu, gpu = zero2(SIZE.parameters, **each, cpu_offload=offload != "none")
        ours = model_states(SIZE, True, 2, offload, gpus, nodes)
        assert ours.gpu == pytest.approx(gpu, rel=1e-9) and ours.cpu == pytest.approx(cpu, rel=1e-9)


def test_a_higher_stage_never_needs_more():
    for half in (True, False):
        needs = [model_states(SIZE, half, stage, "none", 8, 1).gpu for stage in (0, 1, 2, 3)]
        assert needs == sorted(needs, reverse=True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_shapes_have_the_published_sizes(name):
    file = next(
        f for f in (ROOT / "configs").glob("*.yaml") if yaml.safe_load(f.read_text()).get("model_name_or_path") == name
    )
    assert size_of(shape_of_model(name)).parameters == SCALES[file.stem]


MEASURE = """
import sys, threading, time, torch
from transformers import AutoModelForCausalLM, LlamaConfig
from aligner.training.engine.objective import Objective
from aligner.training.engine.recompute import recompute_activations
from aligner.training.planning.memory import worst_batch
rows, length, dtype = int(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[4])
model = AutoModelForCausalLM.from_config(LlamaConfig(**eval(sys.argv[5])), dtype=dtype).train()
recompute_activations(model, sys.argv[3])
for p in model.parameters(): p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
objective = Objective(model, True)
def step(rows, length): objective(worst_batch(rows, length, True)).backward()
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
step(1, 8)
start, peak, done = resident(), [0], []
def watch():
    while not done: peak[0] = max(peak[0], resident()); time.sleep(0.0005)
watcher = threading.Thread(target=watch); watcher.start()
step(rows, length); done.append(1); watcher.join()
print(peak[0] - start)
"""


SMALL = {
    "vocab_size": 16000,
    "hidden_size": 384,
    "intermediate_size": 1056,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
}
LARGE = {"vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4,
         "num_attention_heads": 16}  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "rows", "length", "recomputed", "dtype", "tolerance"),
    [
        pytest.param(SMALL, 4, 512, "all", "float32", 0.1, marks=pytest.mark.slow),
        pytest.param(SMALL, 4, 512, "none", "float32", 0.1, marks=pytest.mark.slow),
        pytest.param(LARGE, 4, 512, "all", "bfloat16", 0.2, marks=pytest.mark.slow),
        pytest.param(LARGE, 4, 512, "none", "float32", 0.2, marks=pytest.mark.slow),
        pytest.param(LARGE, 4, 512, "all", "float32", 0.2, marks=pytest.mark.slow),
        pytest.param(LARGE, 2, 1024, "none", "bfloat16", 0.2, marks=pytest.mark.slow),
    ],
)
def test_activations_agree_with_a_measured_peak(sizes, rows, length, recomputed, dtype, tolerance):
    command = [sys.executable, "-c", MEASURE, str(rows), str(length), recomputed, dtype, repr(sizes)]
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)}  # freed memory goes back at once
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    ours = peak_activations(Shape(LlamaConfig(**sizes)), rows, length, recomputed, getattr(torch, dtype))
    assert ours == pytest.approx(int(done.stdout), rel=tolerance)


def test_gradients_are_handed_on_one_by_one():
    """Of seven billion gradients in 16 bit, 13.5 GB, the peak of a short row has the head's twice and little more."""
    head = 32_000 * 4_096
    peak = peak_activations(shape_of_model("meta-llama/Llama-2-7b-hf"), 1, 8, "all", torch.bfloat16)
    assert 6 * head < peak < 8 * head


@pytest.mark.parametrize(("layers", "recomputed"), [(20, "none"), (23, "some")])
def test_of_many_equal_layers_a_few_tell_the_peak_of_all(layers, recomputed):
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 300}
    shape = Shape(LlamaConfig(num_hidden_layers=layers, **small))
    whole = weightless(shape, torch.bfloat16)
    assert len(equal_layers(whole)) == layers
    assert peak_activations(shape, 2, 64, recomputed, torch.bfloat16) == _peak(whole, 2, 64, recomputed, None)
    whole.model.layers[3].self_attn.scaling *= 2
    assert not equal_layers(whole), "one that differs in anything is no equal layer"


@pytest.mark.parametrize(
    "name", ["gemma-2b", "llama-2-7b", pytest.param("llama-2-13b", marks=pytest.mark.slow), "llama-2-70b"]
)
@pytest.mark.parametrize(("gpus", "gigabytes"), [(8, 80), (1, 24)])
def test_every_published_scale_is_planned_and_what_does_not_fit_is_made_to(name, gpus, gigabytes):
    config = parse(["--config", str(ROOT / f"configs/{name}.yaml")])
    shape = shape_of_model(config.model.model_name_or_path)
    size, hardware = size_of(shape), Hardware(gpus, gpus, int(gigabytes * 1e9))
    fits = need_of(config, shape, size, hardware).fits(hardware)
    assert fits == (gpus == 8 and name != "llama-2-70b")
    if not fits:
        change = smallest_change(config, shape, size, hardware)
        assert need_of(with_flags(config, change), shape, size, hardware).fits(hardware)


def test_the_change_is_the_smallest():
    config = parse(["--config", str(ROOT / "configs/llama-2-7b.yaml"), "--gradient_checkpointing", "False"])
    shape = shape_of_model(config.model.model_name_or_path)
    for value in ("some", "True"):
        enough = need_of(with_flags(config, {"gradient_checkpointing": value}), shape, SIZE, Hardware(8, 8)).gpu
        assert smallest_change(config, shape, SIZE, Hardware(8, 8, enough)) == {"gradient_checkpointing": value}
    assert smallest_change(config, shape, SIZE, Hardware(8, 8, 1)) is None


def test_too_little_cpu_memory_asks_for_more_gpus():
    config = parse(["--config", str(ROOT / "configs/llama-2-70b.yaml")])
    shape = shape_of_model(config.model.model_name_or_path)
    size = size_of(shape)
    assert smallest_change(config, shape, size, Hardware(8, 8, int(80e9), int(1e12))) == {"gpus": 24}


@pytest.mark.slow
def test_a_plan_on_the_cpu_counts_the_process_and_what_malloc_keeps(capsys):
    """The rank of the first command's recipe; the whole command takes more (aligner/training/README.md)."""
    flags = ["--config", ROOT / "configs/embedded.yaml", "--model_name_or_path", "embedded", "--device", "cpu"]
    said = plan(capsys, *flags)
    [each, node] = re.findall(r"(?:on each rank \(CPU\)|CPU memory of each node) +([\d.]+) GB", said)
    assert 7.0 <= float(each) <= 8.0 and node == each and "NCCL" not in said
    assert aligner(["plan", *map(str, flags), "--gpus", "2", "--cpu_memory", "8"]) == 1
    capsys.readouterr()


def test_the_paper_s_resource_claim():
    assert resource_claim(7, [7, 70])[1:] == [
        "  upstream 7B: DPO 1.125x, RLHF 2.25x",
        "  upstream 70B: DPO 11.25x, RLHF 22.5x",
    ]


def test_updates_of_the_paper_s_recipe(capsys):
    said = plan(capsys, "--config", ROOT / "configs/llama-2-7b.yaml", "--gpus", 8, "--identity_proportion", 0.2)
    assert (
        "identity: 8 ranks x 4 rows x 8 accumulation = 256 rows per update; 10,000 rows x 3 epochs = 120 updates"
        in said
    )
    assert "50,000 rows x 3 epochs = 588 updates" in said  # what the paper's numbers give (50K x 3 / 256, by epoch)
    assert "it fits" in said and "time: give --tokens_per_second, --tflops or --measured DIR" in said


def test_time_from_a_stated_throughput(capsys):
    flags = ["--config", ROOT / "configs/llama-2-7b.yaml", "--gpus", 8, "--rows", 1200, "--tokens_per_row", 100]
    assert "0 million tokens at 100 tokens/s (stated): 1.0 hours" in plan(capsys, *flags, "--tokens_per_second", 100)
    shape = shape_of_model("meta-llama/Llama-2-7b-hf")
    assert flops_per_token(SIZE, shape, 0, False) == 6 * SIZE.parameters
    assert "(stated: 125 TFLOP/s a GPU)" in plan(capsys, *flags, "--tflops", 125)


def test_rows_tokens_and_throughput_from_data_and_an_earlier_run(capsys, tiny_model, tmp_path):
    (tmp_path / "train_log.jsonl").write_text("".join(
        json.dumps({"update": n, "tokens_per_second": speed}) + "\n" for n, speed in enumerate((10, 1000, 30), 1)))  # fmt: skip
    said = plan(capsys, "--model_name_or_path", tiny_model, "--train_datasets", TEMPLATE, "--max_length", 512,
                "--measured", tmp_path)  # fmt: skip
    assert "120 rows x 3 epochs" in said and f"30 tokens/s (median of 3 updates in {tmp_path})" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--model_name_or_path is missing"),
        (["--confg", "x"], "Did you mean 'config'?"),
        (["--model_name_or_path", "google/gemma-2b", "--measured", "nowhere"], "nowhere"),
    ],
)
def test_a_wrong_plan_is_one_line(flags, message, capsys):
    assert aligner(["plan", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_request_has_no_field_without_a_flag():
    with pytest.raises(UserError, match="--model_name_or_path is missing"):
        report([], PlanRequest())


@pytest.mark.parametrize("flag", ["gpu_memory nan", "gpu_memory 0", "gpus_per_node 0", "rows -3", "tflops 0", "cpu_memory -1",
                                  "tokens_per_second inf", "tokens_per_row 0", "upstream 7 0"])  # fmt: skip
def test_a_number_that_cannot_be_meant_is_refused(flag, capsys):
    assert aligner(["plan", "--model_name_or_path", "google/gemma-2b", *f"--{flag}".split()]) == 2
    assert f"--{flag.split()[0]} is" in capsys.readouterr().err


def test_what_does_not_fit_ends_with_status_1(capsys):
    assert aligner(["plan", "--config", str(ROOT / "configs/llama-2-7b.yaml"), "--gpu_memory", "24"]) == 1
    assert "it does not fit. It does with --offload optimizer" in capsys.readouterr().out


PAPER = {  # the paper's table 22 (70B: table 18 of its first version): epochs, rows, rows of an update
    "gemma-2b": (3, 4, 256), "llama-2-7b": (3, 4, 256), "llama-2-13b": (3, 4, 256), "llama-2-70b": (4, 2, 128),
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_every_scale_s_configuration_is_the_paper_s(name):
    config = parse(["--config", str(ROOT / f"configs/{name}.yaml")])
    o = config.optimization
    assert (o.epochs, o.per_device_train_batch_size, o.records_per_update) == PAPER[name]
    assert (o.lr, o.lr_scheduler_type, o.lr_warmup_ratio, o.weight_decay, o.seed) == (2e-5, "cosine", 0.03, 0.0, 42)
    assert (o.bf16, o.tf32, config.recomputed, o.loss_reduction) == (True, True, "all", "micro_batch")
    assert (config.model.max_length, config.launch.zero_stage, config.launch.offload) == (2048, 3, "none")
    assert config.model.model_name_or_path in PUBLISHED and o.identity_proportion == 0


def test_auto_recomputes_no_more_than_the_memory_asks_for():
    """Llama-2-7B on eight GPUs: each choice where the plan fills nine tenths of the GPU with it, and not before."""
    shape = shape_of_model("meta-llama/Llama-2-7b-hf")
    config = parse(["--model_name_or_path", "meta-llama/Llama-2-7b-hf"])
    assert config.recomputed == "auto"
    needs = {
        value: need_of(with_flags(config, {"gradient_checkpointing": value}), shape, SIZE, Hardware(8, 8)).gpu
        for value in ("False", "some", "True")
    }
    assert needs["False"] > needs["some"] > needs["True"]
    for value, room in (("False", needs["False"]), ("some", needs["False"] - 1e9), ("True", needs["some"] - 1e9)):
        settled = settle_recomputing(config, shape, SIZE, Hardware(8, 8, int(room / 0.9) + 1))
        assert settled.optimization.gradient_checkpointing == value
    assert settle_recomputing(config, shape, SIZE, Hardware(8, 8)).recomputed == "all"


@pytest.mark.parametrize(
    ("recomputing", "rows", "stage", "held", "reserved"),
    [("True", 4, 3, 58.4, 56.6), ("True", 4, 1, 60.8, 59.0), ("False", 1, 1, 63.5, 61.7)],
)
def test_the_plan_covers_what_an_h100_held_and_not_much_more(recomputing, rows, stage, held, reserved):
    """Gemma-2B's shape, rows of 2,048 tokens; gigabytes of the device and of torch's allocator (tests/acceptance/README.md)."""
    flags = ["--zero_stage", stage, "--bf16", True, "--gradient_checkpointing", recomputing]
    config = parse([*map(str, flags), "--per_device_train_batch_size", str(rows), "--max_length", "2048"])
    shape = shape_of_model("google/gemma-2b")
    need = need_of(config, shape, size_of(shape), Hardware(1, 1)).gpu / 1e9
    assert held <= need <= 1.25 * reserved
