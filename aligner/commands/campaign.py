"""`aligner campaign CONFIG.yaml`, and `bash scripts/evaluate.sh`: it knows the flags of the commands that it runs."""

from __future__ import annotations

import argparse
import difflib
import signal
from collections.abc import Callable

from aligner.commands.correct import add_flags as correct_flags
from aligner.commands.evaluate import add_flags as evaluate_flags
from aligner.evaluation.campaign import Campaign, read_campaign, run_campaign
from aligner.evaluation.subprocess_step import Flags
from aligner.records import UserError
from aligner.shipped import find_config

GIVEN = {"input", "output", "after", "dimensions"}  # flags that the campaign itself sets


def flags_of(add_flags: Callable[[argparse.ArgumentParser], None]) -> set[str]:
    """The names of a command's flags without those that the campaign itself sets."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    return {action.dest for action in parser._actions} - GIVEN  # argparse has no public way to list them


def check_flags(file: str, campaign: Campaign) -> None:
    """UserError where the file names a flag that its command does not have."""
    places: list[tuple[str, Flags, str, set[str]]] = [("judge", campaign.judge, "evaluate", flags_of(evaluate_flags))]
    of_correct = flags_of(correct_flags)
    places += [("aligner", campaign.aligner, "correct", of_correct)]
    places += [(f"upstreams: {each.name}", each.flags, "correct", of_correct) for each in campaign.upstreams]
    for place, flags, command, known in places:
        for name in flags:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise UserError(f"{file}: {place}: '{name}' is no flag of `aligner {command}` to set here.{hint}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = "Each upstream is asked, its answers are corrected and judged. Run again, it goes on where it was."
    parser.add_argument("config", metavar="CONFIG.yaml", help="configs/evaluation/upstreams.yaml is an example")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    file = find_config(args.config)
    campaign = read_campaign(file)
    check_flags(file, campaign)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is Ctrl-C
    return run_campaign(campaign)
