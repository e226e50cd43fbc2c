"""One rank that trains with weights of 4 bits on a CPU, where users are refused. Argument 1: a JSON file of flags for each run."""

import json
import sys
from pathlib import Path

import bitsandbytes.nn.modules as kernels

from aligner.models import quiet_libraries
from aligner.training.distributed.ranks import connect
from aligner.training.finetune.run import train_run
from aligner.training.flags import parse


def main() -> None:
    quiet_libraries()
    kernels.has_avx512bf16 = lambda: False  # on a CPU that has it, evaluating rounds the scales to bf16 for good
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank")]
    for flags in json.loads(Path(arguments[0]).read_text()):
        train_run(parse(flags), connect(-1))


if __name__ == "__main__":
    main()
