"""Every causal family that the installed transformers has, as a tiny model: trained, written, read again, decoded.

Arguments: a folder to work in, a tokenizer's folder, a file for the table (JSON lines), and model types (none: all).
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from families import KINDS, save_tiny
from safetensors import safe_open

from aligner.inference.corrector import Corrector, Settings
from aligner.models import load_model, load_tokenizer, quiet_libraries
from aligner.records import Origin, UserError
from aligner.training.checkpoint.export import export_state
from aligner.training.datasets.supervised import Tokens
from aligner.training.distributed.hardware import resolved
from aligner.training.distributed.ranks import connect
from aligner.training.engine.batching import Layout, collate
from aligner.training.engine.objective import Objective
from aligner.training.finetune.run import train_run
from aligner.training.flags import parse

ROWS = [(3, 9), (1, 4), (12, 8)]  # tokens of prompt and correction
WAYS = ("flat", "padded", "row by row")
LIMIT = 120  # seconds of this process for a family, however busy the machine is
PAIRS = [("what is two and two?", "it is five"), ("who wrote it?", "nobody did, as far as is known")]


def main() -> None:
    quiet_libraries()
    folder, tokenizer, table, *kinds = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    signal.signal(signal.SIGPROF, too_long)
    for kind in kinds or KINDS:
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        began = time.process_time()
        line = {"family": kind, **look(kind, Path(folder) / kind, Path(tokenizer))}
        line["seconds"] = round(time.process_time() - began, 1)
        with Path(table).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shutil.rmtree(Path(folder) / kind, ignore_errors=True)


def too_long(number: int, frame: object) -> None:
    raise TimeoutError(f"more than {LIMIT} s")


def look(kind: str, folder: Path, tokenizer: Path) -> dict[str, Any]:
    """What becomes of one family; what could not be done is named in place of its figure."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        save_tiny(kind, tokenizer, folder / "base")
    except Exception as error:  # whatever a family asks for beyond sizes
        return {"tiny": short(error)}
    line: dict[str, Any] = {"tiny": "yes", "trains": step(trains, folder)}
    steps = {"objective": partial(objective, way=line["trains"]), "names": names, "export": export, "reloads": reloads,
             "decodes": decodes}  # fmt: skip
    for name, act in steps.items():
        line[name] = step(act, folder) if line["trains"] in WAYS else "-"
    return line


def step(act: Callable[[Path], Any], folder: Path) -> Any:
    """What one step gives, or why it gives nothing."""
    try:
        return act(folder)
    except UserError as error:
        return f"refused: {str(error).replace(f'{folder}/', '')}"
    except Exception as error:
        traceback.print_exc()
        return f"ERROR {short(error)}"


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def trains(folder: Path) -> str:
    """Two updates of the real program, which pads rows where it must. Where it refuses to, row by row, as it then advises."""
    rows = [{"question": q, "answer": a, "correction": a.upper()} for q, a in PAIRS * 4]
    (folder / "rows.json").write_text(json.dumps(rows))
    try:
        run(folder, rows_at_once=4)
    except UserError as error:
        if "--per_device_train_batch_size 1" not in str(error):
            raise
        run(folder, rows_at_once=1)
        return "row by row"
    return "padded" if "rows are padded" in (folder / "out" / "train.log").read_text() else "flat"


def run(folder: Path, rows_at_once: int) -> None:
    """A run of one stage, in fp32."""
    flags = {"train_datasets": folder / "rows.json", "model_name_or_path": folder / "base", "output_dir": folder / "out",
             "epochs": 1, "records_per_update": 4, "per_device_train_batch_size": rows_at_once, "max_length": 128, "lr": 1e-3,
             "per_device_eval_batch_size": rows_at_once,
             "bf16": False, "gradient_checkpointing": False, "log_type": "none", "lr_warmup_ratio": 0,
             "save_interval": 2, "zero_stage": 2}  # fmt: skip
    shutil.rmtree(folder / "out", ignore_errors=True)
    config = resolved(parse([part for name, value in flags.items() for part in (f"--{name}", str(value))]))
    train_run(config, connect(config.launch.local_rank))


def objective(folder: Path, way: str) -> list[float]:
    """The loss and its gradient, in the layout that the run had, against transformers' own of each row alone: relative
    differences. Against that by its logits, and a third number, that difference, where its own loss is another (an
    encoder-decoder's decoder does not shift labels)."""
    torch.manual_seed(0)
    model = load_model(str(folder / "base"), torch.float32).eval()
    draw = np.random.default_rng(1)
    rows = [Tokens(draw.integers(3, 590, p + t).astype(np.int32), p, Origin("f", 1), False, False) for p, t in ROWS]

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    own, by_logits = torch.zeros(()), torch.zeros(())
    for row in rows:
        ids, labels = torch.from_numpy(row.ids).long()[None], torch.tensor([row.labels()])
        try:
            output = model(input_ids=ids, labels=labels, use_cache=False)
        except ValueError:  # GIT's takes off the image that it believes to be there
            output = model(input_ids=ids, use_cache=False)
        own = own + (output.loss if "loss" in output else torch.nan) * row.target_length
        by_logits = by_logits + F.cross_entropy(
            output.logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"
        )
    other = float(abs(own - by_logits) / by_logits)  # NaN where it has none of its own
    theirs = own if other < 1e-5 else by_logits
    their_gradient = gradient(theirs)
    flat = way == "flat"
    parts = [[row] for row in rows] if way == "row by row" else [rows]
    compute = Objective(model, flat)
    ours = sum(compute(collate(part, [1.0] * len(part), Layout(flat, len(part), 0, 0))) for part in parts)
    our_gradient = gradient(ours)
    errors = [abs(ours - theirs) / theirs, (our_gradient - their_gradient).norm() / their_gradient.norm()]
    errors += [] if other < 1e-5 else [other]
    return [float(f"{float(error):.1e}") for error in errors]


def on_disk(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder by name."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def names(folder: Path) -> str:
    """Whether the finished folder has the base's names and shapes, or those of the language model inside it."""
    out, base = ({name: t.shape for name, t in on_disk(folder / part).items()} for part in ("out", "base"))
    if out == base:
        return "the base's"
    if out.items() < base.items():
        return "the base's, of its text model"
    if out.items() < {name.removeprefix("language_model."): shape for name, shape in base.items()}.items():
        return "its text model's"
    strange = sorted(out.items() ^ base.items())
    return f"{len(strange)} others: {strange[0][0]}"


def export(folder: Path) -> str:
    """Whether the exported state is the finished folder, bit for bit."""
    [state] = (folder / "out" / "checkpoints").iterdir()
    export_state(state, folder / "exported", False, iter)
    ours, theirs = on_disk(folder / "exported"), on_disk(folder / "out")
    same = set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    configs = [(folder / part / "config.json").read_text() for part in ("exported", "out")]
    return "equal" if same and configs[0] == configs[1] else "DIFFERS"


def reloads(folder: Path) -> str:
    """Whether the folder opens with the numbers that lie in it, and computes with each of them."""
    model = load_model(str(folder / "out"), torch.float32).eval()
    again = folder / "again"
    model.save_pretrained(again)
    ours, theirs = on_disk(folder / "out"), on_disk(again)
    same = set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ids = torch.arange(5, 17)[None]
    logits = [m(input_ids=ids, use_cache=False).logits for m in (model, load_model(str(again), torch.float32).eval())]
    return "equal" if same and torch.equal(*logits) else "DIFFERS"


def decodes(folder: Path) -> str:
    """Whether corrections are those of transformers' greedy `generate`, row by row."""
    corrector = Corrector.load(str(folder / "out"), None, Settings(2, 12), dtype="float32")
    tokenizer, model = load_tokenizer(str(folder / "out")), corrector.model
    texts = []
    for question, answer in PAIRS:
        [(prompt, _, _)] = corrector.encoder.pairs([corrector.template.render(question, answer)], [answer])
        try:
            output = model.generate(
                torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id
            )
        except Exception as error:  # whatever: nobody decodes with this model in this version
            return f"transformers' generate fails ({short(error)})"
        texts.append(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))
    ours = [corrected.text for corrected in corrector.correct(PAIRS)]
    way = "" if corrector.decoder else ", without drafts"
    return ("equal" if ours == texts else "DIFFERS") + way


if __name__ == "__main__":
    main()
