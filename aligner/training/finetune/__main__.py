"""`deepspeed --module aligner.training.finetune FLAGS` trains, as one of the ranks."""

import sys

from aligner.training.finetune.rank import main

if __name__ == "__main__":
    sys.exit(main())
