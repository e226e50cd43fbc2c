"""LoRA: adapters alone are trained, exactly as PEFT in a plain loop trains them, and leave as a whole model and by themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, launch_program, save_llama
from disturbed import Run, goes_on
from plain_loop import plain_trajectory
from safetensors.torch import load_file
from test_exact_updates import base_flags, trajectory
from test_plan import MEASURE, SMALL
from transformers import AutoModelForCausalLM, LlamaConfig

from aligner.quantised import packing
from aligner.records import UserError
from aligner.training.checkpoint.export import export_state
from aligner.training.checkpoint.folder_writer import plan_folder
from aligner.training.checkpoint.resume import inspect_run
from aligner.training.config import fingerprint_fields
from aligner.training.distributed.hardware import resolved
from aligner.training.engine.objective import Objective
from aligner.training.flags import parse
from aligner.training.planning.memory import model_states, peak_activations, size_of, worst_batch
from aligner.training.planning.shapes import Shape, shape_of_model

LR = 2e-3
LORA = {"lora_rank": 4, "lora_alpha": 16}


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


@pytest.fixture(scope="module")
def rows24(real_rows, tmp_path_factory) -> Path:
    rows = [row for row in real_rows if len(row["question"] + row["answer"] + row["correction"]) < 450][:24]
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    file.write_text(json.dumps(rows))
    return file


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(5, 45)[None]).logits


def opened(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder)


def files(folder: Path) -> dict[str, bytes]:
    names = ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
    return {name: (folder / name).read_bytes() for name in names}


def adapted(folder: Path, **flags: object):
    from aligner.training.engine.adapters import add_adapters

    model = opened(folder)
    add_adapters(model, parse([p for k, v in {**LORA, **flags}.items() for p in (f"--{k}", str(v))]).lora, seed=42)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_updates_equal_a_plain_loop_with_peft_and_the_merged_model_its_adapters(
    ranks, peft, rows24, tiny_model, tmp_path, capsys
):
    cells = [
        base_flags(rows24, tiny_model, tmp_path / str(stage), lr=LR, zero_stage=stage, records_per_update=8, **LORA)
        for stage in (0, 1, 2, 3)
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    launch_program("programs.cells", ranks, tmp_path / "cells.json")

    def adapt(model):
        torch.manual_seed(42)
        settings = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        return peft.get_peft_model(model, settings)

    recipe = {"per_update": 8, "micro_batch": 4, "reduction": "micro_batch", "epochs": 2, "lr": LR}
    want, plain = plain_trajectory(tiny_model, json.loads(rows24.read_text()), **recipe, adapt=adapt)
    base = logits(opened(tiny_model))
    for stage in (0, 1, 2, 3):
        folder = tmp_path / str(stage)
        got = trajectory(folder)
        errors = [max(abs(g[i] / w[i] - 1) for g, w in zip(got, want, strict=True)) for i in (0, 1)]
        beside = logits(peft.PeftModel.from_pretrained(opened(tiny_model), folder / "adapter"))
        apart = [float((other - beside).abs().max()) for other in (logits(opened(folder)), logits(plain), base)]
        with capsys.disabled():
            print(f"\n{ranks} rank(s) ZeRO-{stage}: loss {errors[0]:.1e}  norm {errors[1]:.1e}; logits beside the adapters': "
                  f"merged {apart[0]:.1e}, plain loop {apart[1]:.1e}, base {apart[2]:.1e}", end="")  # fmt: skip
        assert len(got) == 6 and errors[0] < 1e-5 and errors[1] < 1e-4
        assert apart[0] < 1e-5 and apart[1] < 1e-4 and apart[2] > 1e-2


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit_from_adapters_alone_and_the_warm_up_s_adapters_are_trained_on(
    peft, rows24, tiny_model, tmp_path
):
    """The correction stage goes on with the warm-up's adapters, so that one set is all that differs from the base."""
    common = base_flags(
        rows24,
        tiny_model,
        tmp_path / "unused",
        lr=LR,
        records_per_update=8,
        save_interval=2,
        identity_proportion=0.4,
        **LORA,
    )
    runs = {f"zero{stage}": [*common, "--zero_stage", str(stage)] for stage in (0, 3)}
    work = {"folder": str(tmp_path), "runs": runs, "model": str(tiny_model)}
    (tmp_path / "work.json").write_text(json.dumps(work))
    launch_program("programs.stopped", 2, tmp_path / "work.json")
    for name in runs:
        whole, stopped = tmp_path / f"{name}-whole", tmp_path / f"{name}-stopped"
        assert trajectory(stopped) == trajectory(whole) and len(trajectory(whole)) == 6
        assert files(stopped) == files(whole) and files(stopped / "identity") == files(whole / "identity")
        state = whole / "checkpoints" / "update-6"
        numbers = [piece for file in state.rglob("pieces.json") for piece in json.loads(file.read_text())]
        assert numbers and all(".lora_" in piece[0] for piece in numbers)
        tensors = sum(tensor_numbers(file) for file in state.rglob("*.safetensors"))
        own = tensor_numbers(whole / "adapter" / "adapter_model.safetensors")
        assert 3 * own <= tensors < 3 * own + 100  # weights and two moments; ZeRO-3 fills up the last rank's share
        export_state(state, tmp_path / f"{name}-exported", False, iter)
        assert files(tmp_path / f"{name}-exported") == files(whole)
    for folder in (whole, whole / "identity"):
        beside = peft.PeftModel.from_pretrained(opened(tiny_model), folder / "adapter")
        assert (logits(beside) - logits(opened(folder))).abs().max() < 1e-5
    first, second = logits(opened(whole / "identity")), logits(opened(whole))
    assert (first - logits(opened(tiny_model))).abs().max() > 1e-3 and (second - first).abs().max() > 1e-3

    other = [*runs["zero3"], "--output_dir", str(whole), "--lora_target", "q_proj,v_proj"]
    with pytest.raises(UserError, match=r"differs in lora_target \(all-linear -> q_proj,v_proj\)"):
        inspect_run(resolved(parse(other)), 2)


def tensor_numbers(file: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(file).values())


@pytest.mark.slow
def test_a_rank_that_is_killed_in_the_middle_costs_nothing_but_time(peft, tiny_model, tmp_path):
    """SIGKILL of one of two ranks under the real launcher, behind a warm-up; the same command goes on from the last state."""
    flags = [word for name, value in {**LORA, "lr": LR, "epochs": 1, "identity_proportion": 0.3}.items()
             for word in (f"--{name}", value)]  # fmt: skip
    whole = Run(tiny_model, tmp_path / "whole", *flags).start()
    assert whole.end() == 0 and whole.made() == 15, whole.said
    run = Run(tiny_model, tmp_path / "killed", *flags).start().until(6)
    os.kill(run.rank(1), signal.SIGKILL)
    assert run.end() not in (0, 75) and "error: rank 1 " in run.said, run.said
    assert 6 <= run.made() < 15 and not (run.out / "model.safetensors").exists()
    [state] = run.states()
    goes_on(run, whole.out)
    run.line(f"going on after {state.replace('-', ' ')}")
    assert files(run.out) == files(whole.out) and files(run.out / "identity") == files(whole.out / "identity")


@pytest.mark.slow
def test_a_16_bit_run_leaves_its_masters_on_request_and_a_full_run_in_its_place_no_adapters(
    peft, rows24, bpe_folder, tmp_path
):
    untied = save_llama(bpe_folder, tmp_path / "untied", tied=False)
    common = {"epochs": 1, "records_per_update": 8, "lr": LR}
    cells = [
        base_flags(rows24, untied, tmp_path / "half", **common, **LORA, bf16=True),
        base_flags(rows24, untied, tmp_path / "master", **common, **LORA, bf16=True, save_16bit=False),
        base_flags(rows24, untied, tmp_path / "full", **common, **LORA, lora_target="q_proj,v_proj"),
        base_flags(rows24, untied, tmp_path / "full", **common, resume="never"),
    ]
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    launch_program("programs.cells", 2, tmp_path / "cells.json")
    for name, kind in (("half", torch.bfloat16), ("master", torch.float32)):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto")
        assert model.dtype == kind
        saved = load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {kind}
    base = AutoModelForCausalLM.from_pretrained(untied, dtype=torch.bfloat16).float()
    master = opened(tmp_path / "master")
    assert torch.equal(master.lm_head.weight, base.lm_head.weight)  # nothing but the adapters was trained
    beside = peft.PeftModel.from_pretrained(base, tmp_path / "master" / "adapter")
    assert (logits(beside) - logits(master)).abs().max() < 1e-5
    assert not (tmp_path / "full" / "adapter").exists()


@pytest.mark.slow
def test_weights_of_4_bits_stay_as_they_are_and_the_folder_is_what_they_and_the_adapters_compute(
    peft, rows24, bpe_folder, tmp_path
):
    """bitsandbytes unpacks on a CPU too, so the mechanics can be seen without a GPU; users are refused there."""
    pytest.importorskip("bitsandbytes")
    base = save_llama(bpe_folder, tmp_path / "base", hidden=64)
    flags = [
        base_flags(
            rows24, base, tmp_path / str(stage), lr=LR, zero_stage=stage, records_per_update=8, lora_4bit=True, **LORA
        )
        for stage in (0, 1)
    ]
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    launch_program("programs.four_bit", 1, tmp_path / "flags.json")
    quantised = AutoModelForCausalLM.from_pretrained(base, **packing(str(base), torch.float32, torch.device("cpu")))
    assert type(quantised.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    ids = torch.arange(5, 45)[None]  # as in training: without a gradient bitsandbytes computes in bf16 on a CPU
    rounded = quantised.train()(ids).logits.detach()
    adapters = tmp_path / "1" / "adapter"
    beside = peft.PeftModel.from_pretrained(quantised, adapters, is_trainable=True).train()(ids).logits.detach()
    merged = opened(tmp_path / "1")
    assert "quantization_config" not in json.loads((tmp_path / "1" / "config.json").read_text())
    assert merged.model.layers[0].mlp.up_proj.weight.shape == (128, 64)
    assert (beside - logits(merged)).abs().max() < 1e-5
    assert (beside - rounded).abs().max() > 1e-3 and (rounded - logits(opened(base))).abs().max() > 1e-3
    for one, other in zip(trajectory(tmp_path / "0"), trajectory(tmp_path / "1"), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_frozen_head_has_no_gradient_and_the_loss_holds_no_memory_for_it(peft, tiny_model):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Shapes(TorchDispatchMode):
        """The shapes of all that is computed."""

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            output = operation(*args, **(kwargs or {}))
            shapes.extend(tuple(t.shape) for t in [output] if isinstance(t, torch.Tensor) and t.dtype == torch.float32)
            return output

    model, batch = adapted(tiny_model), worst_batch(2, 16, True)
    head = tuple(model.lm_head.weight.shape)
    for frozen in (True, False):
        model.lm_head.weight.requires_grad_(not frozen)
        shapes: list[tuple[int, ...]] = []
        objective = Objective(model, True)
        with Shapes():
            objective(batch).backward()
        made = shapes.count(head)
        assert (made == 0) if frozen else made > 0, "as large as the head is only its gradient"
        assert (model.lm_head.weight.grad is None) == frozen


def test_new_adapters_change_nothing_and_the_folder_is_the_plain_model_s(peft, tiny_model):
    plain, model = opened(tiny_model), adapted(tiny_model)
    assert torch.equal(logits(model), logits(plain))
    assert list(plan_folder(model).files) == list(plan_folder(plain).files)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2 and all(".lora_" in name for name in trained)
    again = dict(adapted(tiny_model).named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in model.named_parameters())


def test_merged_weights_compute_what_the_adapters_do(peft, tiny_model):
    from aligner.training.engine.adapters import adapter_parameters, merging, plain_names

    model, plain = adapted(tiny_model, lora_alpha=12), opened(tiny_model)
    for _, parameter in adapter_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    fetch = merging(model, lambda name: model.state_dict()[name])
    plain.load_state_dict({name: fetch(name) for name in plain_names(model)})
    beside, base = logits(model), logits(opened(tiny_model))
    assert float((logits(plain) - beside).abs().max()) < 1e-5 < 1e-2 < float((beside - base).abs().max())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"lora_target": "q_proj,qproj"}, "LlamaForCausalLM has no such layer. Give all-linear, or some of down_proj, gate_proj"),
        ({"lora_target": "nothing"}, "--lora_target nothing: LlamaForCausalLM has no such layer"),
        ({"lora_target": "lm_head"}, "lm_head is no linear layer between embedding and head"),
        ({"lora_target": "q_proj,embed_tokens"}, "embed_tokens is no linear layer between embedding and head"),
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_adapted_is_refused(flags, said, peft, tiny_model):
    with pytest.raises(UserError, match=said):
        adapted(tiny_model, **flags)


def test_tokens_without_a_row_are_refused(peft, bpe_folder, tmp_path):
    from transformers import AutoTokenizer

    from aligner.training.engine.build import prepare

    short, lora = save_llama(bpe_folder, tmp_path / "short", vocab=590), parse(["--lora_rank", "4"]).lora
    with pytest.raises(UserError, match="10 tokens for which the model has no row"):
        prepare(opened(short), AutoTokenizer.from_pretrained(short), lora, SimpleNamespace(start_from="short"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--lora_alpha 32", "--lora_alpha is for LoRA and needs --lora_rank N"),
        ("--lora_target q_proj", "--lora_target is for LoRA and needs --lora_rank N"),
        ("--lora_rank 0", "--lora_rank is 0: it must be at least 1"),
        ("--lora_rank 8 --lora_target q_proj,", "has an empty name"),
        ("--lora_4bit --zero_stage 1", "--lora_4bit is for LoRA and needs --lora_rank N"),
        ("--lora_rank 8 --lora_4bit", "--lora_4bit needs --zero_stage 0, 1 or 2"),
    ],
)
def test_flags_of_lora_that_cannot_be_meant_are_refused(flags, said, monkeypatch):
    with pytest.raises(UserError, match=said):
        parse(flags.split())


def test_4_bits_are_refused_where_no_gpu_is(monkeypatch):
    monkeypatch.setattr("aligner.training.config_check.find_spec", lambda name: name)
    config = parse(["--lora_rank", "8", "--lora_4bit", "--zero_stage", "1", "--device", "cpu"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="--lora_4bit needs a GPU, and torch sees none here"):
        resolved(config)


def test_a_base_that_is_quantised_already_or_a_missing_bitsandbytes_is_refused(monkeypatch, tiny_model, tmp_path):
    monkeypatch.setattr("aligner.quantised.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package bitsandbytes: pip install"):
        packing(str(tiny_model), torch.float32, torch.device("cpu"))
    monkeypatch.setattr("aligner.quantised.find_spec", lambda name: name)
    settings = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(UserError, match="quantised already"):
        packing(str(tmp_path), torch.float32, torch.device("cpu"))


def test_a_missing_package_is_named_before_anything_starts(monkeypatch):
    monkeypatch.setattr("aligner.training.config_check.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package peft: pip install"):
        resolved(parse(["--lora_rank", "8"]))


def test_lora_s_flags_decide_the_weights_and_are_in_no_fingerprint_of_a_run_without(monkeypatch):
    """So that runs of earlier versions go on."""
    names = {"lora_rank", "lora_alpha", "lora_target"}
    assert not names & fingerprint_fields(parse([])).keys()
    settings = fingerprint_fields(parse(["--lora_rank", "8"]))
    assert {name: settings[name] for name in names} == {"lora_rank": 8, "lora_alpha": 16, "lora_target": "all-linear"}


def test_model_states_are_the_frozen_weights_and_what_the_adapters_take(peft):
    lora = parse(["--lora_rank", "16"]).lora
    size = size_of(shape_of_model("meta-llama/Llama-2-7b-hf"), lora)
    assert size.adapters == 32 * 16 * (8 * 4096 + 3 * (4096 + 11008))
    weights, trained = 2 * 6_738_415_616, 20 * size.adapters  # 16 bit: 2 of weight, 6 of gradient, 12 of optimizer
    assert model_states(size, True, 1, "none", 1, 1).gpu == weights + trained
    assert (
        model_states(size, True, 3, "none", 8, 1).gpu == 4 * size.largest_layer + weights // 8 + 18 * size.adapters // 8
    )
    assert model_states(size, True, 3, "all", 8, 1).gpu == 4 * size.largest_layer


def test_4_bits_take_a_quarter_of_the_frozen_weights(peft):
    lora = parse(["--lora_rank", "16", "--lora_4bit", "--zero_stage", "1"]).lora
    size = size_of(shape_of_model("meta-llama/Llama-2-7b-hf"), lora)
    assert size.packed == 32 * (4 * 4096**2 + 3 * 4096 * 11008)  # all but embedding, head and norms
    rest = 2 * (size.parameters - size.packed) + 2 * size.largest_layer + 20 * size.adapters
    packed = model_states(size, True, 1, "none", 1, 1).gpu - rest
    assert packed == pytest.approx(size.packed * 4.127 / 8, rel=1e-4)


@pytest.mark.slow
def test_the_plan_of_a_7b_model_fits_one_24_gb_card(peft, capsys):
    from aligner.cli import main as aligner

    flags = "--model_name_or_path meta-llama/Llama-2-7b-hf --gpu_memory 24 --zero_stage 1 --lora_rank 16"
    assert aligner(["plan", *flags.split()]) == 0
    said = capsys.readouterr().out
    assert "LoRA of rank 16: 40.0 million parameters are trained" in said and "it fits" in said
    assert "model states (weights, gradients, optimizer)     14.3 GB" in said
    assert "on each GPU (rank)                               21.4 GB of 24.0 GB" in said


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", ["all", "none"])
def test_the_planned_activations_agree_with_a_measured_peak(recomputed, peft, capsys):
    """Of three layers in fp32, as in test_plan.py, with adapters."""
    program = MEASURE.replace(
        "recompute_activations(model,",
        "add_adapters(model, parse(['--lora_rank', '16']).lora, 0)\nrecompute_activations(model,",
    ).replace("for p in model.parameters(): p", "for p in (p for p in model.parameters() if p.requires_grad): p")
    imports = "from aligner.training.engine.adapters import add_adapters\nfrom aligner.training.flags import parse\n"
    variables = {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", imports + program, "4", "512", recomputed, "float32", repr(SMALL)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    shape, lora = Shape(LlamaConfig(**SMALL)), parse(["--lora_rank", "16"]).lora
    ours, full = (peak_activations(shape, 4, 512, recomputed, torch.float32, one) for one in (lora, None))
    with capsys.disabled():
        print(
            f"\n{recomputed}: planned {ours / 1e6:.1f} MB, measured {int(done.stdout) / 1e6:.1f}; trained in full {full / 1e6:.1f}",
            end="",
        )
    assert ours == pytest.approx(int(done.stdout), rel=0.2)
