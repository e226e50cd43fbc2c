"""`deepspeed --module aligner.training.finetune FLAGS` trains one stage."""

import sys

from aligner.surroundings import prepare_process

if __name__ == "__main__":
    prepare_process(sys.argv)  # before the libraries that read it
    from aligner.training.finetune.run import main

    sys.exit(main())
