"""Two ranks on a disk that takes a second for each file of a resume state. Arguments: flags of a run."""

import sys
import time
from pathlib import Path

from aligner.files import sync
from aligner.training.checkpoint import state_writer
from aligner.training.finetune.rank import main


def slow_sync(file: Path) -> None:
    """Wait for the disk, and a second longer."""
    time.sleep(1)
    sync(file)


state_writer.sync = slow_sync

if __name__ == "__main__":
    sys.exit(main())
