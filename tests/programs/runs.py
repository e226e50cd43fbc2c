"""Ranks that make one run after another. Argument 1 is a JSON file: a list of flags for each run."""

import json
import sys
from pathlib import Path

from aligner.models import quiet_libraries
from aligner.training.distributed.hardware import resolved
from aligner.training.distributed.ranks import connect
from aligner.training.finetune.run import train_run
from aligner.training.flags import parse


def main() -> None:
    quiet_libraries()
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    for flags in json.loads(Path(arguments[0]).read_text()):
        config = resolved(parse(flags))
        train_run(config, connect(config.launch.local_rank))


if __name__ == "__main__":
    main()
