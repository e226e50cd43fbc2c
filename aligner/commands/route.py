"""The flags of `aligner route`: which of several Aligners corrects, by rules and a classifier that is trained here."""

from __future__ import annotations

import argparse

from aligner.commands.shared_flags import config_from


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "The file names Aligners, rules on the question, and questions that are each Aligner's own (README of routing)."
        " 'aligner correct', 'serve' and 'evaluate' take it with --route."
    )
    add = parser.add_argument
    add("routes", metavar="FILE", help="a routes.yaml")
    add("--train", action="store_true", help="train and calibrate the classifier on the rows that the file names")
    add("--question", metavar="TEXT", help="show the choice for one question")
    add("--answer", metavar="TEXT", help="its answer, where the classifier reads it too")
    add("--input", metavar="FILE", help="count the choices for the questions of a file")
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the model of the features")


def run(args: argparse.Namespace) -> int:
    """Train, or show choices; returns the exit status."""
    from aligner.routing.command import RouteConfig, route  # torch, for which a misspelt flag need not wait

    return route(config_from(args, RouteConfig))
