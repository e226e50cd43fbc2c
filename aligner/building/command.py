"""`aligner build`: from its flags to the job, and what is printed."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from aligner.building.build import BuildJob, build
from aligner.building.config_file import read_config
from aligner.building.result import TABLE
from aligner.console import progress
from aligner.inference.servers import ServerGone
from aligner.models import quiet_libraries
from aligner.records import UserError
from aligner.shipped import find_config
from aligner.terminal import print_errors, print_lines


@dataclass(frozen=True)
class BuildOptions:
    """The flags of `aligner build`."""

    config: str
    output: str
    annotations: tuple[str, ...] = ()
    dry_run: bool = False


def run_build(options: BuildOptions) -> int:
    """Build and print what came of it. Returns the exit status: 0, or 1 where people have to look at rows first."""
    quiet_libraries()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is handled as Ctrl-C
    file, output = find_config(options.config), Path(options.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is no folder. Name another --output.")
    job = BuildJob(read_config(file), file, output, print_lines, progress, options.annotations, options.dry_run)
    try:
        summary = build(job)
    except (KeyboardInterrupt, OSError, ServerGone):
        replies = output / "replies" / "replies.jsonl"
        if replies.is_file() and replies.stat().st_size:
            print_errors(f"replies are kept in {output}/replies: the same command goes on")
        raise
    if options.dry_run:
        print_lines("nothing was asked for (--dry_run)")
        return 0
    if summary.waiting:
        print_lines(
            f"{summary.waiting:,} {'row waits' if summary.waiting == 1 else 'rows wait'} for people: "
            + ", ".join(map(str, summary.files)),
            "load one of the files into its tool, then run the same command with --annotations EXPORT.json",
        )
        return 1
    print_lines(*(output / TABLE).read_text(encoding="utf-8").splitlines(), f"train with --train_datasets {output}")
    return 0
