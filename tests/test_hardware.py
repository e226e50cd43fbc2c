"""What a machine has, and what follows from it: GPUs that torch cannot use, a model's place, hints of the plan."""

import pytest
import torch
from transformers import LlamaConfig

from aligner import models
from aligner.inference import greedy
from aligner.inference.greedy import Decoder
from aligner.records import UserError
from aligner.training.distributed import hardware
from aligner.training.engine.zero import reduce_bucket
from aligner.training.flags import parse
from aligner.training.planning import here
from aligner.training.planning.memory_plan import one_gpu_line
from aligner.training.planning.shapes import Shape


@pytest.fixture
def eight_gpus_that_torch_does_not_see(monkeypatch, tmp_path):
    for number in range(8):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Tue Mar 26 00:00:00 UTC 2024\n")
    monkeypatch.setattr(hardware, "nvidia_devices", lambda find=hardware.nvidia_devices: find(tmp_path))
    monkeypatch.setattr(hardware, "nvidia_driver", lambda read=hardware.nvidia_driver: read(version))
    monkeypatch.setattr(hardware, "gpus_here", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_that_torch_cannot_use_are_not_left_idle_without_a_word(eight_gpus_that_torch_does_not_see):
    with pytest.raises(UserError) as refused:
        hardware.resolved(parse([]))
    message = str(refused.value)
    assert "8 NVIDIA GPU(s)" in message and "535.161.08" in message and torch.__version__ in message
    assert "--device cpu" in message and "\n" not in message


@pytest.mark.parametrize("chosen", ["flag", "environment"])
def test_the_cpu_of_such_a_machine_can_be_chosen(chosen, eight_gpus_that_torch_does_not_see, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "" if chosen == "environment" else "0")
    assert hardware.resolved(parse(["--device", "cpu"] if chosen == "flag" else [])).optimization.tf32 is False


@pytest.mark.parametrize(("free", "place"), [(40e9, {"": 0}), (16e9, "auto")])
def test_a_model_that_fits_one_gpu_is_put_on_one(free, place, monkeypatch):
    """7B in bf16 are 13.5 GB: within three quarters of 40 GB, not of 16."""
    seven = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    assert models.weight_bytes(seven, torch.bfloat16) == pytest.approx(13.5e9, rel=0.01)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
    monkeypatch.setattr(models, "load_config", lambda *_: seven)
    assert models.device_map_options("seven", torch.bfloat16) == {"device_map": place}


def test_a_slurm_task_that_sees_one_gpu_takes_that_one(monkeypatch):
    """Local rank 3 of a node, bound to its own GPU: number 0 here, for DeepSpeed and accelerate too, which read the variable."""
    from aligner.training.distributed import ranks

    class OneGPU:
        device_name = staticmethod(lambda: "cuda")
        device_count = staticmethod(lambda: 1)
        current_device_name = staticmethod(lambda: "cpu")
        set_device = staticmethod(lambda number: chosen.append(number))

    chosen: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(ranks, "get_accelerator", OneGPU)
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "get_rank", lambda: 3)
    monkeypatch.setattr(ranks.dist, "get_world_size", lambda: 8)
    ranks.connect(3)
    assert chosen == [0] and ranks.os.environ["LOCAL_RANK"] == "0"


@pytest.mark.parametrize(
    ("flags", "memory", "value"),
    [
        ([], None, "True"),  # a CPU
        ([], 80e9, "False"),  # 16 million parameters
        (["--gradient_checkpointing", "some"], 80e9, "some"),
        (["--model_name_or_path", "/no/such/model"], 80e9, "True"),
    ],
)
def test_what_is_recomputed_is_settled_by_the_machine_and_a_plan_that_fails_ends_no_run(
    flags, memory, value, monkeypatch
):
    small = Shape(LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4))
    monkeypatch.setattr(here, "gpu_memory", lambda: memory)
    monkeypatch.setattr(here, "gpus_here", lambda: 1)
    if "--model_name_or_path" not in flags:
        monkeypatch.setattr(here, "shape_of_model", lambda *_: small)
    assert here.settled_recomputing(parse([*flags, "--max_length", "64"]), 1) == value


def test_the_plan_says_that_one_gpu_needs_no_zero_3():
    assert "--zero_stage 1" in one_gpu_line(parse([]), 1)[0]
    assert one_gpu_line(parse([]), 2) == one_gpu_line(parse(["--zero_stage", "1"]), 1) == []
    assert one_gpu_line(parse(["--offload", "all"]), 1) == []


def test_deepspeeds_bucket_is_not_larger_than_a_small_model():
    """Two layers of 64 x 64 x 4 + 64 x 128 x 3, and twice 64 x 1,000: 209,920 numbers."""
    small = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000
    )
    assert reduce_bucket(small) == 2 * (64 * 64 * 4 + 64 * 128 * 3) + 2 * 64 * 1000
    assert reduce_bucket(LlamaConfig()) == 500_000_000


class FourThousandPositions:
    config = LlamaConfig(max_position_embeddings=4096)
    device = torch.device("cuda")


def test_on_a_gpu_passes_are_timed_up_to_a_thousand_tokens(monkeypatch):
    """There a pass over a hundred tokens takes as long as one over one: the slope beyond would be none."""
    decoder = Decoder(FourThousandPositions(), 2)  # type: ignore[arg-type]
    monkeypatch.setattr(decoder, "_forward", lambda *_: [])
    assert max(decoder.measure().tokens) == 1024


def test_a_pass_that_a_cold_machine_made_slow_costs_no_more_than_a_wider_one(monkeypatch):
    """On an H100 the first passes took 50 ms instead of 24, and all wider ones were held to cost as much."""
    decoder, clock, cold = Decoder(FourThousandPositions(), 2), [0.0], iter([0.5, 0.05, 0.05])  # type: ignore[arg-type]

    def forward(cache, first, inputs, starts, width):
        clock[0] += next(cold, 0.027 if width < 512 else 0.053)

    monkeypatch.setattr(decoder, "_forward", forward)
    monkeypatch.setattr(greedy.time, "perf_counter", lambda: clock[0])
    cost = decoder.measure()
    assert dict(zip(cost.tokens, cost.seconds, strict=True)) == pytest.approx(
        {**dict.fromkeys(cost.tokens[:-2], 0.027), 512: 0.053, 1024: 0.053}
    )


@pytest.mark.parametrize(("feature", "has"), [("amx_bf16", True), ("avx512_bf16", True), ("avx512_f", False)])
def test_a_cpu_that_multiplies_bfloat16_trains_in_it(feature, has, monkeypatch):
    monkeypatch.setattr(hardware, "gpus_here", lambda: 0)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {feature: True})
    assert hardware.bf16_here() is has
