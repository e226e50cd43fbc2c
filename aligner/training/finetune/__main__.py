"""`deepspeed --module aligner.training.finetune FLAGS` trains one stage."""

import sys

from aligner.training.finetune.run import main

if __name__ == "__main__":
    sys.exit(main())
