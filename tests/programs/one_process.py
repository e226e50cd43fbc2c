"""One rank in which one engine follows another, and one stage another. Arguments: a model's folder, a folder to train into."""

import gc
import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from conftest import TEMPLATE
from deepspeed.runtime.zero import parameter_offload

from aligner.files import is_completed
from aligner.models import load_config, load_model, quiet_libraries
from aligner.records import Correction, Origin
from aligner.training.datasets.supervised import Tokens
from aligner.training.distributed.hardware import resolved
from aligner.training.distributed.launcher_variables import single_rank
from aligner.training.distributed.ranks import Ranks, connect
from aligner.training.distributed.stop_signals import Stopped
from aligner.training.engine.batching import Layout, collate
from aligner.training.engine.engine import Engine, load_partitioned, release_memory
from aligner.training.engine.recompute import recompute_activations
from aligner.training.engine.zero import deepspeed_config
from aligner.training.finetune.run import train_run
from aligner.training.flags import parse
from aligner.training.plan import Plan
from aligner.training.train_log import read_log


def live_bytes() -> int:
    """Bytes of all tensors that anything in this process still holds."""
    release_memory()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def records_held() -> int:
    """Records that anything in this process still holds as text."""
    return sum(type(thing) is Correction for thing in gc.get_objects())


def one_update(folder: str, stage: int, ranks: Ranks) -> tuple[int, int]:
    """An engine's life: built, one update with recomputing, closed. Returns the bytes that lived while it did, and how many
    modules DeepSpeed took to be in their forward pass when none was."""
    config = parse(["--zero_stage", str(stage), "--bf16", "False"])
    ds_config = deepspeed_config(config.optimization, config.launch, load_config(folder))
    ds_config["zero_optimization"]["reduce_bucket_size"] = 100_000  # the default is 2 GB, whatever the model
    model = load_partitioned(ds_config, partial(load_model, folder, torch.float32), lambda model: None)
    recompute_activations(model, "all")
    engine = Engine(model, ds_config, config.optimization, Plan(1, 1, 1, 1, 1, 0.0), True, ranks)
    row = Tokens(np.arange(10, 30, dtype=np.int32), 8, Origin("rows.json", 1), False, False)
    engine.accumulate([collate([row], [1 / 12], Layout(True, 1, 100, 0))])
    engine.update()
    during, stacked = live_bytes(), len(parameter_offload.FWD_MODULE_STACK)
    engine.close()
    return during, stacked


def stop_between_stages(folder: str, out: Path, ranks: Ranks) -> dict[str, object]:
    """A run that is asked to stop when its warm-up is complete, and started again."""
    flags = [
        "--model_name_or_path",
        folder,
        "--train_datasets",
        f"correction-json:16/-1:{TEMPLATE}",
        "--output_dir",
        str(out),
    ]
    flags += [
        "--records_per_update",
        "8",
        "--epochs",
        "1",
        "--max_length",
        "512",
        "--log_type",
        "none",
        "--bf16",
        "False",
    ]
    config = resolved(parse([*flags, "--identity_proportion", "1"]))
    text = ""
    try:
        train_run(config, ranks, lambda: is_completed(out / "identity"))
    except Stopped as stopped:
        text = str(stopped)
    warm_up, left = read_log(out / "identity"), [path.name for path in out.iterdir()]
    held: list[int] = []  # at each update
    train_run(config, ranks, lambda: bool(held.append(records_held())))
    same = read_log(out / "identity") == warm_up
    return {"text": text, "left": left, "warm_up_untouched": same, "updates": len(read_log(out)), "held": held}


def main() -> None:
    quiet_libraries()
    os.environ.update(single_rank())
    ranks = connect(-1)
    before = live_bytes()
    lives = [(stage, *one_update(sys.argv[1], stage, ranks), live_bytes() - before) for stage in (3, 3, 2)]
    stopped = stop_between_stages(sys.argv[1], Path(sys.argv[2]), ranks)
    print(json.dumps({"lives": lives, "after_a_run": live_bytes() - before, **stopped}))


if __name__ == "__main__":
    main()
