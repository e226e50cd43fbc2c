"""One rank looks at the objective of several bases. Arguments: a JSON file of {name: folder}, and one for what was found."""

import json
import logging
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from aligner.models import load_config, load_model, quiet_libraries
from aligner.records import Origin, UserError
from aligner.training.datasets.supervised import Tokens
from aligner.training.distributed.ranks import connect
from aligner.training.engine.attention import supports
from aligner.training.engine.engine import Engine, load_partitioned
from aligner.training.engine.objective_check import check_objective
from aligner.training.engine.zero import deepspeed_config
from aligner.training.flags import parse
from aligner.training.plan import Plan


def look(folder: str, stage: int, rows: int, ranks) -> dict:
    """Whether rows are flattened in the end, what was said, and what was refused."""
    config = parse(["--zero_stage", str(stage), "--bf16", "False"])
    ds_config = deepspeed_config(config.optimization, config.launch, load_config(folder))
    model = load_partitioned(ds_config, partial(load_model, folder, torch.float32), lambda model: None)
    engine = Engine(model, ds_config, config.optimization, Plan(4, 4, 2, 1, 1, 0.0), supports(model), ranks)
    began, said, refused = engine.flat, [], ""
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("aligner").addHandler(handler)
    draw = np.random.default_rng(0)
    tokens = [Tokens(draw.integers(3, 590, n).astype(np.int32), 5, Origin("f", n), False, False) for n in (40, 20, 30)]
    try:
        check_objective(engine, tokens, rows, 0)
    except UserError as error:
        refused = str(error)
    logging.getLogger("aligner").removeHandler(handler)
    flat = engine.flat
    engine.close()
    return {"began": began, "flat": flat, "said": said, "refused": refused}


def main() -> None:
    quiet_libraries()
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    ranks = connect(-1)
    cells = json.loads(Path(arguments[0]).read_text())
    found = {name: look(folder, stage, rows, ranks) for name, (folder, stage, rows) in cells.items()}
    Path(arguments[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
