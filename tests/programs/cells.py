"""Train many settings in one launch: argument 1 is a JSON file with a list of flags per cell, 2 a shard's size in bytes."""

import json
import sys
from pathlib import Path

from aligner.models import quiet_libraries
from aligner.training.checkpoint import save_and_load
from aligner.training.distributed.hardware import resolved
from aligner.training.distributed.ranks import connect
from aligner.training.finetune.run import train_run
from aligner.training.flags import parse


def main() -> None:
    quiet_libraries()
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    usual = save_and_load.SHARD_BYTES
    save_and_load.SHARD_BYTES = int(arguments[1]) if len(arguments) > 1 else usual
    for flags in json.loads(Path(arguments[0]).read_text()):
        config = resolved(parse(flags))
        train_run(config, connect(config.launch.local_rank))
    save_and_load.SHARD_BYTES = usual  # the ranks stay for another test


if __name__ == "__main__":
    main()
