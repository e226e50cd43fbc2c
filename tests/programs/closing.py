"""One rank that trains an engine, closes it, and trains the next. Argument: a model's folder. Prints the bytes that live."""

import gc
import json
import os
import sys
from functools import partial

import numpy as np
import torch

from aligner.models import load_config, load_model, quiet_libraries
from aligner.records import Origin
from aligner.training.datasets.supervised import Tokens
from aligner.training.distributed.launcher_variables import single_rank
from aligner.training.distributed.ranks import Ranks, connect
from aligner.training.engine.batching import Layout, collate
from aligner.training.engine.engine import Engine, load_partitioned, release_memory
from aligner.training.engine.zero import deepspeed_config
from aligner.training.flags import parse
from aligner.training.plan import Plan


def live_bytes() -> int:
    """Bytes of all tensors that anything in this process still holds."""
    release_memory()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def one_update(folder: str, stage: int, ranks: Ranks) -> int:
    """An engine's life: built, one update, closed. Returns the bytes that lived while it did."""
    config = parse(["--zero_stage", str(stage), "--bf16", "False"])
    ds_config = deepspeed_config(config.optimization, config.launch, load_config(folder))
    model = load_partitioned(ds_config, partial(load_model, folder, torch.float32), lambda model: None)
    engine = Engine(model, ds_config, config.optimization, Plan(1, 1, 1, 1, 1, 0.0), True, ranks)
    row = Tokens(np.arange(10, 30, dtype=np.int32), 8, Origin("rows.json", 1), False, False)
    engine.accumulate([collate([row], [1 / 12], Layout(True, 1, 100, 0))])
    engine.update()
    during = live_bytes()
    engine.close()
    return during


def main() -> None:
    quiet_libraries()
    os.environ.update(single_rank())
    ranks = connect(-1)
    before = live_bytes()
    lives = [(stage, one_update(sys.argv[1], stage, ranks), live_bytes() - before) for stage in (3, 3, 2)]
    print(json.dumps(lives))


if __name__ == "__main__":
    main()
