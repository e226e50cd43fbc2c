"""`bash scripts/evaluate.sh CONFIG.yaml`: the command of a campaign, which knows the flags of the commands that it runs."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable

from aligner.commands.correct import add_flags as correct_flags
from aligner.commands.evaluate import add_flags as evaluate_flags
from aligner.evaluation.campaign import Campaign, read_campaign, run
from aligner.evaluation.steps import Flags
from aligner.records import UserError
from aligner.surroundings import prepare_process

GIVEN = {"input", "output", "after", "dimensions"}  # what the campaign says itself


def flags_of(add_flags: Callable[[argparse.ArgumentParser], None]) -> set[str]:
    """The names of a command's flags, but for those that a campaign gives."""
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


def main(arguments: list[str]) -> int:
    """Run a campaign from the command line."""
    about = "Upstream answers -> corrected -> judged -> report, for a list of upstreams. Run again, it goes on where it was."
    parser = argparse.ArgumentParser(prog="bash scripts/evaluate.sh", description=about)
    parser.add_argument("config", metavar="CONFIG.yaml", help="configs/evaluation/upstreams.yaml is an example")
    prepare_process(arguments)
    try:
        file = parser.parse_args(arguments).config
        campaign = read_campaign(file)
        check_flags(file, campaign)
        return run(campaign)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
