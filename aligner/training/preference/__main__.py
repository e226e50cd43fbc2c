"""`deepspeed --module aligner.training.preference FLAGS` trains by TRL, as one of the ranks."""

import sys

from aligner.surroundings import prepare_process

if __name__ == "__main__":
    prepare_process(sys.argv)  # before the libraries that read it
    from aligner.training.finetune.rank import main
    from aligner.training.preference.run import train_preference

    sys.exit(main(train=train_preference))
