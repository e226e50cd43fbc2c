"""`deepspeed --module aligner.training.finetune FLAGS` trains, as one of the ranks."""

import sys

from aligner.surroundings import prepare_process

if __name__ == "__main__":
    prepare_process(sys.argv)  # before the libraries that read it
    from aligner.training.finetune.rank import main

    sys.exit(main())
