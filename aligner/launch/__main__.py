"""`python -m aligner.launch FLAGS` starts a run."""

import sys

from aligner.surroundings import prepare_process

if __name__ == "__main__":
    prepare_process(sys.argv)  # before the libraries that read it
    from aligner.launch.launch import main

    sys.exit(main())
