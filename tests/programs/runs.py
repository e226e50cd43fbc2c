"""Ranks that make one run after another. Argument 1 is a JSON file: a list of flags for each run."""

import json
import sys
from pathlib import Path

from aligner.models import quiet_libraries
from aligner.training.distributed.hardware import resolved
from aligner.training.finetune.run import run_stage
from aligner.training.flags import parse
from aligner.training.stages import stages


def main() -> None:
    quiet_libraries()
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    for flags in json.loads(Path(arguments[0]).read_text()):
        config = resolved(parse(flags))
        run_stage(config, stages(config)[-1])


if __name__ == "__main__":
    main()
