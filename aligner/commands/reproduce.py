"""The flags of `aligner reproduce`."""

from __future__ import annotations

import argparse

from aligner.terminal import print_lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "Exit 0: the experiment is complete. Killed or stopped, the same command goes on. Questions are split three ways: to "
        "train, to choose a recipe, to report the chosen one once."
    )
    add = parser.add_argument
    add("name", metavar="NAME", nargs="?", help="an experiment of configs/reproduce, or a YAML file (none: list them)")
    add(
        "--scale",
        choices=("small", "paper"),
        default="small",
        help="small: run here; paper: printed as commands (small)",
    )
    add("--data", metavar="DIR", help="of --scale small: the folder with the experiment's rows")
    add("--output", default="output/reproduce", metavar="DIR", help="folder for all experiments (output/reproduce)")
    add("--questions", type=int, metavar="N", help="on each side at most, to try an experiment out (the file's)")
    add(
        "--rounds",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="of an experiment that compares methods: the upstream that 'aligner rounds' made of the same one, as a further method",
    )
    add("--dry_run", action="store_true", help="check the file and the rows, and print the estimate alone")


def run(args: argparse.Namespace) -> int:
    """Reproduce; returns the exit status."""
    from dataclasses import replace
    from pathlib import Path

    from aligner.records import UserError, require_at_least_one
    from aligner.reproduce.experiment import experiment_names, read_experiment
    from aligner.reproduce.run import paper_lines, run_small

    if not args.name:
        print_lines(*(f"{name}: {read_experiment(name).about}" for name in experiment_names()))
        return 0
    experiment = read_experiment(args.name)
    if args.scale == "paper":
        print_lines(*paper_lines(experiment))
        return 0
    if "small" not in experiment.scales:
        print_lines(f"{experiment.name}: {experiment.about}: at the paper's size alone, with --scale paper")
        return 0
    if not args.data:
        raise UserError(f"--data is missing: the folder with {', '.join(experiment.rows)}.")
    require_at_least_one(questions=args.questions)
    experiment = replace(experiment, limit=args.questions)
    if args.rounds and not experiment.comparison:
        raise UserError(f"--rounds: {experiment.name} compares no methods. Leave it out.")
    if experiment.comparison:
        from aligner.reproduce.compare import run_comparison, with_rounds

        experiment = with_rounds(experiment, args.rounds)
        return run_comparison(experiment, Path(args.data), Path(args.output) / experiment.name, args.dry_run)
    if experiment.sets:
        from aligner.reproduce.adding import run_adding

        return run_adding(experiment, Path(args.data), Path(args.output) / experiment.name, args.dry_run)
    return run_small(experiment, Path(args.data), Path(args.output) / experiment.name, args.dry_run)
