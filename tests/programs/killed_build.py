"""`aligner build` that is killed while it writes the file whose path ends as the first argument says."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import aligner.building.result as result
import aligner.building.stage as stage
from aligner.cli import main


def killing(write: Any, end: str) -> Any:
    """The same function, which kills this process once it has written that file."""

    def written(path: Any, *rest: Any) -> None:
        write(path, *rest)
        if str(path).endswith(end):
            os.kill(os.getpid(), signal.SIGKILL)

    return written


for module in (stage, result):
    for name in ("write_lines", "write_json", "write_text"):
        setattr(module, name, killing(getattr(module, name), sys.argv[1]))
sys.exit(main(sys.argv[2:]))
