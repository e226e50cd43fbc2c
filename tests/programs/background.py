"""Two ranks whose resume states are written while they train on. Arguments: a model's folder, a folder to write into."""

import json
import resource
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import torch

from aligner.files import sync
from aligner.models import load_config, load_model, quiet_libraries
from aligner.records import Origin, UserError
from aligner.training.checkpoint import save_and_load, state_writer
from aligner.training.checkpoint.partitions import flat_tensors, moments
from aligner.training.checkpoint.resume import states
from aligner.training.checkpoint.state_writer import StateWriter
from aligner.training.config import OutputConfig
from aligner.training.datasets.supervised import Tokens
from aligner.training.distributed.ranks import connect
from aligner.training.engine.batching import Layout, collate
from aligner.training.engine.engine import Engine, load_partitioned
from aligner.training.engine.zero import deepspeed_config
from aligner.training.flags import parse
from aligner.training.plan import Plan

SMALL = 20_000  # bytes: of a file's size, less than a tensor of a state


def build(folder: str) -> Engine:
    config = parse(["--zero_stage", "2", "--bf16", "False", "--lr", "0.1"])
    ds_config = deepspeed_config(config.optimization, config.launch, load_config(folder))
    model = load_partitioned(ds_config, partial(load_model, folder, torch.float32), lambda model: None)
    return Engine(model, ds_config, config.optimization, Plan(40, 4, 2, 2, 1, 0.0), True, connect(-1))


def numbers(engine: Engine) -> torch.Tensor:
    """This rank's masters and moments, in one."""
    flats = [tensor for flat in flat_tensors(engine) for tensor in (flat, *moments(engine, flat).values())]
    return torch.cat([tensor.detach().flatten().clone() for tensor in flats])


def main() -> None:
    quiet_libraries()
    folder, out = (a for a in sys.argv[1:] if not a.startswith("--local_rank"))
    engine, output = build(folder), Path(out)
    row = Tokens(np.arange(10, 30, dtype=np.int32), 8, Origin("rows.json", 1), False, False)
    writer = StateWriter(engine, output, {"card": {}}, OutputConfig(save_interval=2, save_total_limit=1), False)
    go, told = threading.Event(), {}

    def update() -> list[bool]:
        _, signals = engine.accumulate(
            [collate([row], [1 / 24], Layout(True, 1, 100, 0))], lambda: [writer.is_writing()]
        )
        engine.update()
        return signals

    def slow(file: Path) -> None:
        assert go.wait(60)
        sync(file)

    def names() -> list[str]:
        return sorted(path.name for path in (output / "checkpoints").glob("*"))

    state_writer.sync = slow if engine.ranks.rank == 1 else sync  # the disk of one rank answers late
    update()
    saved = numbers(engine)
    writer.begin(1)
    told["while_one_writes"] = [*update(), not torch.equal(saved, numbers(engine)), names()]
    go.set()
    writer.settle()
    told["when_it_is_whole"] = names()
    save_and_load.load(engine, states(output)[-1])
    told["as_it_was"] = torch.equal(saved, numbers(engine))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if engine.ranks.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, limits[1]))
    writer.begin(2)
    update()
    try:
        writer.settle()
    except UserError as error:
        told["failure"] = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told["after_it"] = [path.name for path in states(output)]

    state_writer.spare_memory = lambda: 0
    writer.begin(3)
    told["without_memory"] = writer.is_writing()
    update()
    writer.settle()
    told["at_last"] = names()
    (output / f"told-{engine.ranks.rank}.json").write_text(json.dumps(told))
    engine.close()


if __name__ == "__main__":
    main()
