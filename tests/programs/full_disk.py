"""Two ranks on a disk that is full though it looked free. Arguments: flags of a run."""

import shutil
import sys
from types import SimpleNamespace

from aligner.training.finetune.rank import main

shutil.disk_usage = lambda path: SimpleNamespace(free=1 << 40)  # what others write meanwhile, no check can see

if __name__ == "__main__":
    sys.exit(main())
