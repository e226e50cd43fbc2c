"""`python -m aligner.rounds KIND FOLDER` does the work of one stage, as `aligner rounds` starts it."""

import signal
import sys
from pathlib import Path

from aligner.records import UserError
from aligner.surroundings import prepare_process
from aligner.terminal import prepare_streams, print_errors

if __name__ == "__main__":
    prepare_streams()
    prepare_process(sys.argv)  # before the libraries that read it
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is Ctrl-C
    try:
        from aligner.rounds.work import run_kind

        run_kind(sys.argv[1], Path(sys.argv[2]))
    except UserError as error:
        print_errors(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        print_errors("stopped")
        sys.exit(130)
