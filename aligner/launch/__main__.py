"""`python -m aligner.launch FLAGS` starts a run."""

import sys

from aligner.launch.launch import main

if __name__ == "__main__":
    sys.exit(main())
