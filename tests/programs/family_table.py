"""Every causal family that the installed transformers has, as a tiny model: trained, written, read again, decoded.

Arguments: a folder to work in, a tokenizer's folder, a file for the table (JSON lines), and model types (none: all).
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import traceback
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
from aligner.training.engine.attention import supports
from aligner.training.engine.batching import Layout, collate
from aligner.training.engine.objective import Objective
from aligner.training.finetune.run import train_run
from aligner.training.flags import parse

ROWS = [(3, 9), (1, 4), (12, 8)]  # tokens of prompt and correction
LIMIT = 180  # seconds for a family
PAIRS = [("what is two and two?", "it is five"), ("who wrote it?", "nobody did, as far as is known")]


def main() -> None:
    quiet_libraries()
    folder, tokenizer, table, *kinds = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    signal.signal(signal.SIGALRM, too_long)
    for kind in kinds or KINDS:
        signal.alarm(LIMIT)
        line = {"family": kind, **look(kind, Path(folder) / kind, Path(tokenizer))}
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
    line: dict[str, Any] = {"tiny": "yes"}
    steps = {"objective": objective, "trains": trains, "names": names, "export": export, "reloads": reloads,
             "decodes": decodes}  # fmt: skip
    for step, act in steps.items():
        if step in ("names", "export", "reloads", "decodes") and line["trains"] not in ("flat", "padded"):
            line[step] = "-"
            continue
        try:
            line[step] = act(folder)
        except UserError as error:
            line[step] = f"refused: {str(error).replace(str(folder), '')[:300]}"
        except Exception as error:
            traceback.print_exc()
            line[step] = f"ERROR {short(error)}"
    return line


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def objective(folder: Path) -> list[float]:
    """The loss and its gradient against transformers' own of each row alone: relative differences. Against that by its logits,
    and a third number, that difference, where its own loss is another (an encoder-decoder's decoder does not shift labels)."""
    torch.manual_seed(0)
    model = load_model(str(folder / "base"), torch.float32).eval()
    draw = np.random.default_rng(1)
    rows = [Tokens(draw.integers(3, 590, p + t).astype(np.int32), p, Origin("f", 1), False, False) for p, t in ROWS]
    flat = supports(model)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    theirs, by_logits = torch.zeros(()), torch.zeros(())
    for row in rows:
        ids, labels = torch.from_numpy(row.ids).long()[None], torch.tensor([row.labels()])
        made = model(input_ids=ids, labels=labels, use_cache=False)
        theirs = theirs + made.loss * row.target_length
        by_logits = by_logits + F.cross_entropy(made.logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
    other = float(abs(theirs - by_logits) / by_logits)
    their_gradient = gradient(theirs if other < 1e-5 else by_logits)
    ours = Objective(model, flat)(collate(rows, [1.0] * len(rows), Layout(flat, 3, 0, 0)))
    our_gradient = gradient(ours)
    theirs = theirs if other < 1e-5 else by_logits
    errors = [abs(ours - theirs) / theirs, (our_gradient - their_gradient).norm() / their_gradient.norm()]
    errors += [] if other < 1e-5 else [other]
    return [float(f"{float(error):.1e}") for error in errors]


class Heard(logging.Handler):
    """What a run says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def trains(folder: Path) -> str:
    """Two updates of the real program: without padding or with."""
    rows = [{"question": q, "answer": a, "correction": a.upper()} for q, a in PAIRS * 4]
    (folder / "rows.json").write_text(json.dumps(rows))
    flags = {"train_datasets": folder / "rows.json", "model_name_or_path": folder / "base", "output_dir": folder / "out",
             "epochs": 1, "records_per_update": 4, "per_device_train_batch_size": 4, "max_length": 128, "lr": 1e-3,
             "bf16": False, "gradient_checkpointing": False, "log_type": "none", "lr_warmup_ratio": 0,
             "save_interval": 2, "zero_stage": 2}  # fmt: skip
    config = resolved(parse([part for name, value in flags.items() for part in (f"--{name}", str(value))]))
    heard = Heard()
    logging.getLogger("aligner").addHandler(heard)
    logging.getLogger("aligner").setLevel(logging.INFO)
    try:
        train_run(config, connect(config.launch.local_rank))
    finally:
        logging.getLogger("aligner").removeHandler(heard)
    return "padded" if any("rows are padded" in line for line in heard.lines) else "flat"


def on_disk(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder by name."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def names(folder: Path) -> str:
    """Whether the finished folder has the base's names and shapes."""
    out, base = ({name: t.shape for name, t in on_disk(folder / part).items()} for part in ("out", "base"))
    strange = sorted(out.items() ^ base.items())
    return "the base's" if not strange else f"{len(strange)} others: {strange[0][0]}"


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
        made = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id
        )
        texts.append(tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True))
    ours = [corrected.text for corrected in corrector.correct(PAIRS)]
    way = "" if corrector.decoder else ", without drafts"
    return ("equal" if ours == texts else "DIFFERS") + way


if __name__ == "__main__":
    main()
