"""Two ranks: runs that are stopped and gone on with, and gradients that are not finite. Argument 1 is a JSON file."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from aligner.files import COMPLETED
from aligner.models import load_config, load_model, quiet_libraries
from aligner.records import Origin, UserError
from aligner.training.datasets.supervised import Tokens
from aligner.training.distributed.hardware import resolved
from aligner.training.distributed.ranks import connect
from aligner.training.engine.batching import Layout, collate
from aligner.training.engine.engine import Engine, gathered, load_partitioned
from aligner.training.engine.zero import deepspeed_config
from aligner.training.finetune.run import train_run
from aligner.training.flags import parse
from aligner.training.plan import Plan


def run(flags, folder):
    config = resolved(parse([*flags, "--output_dir", str(folder)]))
    train_run(config, connect(config.launch.local_rank))


def stop_after_two_updates(whole: Path, stopped: Path) -> None:
    """What a kill after the fifth of six updates leaves: the state of update 2, half a state, half a log line."""
    (stopped / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints" / "update-2", stopped / "checkpoints" / "update-2")
    shutil.copytree(whole / "checkpoints" / "update-4", stopped / "checkpoints" / "update-4.partial")
    (stopped / "checkpoints" / "update-4.partial" / COMPLETED).unlink()
    lines = (whole / "train_log.jsonl").read_text().splitlines(keepends=True)
    (stopped / "train_log.jsonl").write_text("".join(lines[:5]) + lines[5][:20])


def refuse_infinite_gradients(model_folder: str, stage: int) -> dict:
    """One rank's gradient becomes infinite: both must refuse the update, and no weight may move."""
    ranks = connect(-1)
    config = parse(["--zero_stage", str(stage), "--bf16", "False"])
    ds_config = deepspeed_config(config.optimization, config.launch, load_config(model_folder))
    model = load_partitioned(ds_config, partial(load_model, model_folder, torch.float32), lambda model: None)
    hook = None
    if ranks.rank == 1:
        hook = model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * float("inf"))
    engine = Engine(model, ds_config, config.optimization, Plan(4, 4, 2, 2, 1, 0.0), True, ranks)
    row = Tokens(np.arange(10, 30, dtype=np.int32), 8, Origin("rows.json", 1), False, False)

    def weights():
        with gathered(list(engine.model.parameters())):
            return torch.cat([p.detach().flatten().clone() for p in engine.model.parameters()])

    before = weights()
    try:
        engine.accumulate([collate([row], [1 / 24], Layout(True, 1, 100, 0))])
        refused = ""
    except FloatingPointError as error:
        refused = str(error)
    engine.skip()
    moved = not torch.equal(before, weights())
    if hook:
        hook.remove()
    torch.manual_seed(0)  # dropout
    heard = []  # the request comes while the last micro-batch is under way, and on one rank alone
    hook = engine.model.lm_head.weight.register_hook(lambda gradient: heard.append(ranks.rank == 1))
    _, [stop] = engine.accumulate([collate([row], [1 / 24], Layout(True, 1, 100, 0))], lambda: [any(heard)])
    hook.remove()
    rate, norm = engine.update()
    engine.close()
    return {"stage": stage, "refused": refused, "moved": moved, "rate": rate, "norm": norm, "stop": stop}


def main() -> None:
    quiet_libraries()
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    work = json.loads(Path(arguments[0]).read_text())
    ranks = connect(-1)
    for name, flags in work["runs"].items():
        whole, stopped = (Path(work["folder"]) / f"{name}-{kind}" for kind in ("whole", "stopped"))
        run([*flags, "--save_total_limit", "9"], whole)
        if ranks.first:
            stop_after_two_updates(whole, stopped)
        dist.barrier()
        run([*flags, "--save_total_limit", "1"], stopped)
    refused = [refuse_infinite_gradients(work["model"], stage) for stage in (0, 1, 2, 3)]
    try:  # each rank has a recipe of its own
        run([*next(iter(work["runs"].values())), "--seed", str(ranks.rank)], Path(work["folder"]) / "disagreed")
    except UserError as error:
        Path(work["folder"], f"disagreed-{ranks.rank}").write_text(str(error))
    Path(work["folder"], f"refused-{ranks.rank}.json").write_text(json.dumps(refused))


if __name__ == "__main__":
    main()
