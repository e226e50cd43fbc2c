"""A resume state that is not as it was written is noticed before anything is made of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attacks import try_all
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from aligner.records import UserError
from aligner.training.checkpoint.export import trained_weights
from aligner.training.checkpoint.resume import read_state

pytestmark = pytest.mark.attacks
Fault = Callable[[Path], None]


@pytest.fixture(scope="module")
def state(trained) -> Path:
    [last] = (trained[0] / "checkpoints").iterdir()
    return last


def flip(name: str, place: float, bit: int = 0) -> Fault:
    """One bit of the file, at a share of its length from 0 to 1."""

    def harm(state: Path) -> None:
        content = bytearray((state / name).read_bytes())
        content[int(place * (len(content) - 1))] ^= 1 << bit
        (state / name).write_bytes(content)

    return harm


def edit(name: str, change: Callable[[bytes], bytes]) -> Fault:
    def harm(state: Path) -> None:
        (state / name).write_bytes(change((state / name).read_bytes()))

    return harm


def other_type(name: str, dtype: torch.dtype) -> Fault:
    """The same bytes as numbers of another type."""
    return lambda state: save_file({"flat": load_file(state / name)["flat"].view(dtype)}, state / name)


def swap(one: str, other: str) -> Fault:
    def harm(state: Path) -> None:
        (state / one).replace(state / "aside")
        (state / other).replace(state / one)
        (state / "aside").replace(state / other)

    return harm


def faults(state: Path) -> dict[str, Fault]:
    """Two ranks' tensors, indices and checksums, and the description: bits, cuts, exchanges, losses."""
    found: dict[str, Fault] = {}
    for rank in ("rank-00000", "rank-00001"):
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            name = f"{rank}/{kind}-0.safetensors"
            found |= {f"{name}: bit at {place}": flip(name, place) for place in (0.3, 0.5, 0.99, 1.0)}
            found[f"{name}: cut"] = edit(name, lambda content: content[:-8])
        weight, moment = f"{rank}/weight-0.safetensors", f"{rank}/exp_avg-0.safetensors"
        found[f"{rank}: weights and moments exchanged"] = swap(weight, moment)
        found[f"{rank}: numbers of another type"] = other_type(weight, torch.int32)
        found[f"{rank}: zeros"] = edit(weight, lambda content: content[:200] + bytes(len(content) - 200))
        found[f"{rank}: sign bit"] = flip(weight, 1.0, 7)
        found[f"{rank}: header"] = flip(weight, 0.0)
        for name in ("pieces.json", "checksums.json"):
            found |= {f"{rank}/{name}: bit at {place}": flip(f"{rank}/{name}", place) for place in (0.1, 0.5, 0.9)}
            found[f"{rank}/{name}: empty"] = edit(f"{rank}/{name}", lambda content: b"")
        found[f"{rank}: checksums lost"] = lambda state, rank=rank: (state / rank / "checksums.json").unlink()
        found[f"{rank}: lost"] = lambda state, rank=rank: shutil.rmtree(state / rank)
    found["ranks exchanged"] = swap("rank-00000/weight-0.safetensors", "rank-00001/weight-0.safetensors")
    found |= {f"state.json: bit at {place}": flip("state.json", place) for place in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
    moves = json.loads((state / "state.json").read_text())["moves"]
    found["state.json: another count of steps"] = edit(
        "state.json", lambda content: content.replace(f'"moves": {moves}'.encode(), b'"moves": 9')
    )
    found["COMPLETED: another digest"] = edit("COMPLETED", lambda content: b"0" * 64)
    found["COMPLETED: empty"] = edit("COMPLETED", lambda content: b"")
    return found


def read(state: Path, model: torch.nn.Module) -> None:
    """What resume and export read: the description, every weight, every moment. UserError where something is wrong."""
    read_state(state)
    with trained_weights(model, state, master=True) as fetch:  # type: ignore[arg-type]
        for name, _ in model.named_parameters():
            fetch(name)
    try:
        from aligner.training.checkpoint.checksums import state_reader
    except ImportError:  # an earlier revision
        for file in state.glob("rank-*/exp_avg*"):
            with safe_open(file, framework="pt") as opened:
                opened.get_slice("flat")[:]
        return
    with state_reader(state) as flat:
        for file in state.glob("rank-*/exp_avg*"):
            flat(file)


QUICK = (
    "rank-00000/weight-0.safetensors: bit at 0.5",
    "rank-00001: checksums lost",
    "state.json: another count of steps",
)


def test_a_fault_in_a_state_is_noticed(state, tiny_model, tmp_path):
    every = faults(state)
    notice({name: every[name] for name in QUICK}, state, tiny_model, tmp_path)


@pytest.mark.slow
def test_every_other_fault_in_a_state_is_noticed(state, tiny_model, tmp_path):
    notice({name: fault for name, fault in faults(state).items() if name not in QUICK}, state, tiny_model, tmp_path)


def notice(members: dict[str, Fault], state: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Each of these faults, in a copy of the state, is an error of the readers."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    read(state, model)

    def noticed(fault: Fault) -> str:
        copied = tmp_path / "update-1"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(state, copied)
        fault(copied)
        try:
            read(copied, model)
        except (
            UserError,
            OSError,
            ValueError,
            SafetensorError,
        ) as error:  # as the readers of resume and export name them
            return "" if str(error) else "no word"
        return "not noticed"

    try_all("a fault in a resume state", members, noticed)


def test_a_state_from_before_checksums_goes_on_with_one_warning(state, tiny_model, tmp_path, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("aligner"), "propagate", True)
    copied = Path(shutil.copytree(state, tmp_path / "update-1"))
    description = json.loads((copied / "state.json").read_text())
    del description["checksums"]
    (copied / "state.json").write_text(json.dumps(description))
    os.truncate(copied / "COMPLETED", 0)
    for file in copied.glob("rank-*/checksums.json"):
        file.unlink()
    read_state(copied)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with trained_weights(model, copied, master=True) as fetch:
        whole = [fetch(name) for name, _ in model.named_parameters()]
    said = {id(record): record.message for record in caplog.records if "has no checksums" in record.message}
    assert whole and list(said.values()) == [  # a record is caught twice where an earlier test left a handler
        f"{copied} has no checksums (an earlier version wrote it): whether it is damaged cannot be seen"
    ]
