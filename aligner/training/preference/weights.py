"""The weights of a trained folder, read back and compared with those it started from: whole, finite, and not the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from aligner.models import load_model
from aligner.records import UserError

Read = Callable[[str], torch.Tensor]
HEADS = ("lm_head.weight", "score.weight")  # what a model that scores has not, and has instead


@contextmanager
def _tensors(folder: Path) -> Iterator[dict[str, Read]]:
    """How to read each tensor of a folder's safetensors, by name; none where there are no such files."""
    with ExitStack() as stack:
        readers: dict[str, Read] = {}
        for file in sorted(folder.glob("model*.safetensors")):
            opened = stack.enter_context(safe_open(file, framework="pt"))
            readers |= dict.fromkeys(opened.keys(), opened.get_tensor)
        yield readers


@contextmanager
def _start(base: str, trust_remote_code: bool) -> Iterator[dict[str, Read]]:
    """The tensors that training started from: of a folder with safetensors read one by one, else of the loaded model."""
    with _tensors(Path(base)) as readers:
        if readers:
            yield readers
            return
    model = load_model(base, torch.float32, trust_remote_code)
    state = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    yield {name: state.__getitem__ for name in state if name not in tied}


def check_weights(folder: Path, base: str, reward: bool, trust_remote_code: bool = False) -> int:
    """UserError where the folder's weights lack a tensor of the base or have another, one has another shape or holds what is no
    finite number, or all are as they were. reward: the head for words gave way to one that scores. Returns how many differ."""
    try:
        with _tensors(folder) as trained, _start(base, trust_remote_code) as start:
            names = {name for name in trained if not reward or name not in HEADS}
            expected = {name for name in start if not reward or name not in HEADS}
            if missing := sorted(expected - names):
                raise _broken(folder, f"{len(missing)} of {len(expected)} tensors are missing, {missing[0]} among them")
            if more := sorted(names - expected):
                raise _broken(folder, f"it has {more[0]}, which {base} has not")
            if reward and HEADS[1] not in trained:
                raise _broken(folder, f"{HEADS[1]}, which scores, is missing")
            differ = sum(_differs(folder, name, trained[name](name), start[name](name)) for name in sorted(names))
    except (SafetensorError, OSError) as error:
        raise _broken(folder, " ".join(str(error).split())[:200]) from error
    if not differ:
        raise UserError(
            f"{folder}: training left all {len(names)} tensors as they were in {base}. Raise --lr or --epochs, or give more rows."
        )
    return differ


def _differs(folder: Path, name: str, now: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether a tensor differs from its start, in the type that it was saved in."""
    if now.shape != before.shape:
        raise _broken(folder, f"{name} is {list(now.shape)} and was {list(before.shape)}")
    if not torch.isfinite(now).all():
        raise UserError(
            f"{folder}: {name} holds what is no finite number: training diverged. Lower --lr and train anew."
        )
    return not torch.equal(now, before.to(now.dtype))


def _broken(folder: Path, finding: str) -> UserError:
    return UserError(f"{folder}: its weights are not whole: {finding}. Remove it and train anew.")
