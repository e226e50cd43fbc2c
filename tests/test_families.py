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
from programs.family_table import WAYS
from safetensors.torch import load_file, save_file
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_ranks_whose_rows_choose_unlike_experts_train_at_zero_3_as_at_zero_2(real_rows, bpe_folder, tmp_path):
    """Some of LongCat-Flash's experts are a module that returns what it is given: called as often as a rank's rows choose them."""
    rows = [row for row in real_rows if len(row["question"] + row["answer"] + row["correction"]) < 400][:8]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    save_tiny("longcat_flash", bpe_folder, tmp_path / "base")
    cells = [
        base_flags(
            tmp_path / "rows.json", tmp_path / "base", tmp_path / f"stage-{stage}", records_per_update=4, max_length=512,
            per_device_train_batch_size=1, zero_stage=stage, gradient_checkpointing=stage == 3,
        )
        for stage in (2, 3)
    ]  # fmt: skip
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    launch_program("programs.cells", 2, tmp_path / "cells.json")
    two, three = (trajectory(tmp_path / f"stage-{stage}") for stage in (2, 3))
    assert len(three) == 4
    assert [t[0] for t in three] == pytest.approx([t[0] for t in two], rel=1e-5)
    assert [t[1] for t in three] == pytest.approx([t[1] for t in two], rel=1e-4)


# What each of these does not train, by the end of its name: parameters of five, buffers of the others.
FROZEN = {
    "afmoe": "expert_bias", "ernie4_5_moe": "e_score_correction_bias", "hrm_text": "z_L_init", "laguna": "e_score_correction_bias",
    "roformer": "embed_positions.weight", "dots1": "e_score_correction_bias", "glm4_moe": "e_score_correction_bias",
    "nemotron_h": "e_score_correction_bias", "minimax_m2": "e_score_correction_bias",
    "apertus": "act_fn.beta", "zaya": "balancing_biases", "hy_v3": "expert_bias",
    "longcat_flash": "e_score_correction_bias",
}  # fmt: skip


@pytest.mark.slow
def test_what_a_family_does_not_train_is_the_bases_in_the_folder_and_in_an_export(rows, bpe_folder, tmp_path):
    """Two ranks, ZeRO-3."""
    draw, frozen = torch.Generator().manual_seed(0), {}
    for kind, end in FROZEN.items():
        save_tiny(kind, bpe_folder, tmp_path / kind)
        tensors = load_file(tmp_path / kind / "model.safetensors")
        frozen[kind] = {
            name: t + 0.1 * torch.rand(t.shape, generator=draw) for name, t in tensors.items() if name.endswith(end)
        }
        assert frozen[kind], (kind, list(tensors))
        if kind == "zaya":  # transformers sets the last one to this whenever it opens the family
            for biases in frozen[kind].values():
                biases[-1] = -1.0
        save_file({**tensors, **frozen[kind]}, tmp_path / kind / "model.safetensors", metadata={"format": "pt"})
    cells = [
        base_flags(
            rows, tmp_path / kind, tmp_path / f"{kind}-out", epochs=1, records_per_update=20, per_device_train_batch_size=2,
            save_interval=2, max_length=512, zero_stage=3, gradient_checkpointing=False,
        )
        for kind in FROZEN
    ]  # fmt: skip
    (tmp_path / "cells.json").write_text(json.dumps(cells))
    launch_program("programs.cells", 2, tmp_path / "cells.json", timeout=1500)
    for kind in FROZEN:
        [state] = (tmp_path / f"{kind}-out" / "checkpoints").iterdir()
        export_state(state, tmp_path / f"{kind}-exported", False, iter)
        ours, theirs, base = (on_disk(tmp_path / f"{kind}{part}") for part in ("-out", "-exported", ""))
        assert ours.keys() == theirs.keys() == base.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), kind
        assert all(torch.equal(ours[name], value) for name, value in frozen[kind].items()), kind
        assert any(not torch.equal(ours[name], base[name]) for name in ours), kind


# What the tests below let a family say, with the reason; a reason that has become untrue fails them.
NO_TINY_MODEL = {
    "gemma3n": "its vision tower needs the package timm",
    "gemma4_assistant": "drafts tokens for another model, from that model's states",
    "gemma4_unified_assistant": "drafts tokens for another model, from that model's states",
    "musicgen": "writes codes of sound",
    "musicgen_melody": "writes codes of sound",
}
REMARKS = {
    ("youtu", "reloads"): "transformers sets the padding token's row to zero when it opens this family",
    ("prophetnet", "objective"): "beside padding its own gradient is another; row by row it is equal",
}


@pytest.fixture(scope="session")
def table(bpe_folder, tmp_path_factory) -> list[dict]:
    """A line for each family. Where ALIGNER_FAMILY_TABLE names a file for the table, lines are kept beside it as they come, and
    a run that was stopped goes on from them."""
    folder = tmp_path_factory.mktemp("families")
    target = os.environ.get("ALIGNER_FAMILY_TABLE")
    file = Path(target).absolute().with_suffix(".jsonl") if target else folder / "table.jsonl"
    done = {line["family"] for line in read_lines(file)}
    for some in batched([kind for kind in KINDS if kind not in done], 30):
        launch_program("programs.family_table", 1, folder / "work", bpe_folder, file, *some, timeout=3600)
    lines = sorted(read_lines(file), key=lambda line: KINDS.index(line["family"]))
    if target:
        Path(target).write_text(as_markdown(lines), encoding="utf-8")
    return lines


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def batched(kinds: list[str], size: int) -> list[list[str]]:
    return [kinds[start : start + size] for start in range(0, len(kinds), size)]


def as_markdown(lines: list[dict]) -> str:
    """The table as it stands in the room's MODELS.md, with its date and versions."""
    from datetime import UTC, datetime

    import deepspeed
    import transformers

    steps = ("trains", "objective", "names", "export", "reloads", "decodes")
    built = [line for line in lines if line["tiny"] == "yes"]
    trained = [line for line in built if line["trains"] in WAYS]
    text = [f"{datetime.now(UTC):%Y-%m-%d}, transformers {transformers.__version__}, torch {torch.__version__}, DeepSpeed "
            f"{deepspeed.__version__}, CPU, fp32. Of {len(lines)} causal families {len(built)} build as a tiny configuration, and "
            f"{len(trained)} of these are trained.", "",
            "| family | trains | loss, gradient | names on disk | export of a state | reloaded | decoding |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    text += [
        f"| {line['family']} | " + " | ".join(shown(line, step) for step in steps) + " |"
        for line in built if line in trained
    ]  # fmt: skip
    text += ["", "Not trained, in the program's own words:", ""]
    text += [f"- {line['family']}: {' '.join(line['trains'].split())}" for line in built if line not in trained]
    text += ["", "No tiny model here:", ""]
    text += [
        f"- {line['family']}: {NO_TINY_MODEL.get(line['family'], line['tiny'])}" for line in lines if line not in built
    ]
    return "\n".join(text) + "\n"


def shown(line: dict, step: str) -> str:
    """One cell."""
    value = line[step]
    if step == "objective" and not isinstance(value, str):
        value = "{:.0e}, {:.0e}".format(*value) + " (by its logits)" * (len(value) > 2)
    remark = REMARKS.get((line["family"], step))
    return str(value).replace("|", "/") + (f" ({remark})" if remark else "")


@pytest.mark.slow
def test_every_family_has_a_line_and_none_ends_in_a_traceback(table):
    assert [line["family"] for line in table] == KINDS
    assert {line["family"] for line in table if line["tiny"] != "yes"} == set(NO_TINY_MODEL)
    assert not [line for line in table if "ERROR" in json.dumps(line)]


@pytest.mark.slow
def test_what_is_trained_has_transformers_own_loss_and_gradient_and_comes_back_from_disk(table):
    trained = [line for line in table if line.get("trains") in WAYS]
    assert len(trained) > 175
    wrong = set()
    for line in trained:
        loss, gradient, *_ = line["objective"]
        fits = {
            "objective": loss < 1e-5 and gradient < 1e-4,
            "names": line["names"] in ("the base's", "the base's, of its text model", "its text model's"),
            "export": line["export"] == "equal", "reloads": line["reloads"] == "equal",
            "decodes": line["decodes"].startswith(("equal", "transformers' generate fails")),
        }  # fmt: skip
        wrong |= {(line["family"], step) for step, held in fits.items() if not held}
    assert wrong == set(REMARKS)
