"""`aligner COMMAND`: a table from command to function."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from aligner import __version__
from aligner.records import UserError, system_error


def _check_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="+", metavar="PATH|SPEC", help="files, or specs NAME[:PROPORTION[:PATH]]")
    parser.add_argument(
        "--register", action="append", default=[], metavar="FILE.py", help="files that register data sets"
    )
    parser.add_argument("--columns", nargs="+", default=[], metavar="FIELD=NAME,...", help="fields called otherwise")
    parser.add_argument("--prefer", choices=("better", "safer"), help="which judgement of pku-saferlhf decides")
    parser.add_argument("--multi_turn", action="store_true", help="take hh-rlhf's dialogues of several turns")
    parser.add_argument(
        "--model_name_or_path", metavar="TOK", help="tokenizer for lengths and --dump ('embedded' works)"
    )
    parser.add_argument("--max_length", type=int, default=2048, metavar="N", help="tokens a row may have (2048)")
    parser.add_argument("--prompt_template", metavar="NAME", help="a known prompt or a YAML file")
    parser.add_argument(
        "--dump", metavar="FILE", help="write row, input_ids and labels of every kept row as JSON lines"
    )


def _check(args: argparse.Namespace) -> int:
    from aligner.quality.check import examine, examine_tokens

    if args.dump and not args.model_name_or_path:
        raise UserError("--dump needs a tokenizer: --model_name_or_path TOK.")
    if args.dump:
        refuse_overwriting(args.dump, *args.data, *(text.split(":", 2)[-1] for text in args.data))
    from aligner.training.datasets.options import Options
    from aligner.training.datasets.registry import register_files

    register_files(args.register)
    options = Options(tuple(args.columns), args.prefer, args.multi_turn)
    report = examine(args.data, options, partial(tqdm, desc="reading", unit=" rows", delay=2))
    print(*report.lines(), sep="\n")
    if args.model_name_or_path and report.records:
        from aligner.demo import locate
        from aligner.encoder import Encoder
        from aligner.models import load_tokenizer, quiet_libraries
        from aligner.training.datasets.mixture import choose_template

        quiet_libraries()
        template = choose_template(args.prompt_template, report.templates)
        encoder = Encoder(load_tokenizer(locate(args.model_name_or_path)))
        lines, without_room = examine_tokens(report.records, template, encoder, args.max_length, args.dump)
        print(*lines, sep="\n")
        return 1 if report.faults or without_room else 0
    return 1 if report.faults or not report.records else 0


def refuse_overwriting(output: str, *inputs: str) -> None:
    """UserError where an output would replace an input, or is a folder."""
    if Path(output).is_dir():
        raise UserError(f"{output}: is a folder. Name a file.")
    if Path(output).resolve() in {Path(path).resolve() for path in inputs}:
        raise UserError(f"{output}: would be written over what is read. Name another file.")


def _correct_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="an Aligner: an output folder or a hub id")
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="rows with question and answer (JSON lines, JSON, Parquet)"
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="JSON lines: each row with its field 'corrected'"
    )
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="rows at once (8)")
    parser.add_argument(
        "--max_new_tokens", type=int, default=2048, metavar="N", help="longest correction in tokens (2048)"
    )
    parser.add_argument(
        "--prompt_template", metavar="NAME", help="for a model without aligner.json: a known prompt or a YAML file"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the model")


def _correct(args: argparse.Namespace) -> int:
    from aligner.inference.correct import Corrector, correct_rows, read_pairs
    from aligner.models import quiet_libraries

    quiet_libraries()
    for name in ("batch_size", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}: it must be at least 1.")
    refuse_overwriting(args.output, args.input)
    rows = read_pairs(args.input)
    corrector = Corrector.load(args.model, args.prompt_template, args.trust_remote_code)
    bar = partial(tqdm, total=len(rows), desc="correcting", unit=" rows")
    unfinished = correct_rows(corrector, rows, args.output, args.batch_size, args.max_new_tokens, bar)
    print(f"{len(rows):,} answers corrected: {args.output}")
    if unfinished:
        print(f"{unfinished:,} of them did not end within {args.max_new_tokens:,} tokens and were cut off")
    return 0


def _plan_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "All flags of training are understood, --config above all; --gpus counts the GPUs of all nodes. Rows and tokens are "
        "counted in --train_datasets where that is given. Nothing is downloaded for the paper's base models. "
        "Exit 1: it does not fit."
    )
    add = parser.add_argument
    add("--gpu_memory", type=float, default=80, metavar="GB", help="memory of one GPU in GB (80)")
    add("--cpu_memory", type=float, metavar="GB", help="CPU memory of one node in GB (not checked)")
    add("--gpus_per_node", type=int, default=8, metavar="N", help="GPUs of one node (8)")
    add("--rows", type=int, default=50_000, metavar="N", help="records, where no data are given (50,000, the paper's)")
    add(
        "--tokens_per_row",
        type=float,
        metavar="X",
        help="mean tokens of a record, where no data are given (max_length)",
    )
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--tokens_per_second", type=float, metavar="X", help="throughput of all GPUs together")
    speed.add_argument("--tflops", type=float, metavar="X", help="TFLOP/s that one GPU really does")
    speed.add_argument("--measured", metavar="DIR", help="an output folder: the throughput in its train_log.jsonl")
    add(
        "--upstream",
        type=float,
        nargs="+",
        metavar="B",
        help="show the paper's resource claim for upstreams of these sizes",
    )


def _plan(args: argparse.Namespace) -> int:
    from aligner.models import quiet_libraries
    from aligner.training.budget import Request, report

    quiet_libraries()
    known = {field: getattr(args, field) for field in Request.__dataclass_fields__}
    lines, fits = report(args.rest, Request(**known))
    print(*lines, sep="\n")
    return 0 if fits else 1


Command = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
COMMANDS: dict[str, Command] = {
    "check": ("say which rows of a data set are unusable, and why; exit 1 if there are any", _check_flags, _check),
    "plan": ("say what a run needs and how long it takes, before it costs anything", _plan_flags, _plan),
    "correct": ("correct the answers of a file", _correct_flags, _correct),
}


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(prog="aligner", description="Correct a model's answers with a small Aligner.")
    top.add_argument("--version", action="version", version=f"aligner {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, add_flags, _) in COMMANDS.items():
        add_flags(commands.add_parser(name, help=text, description=text, allow_abbrev=False))
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0; 1 where `check` found something; 2 for what the user can mend."""
    commands = parser()
    args, rest = commands.parse_known_args(arguments)
    if rest and args.command != "plan":
        commands.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest  # flags of training
    try:
        return COMMANDS[args.command][2](args)
    except (UserError, OSError) as error:
        print(f"error: {system_error(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
