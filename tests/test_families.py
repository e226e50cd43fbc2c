"""Every causal family of the installed transformers: trained, written, read again, decoded; and the laws for two kinds of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import launch_program
from families import KINDS, save_tiny
from plain_loop import plain_trajectory
from safetensors.torch import load_file
from test_exact_updates import LR, base_flags, trajectory
from test_folder_writer import on_disk
from test_odd_bases import mxfp4
from transformers import AutoModelForCausalLM

from aligner.training.checkpoint.export import export_state

LAWFUL = {
    "mixtral": {},  # a mixture of experts, whose tensors are converted when it is read and written
    "bamba": {},  # state space and attention
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAWFUL)
def test_the_laws_hold_for_mixtures_and_hybrids_at_every_stage_and_over_a_resume(kind, real_rows, bpe_folder, tmp_path):
    rows = [row for row in real_rows if len(row["question"] + row["answer"] + row["correction"]) < 500][:23]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    base = tmp_path / "base"
    save_tiny(kind, bpe_folder, base, **LAWFUL[kind])
    more = {"records_per_update": 9, "per_device_train_batch_size": 4, "save_interval": 2, "save_total_limit": 9,
            "gradient_checkpointing": False, "max_length": 512}  # fmt: skip
    cells = {
        f"{part}-{stage}": base_flags(tmp_path / "rows.json", base, tmp_path / f"{part}-{stage}", zero_stage=stage, **more)
        for part in ("whole", "stopped") for stage in (0, 1, 2, 3)
    }  # fmt: skip
    (tmp_path / "whole.json").write_text(json.dumps([cells[f"whole-{stage}"] for stage in (0, 1, 2, 3)]))
    launch_program("programs.cells", 2, tmp_path / "whole.json", timeout=900)
    for stage in (0, 1, 2, 3):  # what a kill after the third of six updates leaves
        stopped = tmp_path / f"stopped-{stage}"
        shutil.copytree(tmp_path / f"whole-{stage}" / "checkpoints" / "update-2", stopped / "checkpoints" / "update-2")
        shutil.copy(tmp_path / f"whole-{stage}" / "train_log.jsonl", stopped)
    (tmp_path / "stopped.json").write_text(json.dumps([cells[f"stopped-{stage}"] for stage in (0, 1, 2, 3)]))
    launch_program("programs.cells", 2, tmp_path / "stopped.json", timeout=900)

    want, plain = plain_trajectory(
        base, rows, per_update=9, micro_batch=4, reduction="micro_batch", epochs=2, lr=LR
    )  # fmt: skip
    plain.save_pretrained(tmp_path / "plain")
    expected, there = load_file(tmp_path / "plain" / "model.safetensors"), load_file(base / "model.safetensors")
    for stage in (0, 1, 2, 3):
        got = trajectory(tmp_path / f"whole-{stage}")
        assert [g[0] for g in got] == pytest.approx([w[0] for w in want], rel=1e-4)
        assert [g[1] for g in got] == pytest.approx([w[1] for w in want], rel=1e-3)
        whole, stopped = (
            load_file(tmp_path / f"{part}-{stage}" / "model.safetensors") for part in ("whole", "stopped")
        )
        assert set(whole) == set(there) == set(expected)
        assert all((whole[name] == stopped[name]).all() for name in whole)
        assert trajectory(tmp_path / f"stopped-{stage}") == got
        assert max(float((whole[name] - expected[name]).abs().max()) for name in whole) < 1e-3
        AutoModelForCausalLM.from_pretrained(tmp_path / f"whole-{stage}")


def test_two_ranks_write_what_an_export_of_their_state_writes_whatever_is_frozen_or_was_packed(
    real_rows, bpe_folder, tmp_path
):
    """ZeRO-3, in 16 and in 32 bit: names of the base, fused experts, a bias that is not trained, weights in four bits."""
    rows = [row for row in real_rows if len(row["question"] + row["answer"] + row["correction"]) < 400][:4]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    save_tiny("mixtral", bpe_folder, tmp_path / "mixtral")
    save_tiny("ernie4_5_moe", bpe_folder, tmp_path / "ernie4_5_moe")
    mxfp4(bpe_folder, tmp_path / "gpt_oss")
    cells = [
        (base, precision, base_flags(
            tmp_path / "rows.json", tmp_path / base, tmp_path / f"{base}-{name}", epochs=1, records_per_update=2, save_interval=2,
            per_device_train_batch_size=1, max_length=512, zero_stage=3, gradient_checkpointing=False, **precision,
        ), tmp_path / f"{base}-{name}")
        for base in ("mixtral", "ernie4_5_moe", "gpt_oss")
        for name, precision in {"half": {"bf16": True, "save_16bit": True}, "master": {"bf16": True, "save_16bit": False}}.items()
    ]  # fmt: skip
    (tmp_path / "cells.json").write_text(json.dumps([flags for _, _, flags, _ in cells]))
    launch_program("programs.cells", 2, tmp_path / "cells.json", timeout=900)
    for base, precision, _, out in cells:
        [state] = (out / "checkpoints").iterdir()
        export_state(state, tmp_path / "exported" / out.name, False, iter)
        ours, theirs = on_disk(out), on_disk(tmp_path / "exported" / out.name)
        assert ours.keys() == theirs.keys()
        assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == set()
        configs = [(folder / "config.json").read_text() for folder in (out, tmp_path / "exported" / out.name)]
        assert configs[0] == configs[1] and "quantization_config" not in configs[0]
        if base != "gpt_oss":
            there = on_disk(tmp_path / base)
            assert ours.keys() == there.keys()
            moved = {name for name in ours if not torch.equal(ours[name].float(), there[name].bfloat16().float())}
            frozen = {name for name in ours if "e_score_correction" in name or "moe_statics" in name}
            assert moved and not moved & frozen and bool(frozen) == (base == "ernie4_5_moe")
        dtypes = {tensor.dtype for tensor in ours.values() if tensor.is_floating_point()}
        assert precision["save_16bit"] or dtypes == {torch.float32}


@pytest.fixture(scope="session")
def table(bpe_folder, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("families")
    launch_program("programs.family_table", 1, folder / "work", bpe_folder, folder / "table.jsonl", timeout=5400)
    lines = [json.loads(line) for line in (folder / "table.jsonl").read_text().splitlines()]
    if target := os.environ.get("ALIGNER_FAMILY_TABLE"):  # the README's, anew
        Path(target).write_text(as_markdown(lines), encoding="utf-8")
    return lines


def as_markdown(lines: list[dict]) -> str:
    """The table as it stands in the room's README, with its date and versions."""
    from datetime import UTC, datetime

    import deepspeed
    import torch
    import transformers

    steps = ("trains", "objective", "names", "export", "reloads", "decodes")
    date = (
        f"{datetime.now(UTC):%Y-%m-%d}, transformers {transformers.__version__}, torch {torch.__version__}, DeepSpeed "
    )
    text = [f"{date}{deepspeed.__version__}, CPU, fp32. {sum(line['tiny'] == 'yes' for line in lines)} of {len(lines)} "
            "causal families build as a tiny configuration.", "",
            "| family | trains | loss, gradient | names on disk | export of a state | reloaded | decoding |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    for line in (line for line in lines if line["tiny"] == "yes"):
        loss = line["objective"]
        shown = {
            **line,
            "objective": loss
            if isinstance(loss, str)
            else "{:.0e}, {:.0e}".format(*loss) + " (by its logits)" * (len(loss) > 2),
        }
        text.append(f"| {line['family']} | " + " | ".join(str(shown[step]).replace("|", "/") for step in steps) + " |")
    without = [f"{line['family']} ({line['tiny']})" for line in lines if line["tiny"] != "yes"]
    return "\n".join([*text, "", "Without a tiny configuration: " + "; ".join(without) + "."]) + "\n"


@pytest.mark.slow
def test_every_family_has_a_line_and_none_ends_in_a_traceback(table):
    assert [line["family"] for line in table] == KINDS
    built = [line for line in table if line["tiny"] == "yes"]
    assert len(built) > 130
    assert not [line for line in built if line["trains"].startswith("ERROR")]


@pytest.mark.slow
def test_what_is_trained_has_transformers_own_loss_and_gradient_and_comes_back_from_disk(table):
    trained = [line for line in table if line.get("trains") in ("flat", "padded")]
    assert len(trained) > 110
    wrong = []
    for line in trained:
        loss = line["objective"]
        if isinstance(loss, str) or loss[0] > 1e-5 or loss[1] > 1e-4:
            wrong.append((line["family"], "objective", loss))
        wrong += [(line["family"], step, line[step]) for step, value in
                  {"names": "the base's", "export": "equal", "reloads": "equal"}.items() if line[step] != value]  # fmt: skip
        if not line["decodes"].startswith("equal"):
            wrong.append((line["family"], "decodes", line["decodes"]))
    assert not wrong
