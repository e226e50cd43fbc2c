"""Train many settings in one launch: argument 1 is a JSON file with a list of flags per cell, 2 a shard's size in bytes."""

import json
import sys
from pathlib import Path

from aligner.models import quiet_libraries
from aligner.training.checkpoint import folder_writer
from aligner.training.distributed.hardware import resolved
from aligner.training.finetune.run import run_stage
from aligner.training.flags import parse
from aligner.training.stages import stages


def main() -> None:
    quiet_libraries()
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    if len(arguments) > 1:
        folder_writer.SHARD_BYTES = int(arguments[1])
    for flags in json.loads(Path(arguments[0]).read_text()):
        config = resolved(parse(flags))
        run_stage(config, stages(config)[-1])


if __name__ == "__main__":
    main()
