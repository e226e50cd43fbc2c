"""Ranks that stay for one job after another, so that tests share a launch. Argument 1 is a folder.

Job N is `N.json` in it, a module and its arguments, and the module runs as a program would. Each rank leaves its exit status in
`N-RANK.status` and what it printed in `N-RANK.log`. A file `end` ends the ranks; a job that fails ends them too, for it may
have left the others anywhere.
"""

import gc
import json
import os
import runpy
import sys
import time
import traceback
from itertools import count
from pathlib import Path

from aligner.training.distributed.ranks import connect

PAUSE = 0.01  # seconds between two looks


def run(module: str, arguments: list[str]) -> int:
    """The exit status of a module that runs as a program in this process."""
    sys.argv = [module, *arguments]
    gc.freeze()  # what was imported is never garbage: each collection of a run would look through half a million objects
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    folder = Path(next(a for a in sys.argv[1:] if not a.startswith("--local_rank")))
    rank, launcher, owner = connect(-1).rank, os.getppid(), Path("/proc") / os.environ["OWNER"]  # whose tests these are
    for number in count():
        job = folder / f"{number}.json"
        while not job.exists():
            if (folder / "end").exists() or os.getppid() != launcher or not owner.exists():
                return
            time.sleep(PAUSE)
        with (folder / f"{number}-{rank}.log").open("w") as stream:
            for descriptor in (1, 2):
                os.dup2(stream.fileno(), descriptor)
        status = run(*json.loads(job.read_text()))
        sys.stdout.flush()
        sys.stderr.flush()
        partial = folder / f"{number}-{rank}.partial"
        partial.write_text(str(status))
        partial.rename(partial.with_suffix(".status"))
        if status == 1:
            os._exit(1)


if __name__ == "__main__":
    main()
