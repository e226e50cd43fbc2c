"""Law 1: one update is one set of records, however it is computed. Real launches, compared with plain torch."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from conftest import launch_program
from plain_loop import plain_trajectory
from transformers import AutoModelForCausalLM

from aligner.training.config import OFFLOAD_STAGES

LR = 2e-3
LAYOUTS = {1: [(4, 4), (1, 16)], 2: [(4, 2), (1, 8)]}  # ranks: (rows, accumulation), 16 records per update each


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def trajectory(folder: Path) -> list[tuple[float, float, float]]:
    return [(line["loss"], line["grad_norm"], line["lr"]) for line in log_of(folder) if "loss" in line]


def base_flags(rows_file: Path, model: Path, out: Path, **flags: object) -> list[str]:
    common = {
        "train_datasets": rows_file, "model_name_or_path": model, "output_dir": out, "epochs": 2, "lr": LR,
        "save_interval": 0, "log_type": "none", "bf16": False,
        "gradient_checkpointing": False,
    }  # fmt: skip
    return [part for key, value in {**common, **flags}.items() for part in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def rows64(real_rows, tmp_path_factory) -> Path:
    """64 short real rows of all kinds."""
    short = [row for row in real_rows if len(row["question"] + row["answer"] + row["correction"]) < 450]
    rows = short[:: len(short) // 64][:64]
    assert len(rows) == 64
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture(scope="module")
def expected(rows64, tiny_model):
    """The plain loop's trajectory for each virtual micro-batch size and weighting."""
    rows, made = json.loads(rows64.read_text()), {}

    def find(micro_batch: int, reduction: str):
        key = (micro_batch if reduction == "micro_batch" else 0, reduction)
        if key not in made:
            made[key], _ = plain_trajectory(
                tiny_model, rows, per_update=16, micro_batch=micro_batch, reduction=reduction, epochs=2, lr=LR
            )
        return made[key]

    return find


def cells_of(ranks: int, every: bool) -> list[tuple[int, int, int, str]]:
    """(rows, accumulation, ZeRO stage, weighting): all 16, or so few that any two values still meet, on two ranks."""
    cells = list(itertools.product(LAYOUTS[ranks], (0, 1, 2, 3), ("micro_batch", "token")))
    some = [cell for number, cell in enumerate(cells) if (number + number // 2 + number // 8) % 2 == 0]
    return [
        (*layout, stage, reduction) for layout, stage, reduction in (cells if every else some[ranks % 2 :: 3 - ranks])
    ]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ranks", [1, 2])
def test_loss_norm_and_rate_equal_plain_torch_in_every_layout_stage_and_weighting(
    ranks, every, rows64, tiny_model, expected, tmp_path, capsys
):
    cells = cells_of(ranks, every)
    flags = [
        base_flags(
            rows64, tiny_model, tmp_path / str(number), per_device_train_batch_size=rows, zero_stage=stage,
            gradient_accumulation_steps=accumulation, loss_reduction=reduction,
            gradient_checkpointing=number // 2 % 2 == 1,  # with and without meet both weightings and ZeRO-3
        )
        for number, (rows, accumulation, stage, reduction) in enumerate(cells)
    ]  # fmt: skip
    (tmp_path / "cells.json").write_text(json.dumps(flags))
    launch_program("programs.cells", ranks, tmp_path / "cells.json", timeout=600)

    lines, worst = [], 0.0
    for number, (rows, accumulation, stage, reduction) in enumerate(cells):
        got, want = trajectory(tmp_path / str(number)), expected(rows, reduction)
        assert len(got) == len(want) == 8
        errors = [max(abs(g[i] / w[i] - 1) for g, w in zip(got, want, strict=True)) for i in (0, 1)]
        assert [g[2] for g in got] == pytest.approx([w[2] for w in want])
        worst = max(worst, errors[0])
        lines.append(
            f"{ranks} rank(s) {rows:>2} x {accumulation:<2} ZeRO-{stage} {reduction:<12}"
            f"loss {errors[0]:.1e}  norm {errors[1]:.1e}"
        )
        assert errors[1] < 1e-4, lines[-1]
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert worst < 1e-5


OFFLOADS = [(offload, stage) for offload, valid in OFFLOAD_STAGES.items() if offload != "none" for stage in valid]
TWO_OFFLOADS = [("optimizer", 2), ("all", 3)]


@pytest.mark.parametrize("offloads", [TWO_OFFLOADS, pytest.param(OFFLOADS, marks=pytest.mark.slow)], ids=["two", "all"])
def test_odd_cases_with_two_ranks(offloads, real_rows, tiny_model, bpe_folder, tmp_path):
    """In one launch: an uneven last update with a rank that has nothing, an untied model, a grown embedding, a prompt without
    an answer, offload."""
    from conftest import save_llama

    rows = [row for row in real_rows if len(row["question"] + row["answer"] + row["correction"]) < 450][:23]
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    untied = save_llama(bpe_folder, tmp_path / "untied", tied=False)
    short = save_llama(bpe_folder, tmp_path / "short", vocab=590)  # ten rows fewer than the tokenizer has tokens
    padded = save_llama(bpe_folder, tmp_path / "padded", vocab=640)  # as Qwen does: must not shrink
    (tmp_path / "plain.yaml").write_text('template: "USER: {question} ASSISTANT:"')
    cells = {
        "plain": base_flags(
            file, tiny_model, tmp_path / "plain", prompt_template=tmp_path / "plain.yaml", records_per_update=9
        ),
        "uneven": base_flags(
            file,
            tiny_model,
            tmp_path / "uneven",
            records_per_update=9,
            per_device_train_batch_size=4,
            gradient_checkpointing=True,
        ),
        "untied": base_flags(file, untied, tmp_path / "untied-out", records_per_update=9),
        "bf16": base_flags(file, untied, tmp_path / "bf16", bf16=True),
        "master": base_flags(file, untied, tmp_path / "master", bf16=True, save_16bit=False),
        "short": base_flags(file, short, tmp_path / "short-out", epochs=1),
        "padded": base_flags(file, padded, tmp_path / "padded-out", epochs=1),
    }
    for offload, stage in offloads:
        cells[f"{offload}-{stage}"] = base_flags(
            file, tiny_model, tmp_path / f"{offload}-{stage}", records_per_update=9, offload=offload, zero_stage=stage
        )
    (tmp_path / "cells.json").write_text(json.dumps(list(cells.values())))
    launch_program("programs.cells", 2, tmp_path / "cells.json", 60_000)
    assert len(list((tmp_path / "uneven").glob("model-*-of-*.safetensors"))) > 2
    assert (tmp_path / "uneven" / "model.safetensors.index.json").is_file()

    # 23 records by 9: updates of 9, 9 and 5 records. Micro-batches of 4, 4 and 1; of 4 and 1 in the last.
    offloaded = [(f"{offload}-{stage}", tiny_model) for offload, stage in offloads]
    for name, model in [("plain", tiny_model), ("uneven", tiny_model), ("untied-out", untied), *offloaded]:
        template = {"template": "USER: {} ASSISTANT:"} if name == "plain" else {}
        want, plain = plain_trajectory(
            model, rows, per_update=9, micro_batch=4, reduction="micro_batch", epochs=2, lr=LR, **template
        )
        got = trajectory(tmp_path / name)
        assert len(got) == 6
        assert [g[0] for g in got] == pytest.approx([w[0] for w in want], rel=1e-5)
        assert [g[1] for g in got] == pytest.approx([w[1] for w in want], rel=1e-4)
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        for (key, ours), (other, theirs) in zip(exported.named_parameters(), plain.named_parameters(), strict=True):
            assert key == other
            assert ours.detach().numpy() == pytest.approx(theirs.detach().numpy(), abs=2e-5)

    half = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16", dtype="auto")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "master", dtype="auto")
    assert (str(half.dtype), str(whole.dtype)) == ("torch.bfloat16", "torch.float32")
    rounded = whole.lm_head.weight.bfloat16()
    assert (rounded == half.lm_head.weight).all()
    assert not (rounded.float() == whole.lm_head.weight).all()

    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "short-out")
    assert grown.get_input_embeddings().weight.shape[0] == 600
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "padded-out")
    assert kept.get_input_embeddings().weight.shape[0] == 640
