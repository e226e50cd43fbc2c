"""`aligner COMMAND`: a table from command to function."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from aligner import __version__
from aligner.commands import (
    baseline,
    build,
    calibrate,
    campaign,
    check,
    correct,
    doctor,
    evaluate,
    export,
    interpret,
    pairs,
    plan,
    push,
    reproduce,
    rounds,
    route,
    serve,
    train,
)
from aligner.records import UserError
from aligner.surroundings import prepare_process, shortage
from aligner.system_errors import system_error
from aligner.terminal import prepare_streams, print_errors

Command = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
COMMANDS: dict[str, Command] = {
    "train": (
        "train an Aligner on question, answer, correction; without flags the embedded default",
        train.add_flags,
        train.run,
    ),
    "check": (
        "list the unusable rows of a data set with reasons; exit 1 if there are any",
        check.add_flags,
        check.run,
    ),
    "plan": ("estimate what a run needs and how long it takes, before it costs anything", plan.add_flags, plan.run),
    "doctor": ("look at this machine and a run's hosts before a GPU hour is spent", doctor.add_flags, doctor.run),
    "correct": ("correct the answers of a file", correct.add_flags, correct.run),
    "evaluate": (
        "measure whether corrections helped: judged in both orders, counted, shown",
        evaluate.add_flags,
        evaluate.run,
    ),
    "baseline": (
        "what one would use instead: best-of-N, beam search, self-revision, and what each costs",
        baseline.add_flags,
        baseline.run,
    ),
    "build": (
        "build data: questions, answers of several models, corrections by principles, filters, in stages that go on",
        build.add_flags,
        build.run,
    ),
    "export": ("write a resume state as a model folder", export.add_flags, export.run),
    "push": (
        "upload a finished Aligner, or a build's data, with its card; a dry run without a token",
        push.add_flags,
        push.run,
    ),
    "pairs": (
        "turn corrected answers into rows that train the upstream: supervised ones and preferences",
        pairs.add_flags,
        pairs.run,
    ),
    "rounds": (
        "align the upstream itself, round after round: it answers, the Aligner corrects, it learns, it is measured",
        rounds.add_flags,
        rounds.run,
    ),
    "campaign": ("answers of many upstreams: corrected, judged, in one table", campaign.add_flags, campaign.run),
    "serve": ("stand in front of a model's server and correct its answers", serve.add_flags, serve.run),
    "route": (
        "choose between several Aligners by the question: train the classifier, look at its choices",
        route.add_flags,
        route.run,
    ),
    "interpret": (
        "where inside an Aligner correcting is decided, and a direction that turns it up and down",
        interpret.add_flags,
        interpret.run,
    ),
    "reproduce": (
        "run an experiment of the paper at a small scale, or print it at the paper's",
        reproduce.add_flags,
        reproduce.run,
    ),
    "calibrate": (
        "choose the confidence from which on the server leaves an answer unchanged",
        calibrate.add_flags,
        calibrate.run,
    ),
}


WITH_TRAINING_FLAGS = ("plan", "doctor", "rounds")


def command_parser(given: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all commands. `given`: what it will read, of which an error names the flag that does not exist."""
    top = argparse.ArgumentParser(prog="aligner", description="Correct a model's answers with a small Aligner.")
    top.add_argument("--version", action="version", version=f"aligner {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, add_flags, _) in COMMANDS.items():
        parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        parser.set_defaults(parser=parser)
        add_flags(parser)
    for parser in (top, *commands.choices.values()):
        parser.error = partial(_wrong_usage, parser, given)  # type: ignore[method-assign]
    return top


def _wrong_usage(parser: argparse.ArgumentParser, given: Sequence[str], finding: str) -> NoReturn:
    """Say what is wrong with a command line, which may hold anything, and where its flags are listed; exit with 2."""
    names = [text.partition("=")[0] for text in given if text.startswith("--")]
    if "required" in finding and (unknown := [name for name in names if name not in parser._option_string_actions]):
        finding = _no_such_flag(parser, unknown[0])  # a misspelt flag is why another is missing
    print_errors(f"error: {finding.rstrip('.')}. '{parser.prog} --help' lists the flags.")
    sys.exit(2)


def _no_such_flag(parser: argparse.ArgumentParser, text: str) -> str:
    """What is wrong with a word that nothing takes, with the nearest flag of the command."""
    name = text.partition("=")[0]
    flags = parser._option_string_actions  # argparse has no public way to list them
    near = difflib.get_close_matches(name, flags, n=1, cutoff=0.7)
    finding = f"there is no flag '{name}'" if name.startswith("-") else f"nothing takes '{name}'"
    return finding + (f" (did you mean '{near[0]}'?)" if near else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0; 1 where rows are wrong or failed; 2 for an error that the user can correct;
    70 for a fault of this program, with its traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    prepare_streams()
    prepare_process(given)  # before the libraries that read it
    if given[:1] == ["train"]:  # it has a parser and exit statuses of its own
        return train.run_flags(given[1:])
    args, rest = command_parser(given).parse_known_args(given)
    if rest and args.command not in WITH_TRAINING_FLAGS:
        args.parser.error(_no_such_flag(args.parser, rest[0]))
    args.rest = rest  # flags of training
    try:
        status = COMMANDS[args.command][2](args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:
        print_errors(f"error: {system_error(error) if isinstance(error, OSError) else error}")
        return 2
    except KeyboardInterrupt:
        print_errors("stopped")
        return 130
    except Exception as error:
        if finding := shortage(error):
            print_errors(f"error: {finding}")
            return 2
        print_errors(*traceback.format_exc().splitlines())
        return 70
