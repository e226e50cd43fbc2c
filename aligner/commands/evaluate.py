"""`aligner evaluate`: did the corrections help? Judged in both orders, counted, and shown in a report."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from aligner.commands.shared_flags import add_server_flags
from aligner.records import UserError

if TYPE_CHECKING:
    from aligner.evaluation.alpaca_eval import AlpacaEval
    from aligner.evaluation.course import Course
    from aligner.evaluation.judges.judge import Judge

JUDGES = ("none", "served", "local", "reward", "cost", "reward-cost", "human")
NEEDS: dict[str, tuple[str, ...]] = {
    "served": ("judge_url", "judge_model"), "reward-cost": ("judge_model", "cost_model"), "human": ("labels",), "none": (),
}  # fmt: skip
WRITERS = ("served", "local")  # judges whose replies are tokens
ALONE = {"reward": "helpful", "cost": "harmless"}  # judges of one score, and what it stands for by itself
FORMS = ("helpful", "harmless", "honest", "empathy")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "Every pair that changed is asked in both orders; a judge that changes its mind gives a tie, an unreadable reply is "
        "counted as such. Replies are kept in OUTPUT/replies.jsonl: killed or run again, nothing is asked twice. Exit 0: every "
        "pair has a reply; 1: some have none, no verdict of a dimension could be read, or rows could not be used; 2: the command "
        "cannot be carried out, or a server is gone."
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--after",
        metavar="FILE",
        help="rows with question, answer, and corrected (as 'aligner correct' writes them) or correction (as training reads them)",
    )
    what.add_argument(
        "--systems", nargs="+", default=[], metavar="NAME=FILE",
        help="several systems' answers to the same questions in order, each judged against each, with one Elo table; "
        "NAME=FILE:FIELD says which of a row's answers is meant (answer, corrected)",
    )  # fmt: skip
    add(
        "--before",
        metavar="FILE",
        help="the answers, where they stand in a file of their own: the same questions in order",
    )
    add(
        "--output",
        required=True,
        metavar="DIR",
        help="folder for report.html, report.json, verdicts.jsonl, replies.jsonl",
    )
    add("--limit", type=int, metavar="N", help="pairs to use at most, the first ones")
    add("--run_folder", metavar="DIR", help="a training run's folder: its curves go into the report")
    add("--models", nargs="+", default=[], metavar="[NAME=]DIR",
        help="Aligners, or resume states of a run (RUN/checkpoints/update-*): what each loses on copied and on edited tokens of "
        "these corrections, and what each copies when it corrects these answers")  # fmt: skip
    add("--max_new_tokens", type=int, default=2048, metavar="N", help="longest correction of --models in tokens (2048)")
    add(
        "--prompt_template",
        metavar="NAME",
        help="of --models, instead of their own; needed where there is no aligner.json",
    )
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the judge or --models")
    add_judge_flags(parser)


def add_judge_flags(parser: argparse.ArgumentParser) -> None:
    """Who judges, and how it is asked."""
    add = parser.add_argument
    add("--dimensions", metavar="NAMES",
        help=f"of {', '.join(FORMS)} (helpful,harmless; of --judge reward helpful, of cost harmless)")  # fmt: skip
    add("--judge", choices=JUDGES, default="none",
        help="served: an OpenAI-compatible server; local: a model here; reward, cost: a model that scores; reward-cost: two, "
        "--judge_model and --cost_model, for helpful and harmless; human: --labels; "
        "none: only what was copied (none)")  # fmt: skip
    add("--judge_model", metavar="NAME|DIR", help="the judge: its name there, or its folder or hub id")
    add("--cost_model", metavar="DIR", help="of --judge reward-cost: its folder or hub id")
    add("--judge_url", metavar="URL", help="of --judge served")
    add("--judge_key", default="OPENAI_API_KEY", metavar="VARIABLE", help="the variable with its key (OPENAI_API_KEY)")
    add(
        "--labels",
        metavar="FILE",
        help="people's labels (question, answer, corrected, label): to agree with, or to judge by",
    )
    add("--batch_size", type=int, default=8, metavar="N", help="of --judge local: replies at once (8)")
    add("--max_tokens", type=int, default=1024, metavar="N", help="longest reply of a judge that writes (1024)")
    add_server_flags(parser)
    add("--price", nargs=2, type=float, metavar=("IN", "OUT"), help="of a million tokens, to say what it costs")
    add("--alpaca_eval", metavar="PROGRAM", help="run AlpacaEval too: its program, 'alpaca_eval' or the path of one")
    add("--alpaca_eval_judge", metavar="NAME|DIR", help="its annotators config (asks --judge_model at --judge_url)")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    names = dimensions(args)
    check_numbers(args)
    if args.systems and (args.before or args.models or args.alpaca_eval):
        raise UserError("--systems does not go with --before, --models or --alpaca_eval.")
    if args.judge == "none" and (args.labels or (args.judge_model and not args.alpaca_eval)):
        raise UserError(f"--{'labels' if args.labels else 'judge_model'} needs --judge, of {', '.join(JUDGES[1:])}.")
    for flag in NEEDS.get(args.judge, ("judge_model",)):
        if not getattr(args, flag):
            raise UserError(f"--judge {args.judge} needs --{flag}.")
    if args.alpaca_eval and not (args.alpaca_eval_judge or args.judge_model):
        raise UserError("--alpaca_eval needs --alpaca_eval_judge, or --judge_url and --judge_model.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is Ctrl-C
    from aligner.console import setup_logging
    from aligner.evaluation.evaluate import Work, evaluate
    from aligner.evaluation.systems import parse

    setup_logging()
    work = Work(
        args.after, args.before, tuple(map(parse, args.systems)), Path(args.output), tuple(names),
        None if args.judge == "none" else judge(args), args.labels, tuple(args.price) if args.price else None,
        args.max_tokens if args.judge in WRITERS else 0, args.limit, args.run_folder, alpaca(args), course(args),
    )  # fmt: skip
    return evaluate(work)


def dimensions(args: argparse.Namespace) -> list[str]:
    """What is judged, each once. A model of one score judges one thing."""
    given = ALONE.get(args.judge, "helpful,harmless") if args.dimensions is None else args.dimensions
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    for name in names:
        if name not in FORMS:
            raise UserError(f"--dimensions {name}: there are {', '.join(FORMS)}.")
    if args.judge == "reward-cost" and (other := [name for name in names if name not in FORMS[:2]]):
        raise UserError(f"--judge reward-cost has scores for helpful and harmless, not for {other[0]}.")
    if not names or (args.judge in ALONE and len(names) > 1):
        raise UserError(f"--dimensions names {len(names)}: name one{' that the score stands for' if names else ''}.")
    return names


def check_numbers(args: argparse.Namespace) -> None:
    """UserError for a number that can be none."""
    for name in ("limit", "concurrency", "batch_size", "max_tokens", "max_new_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}: it must be at least 1.")
    if args.price and not all(0 <= price < float("inf") for price in args.price):
        raise UserError("--price takes two numbers, from 0 on.")


def course(args: argparse.Namespace) -> Course | None:
    """The Aligners to measure, if there are any."""
    from aligner.evaluation.course import Course, in_order

    if args.models:
        from aligner.models import check_place, quiet_libraries

        quiet_libraries()
        for _, model in in_order(args.models):  # what is wrong with them is said before anything is paid for
            check_place(model)
    flags = {name: getattr(args, name) for name in ("max_new_tokens", "prompt_template", "trust_remote_code")}
    return Course(tuple(args.models), {name: value for name, value in flags.items() if value}) if args.models else None


def alpaca(args: argparse.Namespace) -> AlpacaEval | None:
    """How AlpacaEval is to be run, if it is."""
    from aligner.evaluation.alpaca_eval import AlpacaEval

    key = os.environ.get(args.judge_key)
    return (
        AlpacaEval(args.alpaca_eval, args.alpaca_eval_judge, args.judge_model, args.judge_url, key)
        if args.alpaca_eval
        else None
    )


def judge(args: argparse.Namespace) -> Judge:
    """The judge that the flags name."""
    if args.judge == "served":
        from aligner.evaluation.judges.served import ServedJudge
        from aligner.inference.servers import Server

        server = Server(args.judge_url, args.judge_model, args.judge_key, args.concurrency, args.timeout)
        return ServedJudge(server, args.max_tokens)
    if args.judge == "human":
        from aligner.evaluation.judges.human import HumanJudge

        return HumanJudge.load(args.labels)
    from aligner.demo import locate
    from aligner.models import check_place, quiet_libraries

    quiet_libraries()
    folder, costs = locate(args.judge_model), locate(args.cost_model or args.judge_model)
    check_place(folder)
    check_place(costs)
    if args.judge == "reward-cost":
        from aligner.evaluation.judges.reward_and_cost import RewardAndCost

        return RewardAndCost.load(folder, costs, args.trust_remote_code)
    if args.judge == "local":
        from aligner.evaluation.judges.local import LocalJudge

        return LocalJudge.load(folder, args.max_tokens, args.batch_size, args.trust_remote_code)
    from aligner.evaluation.judges.scores import ScoreJudge

    return ScoreJudge.load(folder, args.judge == "cost", args.trust_remote_code)
