"""The flags of `aligner evaluate`."""

from __future__ import annotations

import argparse

from aligner.commands.pipes import PIPE, piped_files
from aligner.commands.shared_flags import add_column_flag, add_server_flags, add_steer_flags, config_from
from aligner.evaluation.judges.dimensions import DIMENSIONS
from aligner.evaluation.judges.judge import JUDGES
from aligner.evaluation.measures.config import MEASURES
from aligner.records import UserError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "Every pair that changed is judged in both orders; a judge that changes its mind gives a tie, an unreadable reply is "
        "counted as such. Replies are kept in OUTPUT/replies.jsonl: killed or run again, no reply is requested twice. "
        "Exit 0: every pair has a reply; 1: some have none, no verdict of a dimension could be read, or rows could not be used; "
        "2: the command cannot be carried out, or a server is gone."
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--after",
        metavar="FILE",
        help="rows with question, answer, and corrected (as 'aligner correct' writes them) or correction (as training reads them); "
        "- is standard input",
    )
    what.add_argument(
        "--systems",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="several systems' answers to the same questions in order, each judged against each, with one Elo table; "
        "NAME=FILE:FIELD says which of a row's answers is meant (answer, corrected)",
    )
    what.add_argument(
        "--measure",
        choices=MEASURES,
        help="without a judge: whether --models (one Aligner) makes answers better, beside controls that cannot help. restoration: "
        "damage to good answers taken out; preference: the better answer likelier than the worse; declining: unsafe prompts "
        "declined and safe ones not; truth: nearest reference a true one; objectives: what is asked for is heard",
    )
    what.add_argument(
        "--sets",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="rows with question, answer, correction: the losses of --models on each set, and their change against the first one, "
        "which shows what was learned and what forgotten; of --route beside the better of its Aligners. Nothing is corrected",
    )
    add(
        "--before",
        metavar="FILE",
        help="the answers, where they stand in a file of their own: the same questions in order (- is standard input). "
        "AlpacaEval's model_outputs.json and MT-Bench's answer files are read as they are, here and for --after",
    )
    add_column_flag(parser, "question, answer, correction")
    add(
        "--output",
        required=True,
        metavar="DIR",
        help="folder for report.html, report.json, verdicts.jsonl, replies.jsonl",
    )
    add("--limit", type=int, metavar="N", help="pairs to use at most, the first ones")
    add("--run_folder", metavar="DIR", help="a training run's folder: its curves go into the report")
    add_measure_flags(parser)
    add_sweep_flags(parser)
    add_judge_flags(parser)


def add_measure_flags(parser: argparse.ArgumentParser) -> None:
    """What --measure reads, and its controls."""
    add = parser.add_argument_group("of --measure").add_argument
    add(
        "--rows", metavar="FILE", help="question, answer, correction; of declining question, answer, and unsafe or type"
    )
    add(
        "--base", metavar="DIR", help="the untrained model, a control (what the Aligner's card names; 'none': left out)"
    )
    add("--shuffled", metavar="DIR", help="an Aligner trained on shuffled corrections (or objectives), a control")
    add(
        "--objectives",
        metavar="NAMES",
        help="of objectives: what is asked for, comma-separated (all that the Aligner knows and a text shows)",
    )
    add("--damage", metavar="KINDS", help="of restoration: kinds of damage, comma-separated (all)")
    add("--hold_back", metavar="WHAT", help="of restoration, as in training: what it never saw is measured by itself")
    add(
        "--control_limit",
        type=int,
        default=60,
        metavar="N",
        help="answers of a part for models among the controls (60)",
    )
    add("--dtype", choices=("float32", "bfloat16"), help="of all models (bfloat16 on a GPU that has it, else float32)")
    add(
        "--nats_ahead",
        type=float,
        metavar="NATS",
        help="as of 'aligner correct': leave an answer alone unless its correction is so much likelier under the model",
    )
    add("--tried", type=int, default=1, metavar="N", help="recipes tried before this one was chosen: stands beside (1)")


def add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    """The Aligners that are measured on the same rows."""
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        default=[],
        metavar="[NAME=]DIR",
        help="Aligners, or resume states of a run (RUN/checkpoints/update-*): what each loses on copied and on edited tokens of "
        "these corrections, and what each copies when it corrects these answers",
    )
    add("--route", metavar="FILE", help="a routes.yaml: the same of several Aligners, of which each row has its own")
    add(
        "--max_new_tokens",
        type=int,
        metavar="N",
        help="longest correction of --models in tokens (2048; --measure: 256)",
    )
    add(
        "--prompt_template",
        metavar="NAME",
        help="of --models, instead of their own; needed where there is no aligner.json",
    )
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the judge or --models")
    add_steer_flags(parser)


def add_judge_flags(parser: argparse.ArgumentParser) -> None:
    """The judge and its settings."""
    add = parser.add_argument
    add(
        "--dimensions",
        metavar="NAMES",
        help=f"of {', '.join(DIMENSIONS)}, and of the objectives in configs/objectives.yaml, such as concise (helpful,harmless; of "
        "--judge reward helpful, of cost harmless)",
    )
    add(
        "--judge",
        choices=JUDGES,
        default="none",
        help="served: an OpenAI-compatible server; local: a model here; reward, cost: a model that scores; reward-cost: two, "
        "--judge_model and --cost_model, for helpful and harmless; human: --labels; "
        "none: only what was copied (none)",
    )
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
    """Evaluate, what stands in files or comes through a pipe; returns the exit status."""
    piped = [name for name in ("after", "before") if getattr(args, name) == PIPE]
    if len(piped) > 1:
        raise UserError("--after - --before -: standard input is one of them. Give the other as a file.")
    if not piped:
        return run_files(args)
    with piped_files(PIPE, "") as (path, _):
        setattr(args, piped[0], path)
        return run_files(args)


def run_files(args: argparse.Namespace) -> int:
    """Evaluate files."""
    if args.max_new_tokens is None:
        args.max_new_tokens = 256 if args.measure else 2048
    if args.measure:
        from aligner.evaluation.measures.config import MeasureConfig

        settings = config_from(args, MeasureConfig)
        from aligner.evaluation.measures.command import run_measure

        return run_measure(settings)
    if args.sets:
        from aligner.evaluation.config import SetsConfig

        sets = config_from(args, SetsConfig)
        from aligner.evaluation.sets import run_sets

        return run_sets(sets)
    if args.rows or args.shuffled:
        raise UserError(f"--{'rows' if args.rows else 'shuffled'} is for --measure, of {', '.join(MEASURES)}.")
    from aligner.evaluation.config import EvaluationConfig

    config = config_from(args, EvaluationConfig)
    from aligner.evaluation.command import run_evaluation

    return run_evaluation(config)
