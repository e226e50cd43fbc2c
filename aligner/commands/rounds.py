"""The flags of `aligner rounds`; further ones are those of training, for the upstream's."""

from __future__ import annotations

import argparse
import signal

from aligner.commands.shared_flags import add_edit_filter_flags, add_model_flags, add_server_flags, config_from
from aligner.rounds.config import METHODS

EXAMPLES = """a round:
  the upstream answers --questions, the Aligner corrects, the corrections become rows, the next upstream is trained on them, and
  it is measured on questions that were never trained on: log p(correction) - log p(answer), before and after

methods:
  sft       the corrections alone, by this project's own loop
  dpo       the correction before the answer, by TRL
  rloo      a reward model that prefers corrections scores the upstream's own answers, by TRL

examples:
  aligner rounds --upstream embedded --aligner output/embedded --questions questions.jsonl --output rounds-sft --rounds 2 \\
      --train_config configs/upstream/embedded-sft.yaml --max_new_tokens 256
  aligner rounds --method dpo --upstream DIR --aligner DIR --questions questions.jsonl --output rounds-dpo --hostfile HOSTS
  aligner rounds ... --rounds 2 --aligner_each_round           # iterated amplification: an Aligner each round too
  aligner rounds ... --output control --shuffled               # the control, which must not rise as much

Each stage is a folder in --output that says COMPLETED. Killed or stopped, the same command goes on, to the same bytes. Exit 0: all
rounds are done, or the held-out measure fell and no further one was begun. Exit 2: a stage cannot be made: its reason is above."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("--upstream", required=True, metavar="DIR", help="the model to align: a folder, a hub id, or 'embedded'")
    add("--aligner", required=True, metavar="DIR", help="the Aligner: an output folder or a hub id")
    add("--questions", required=True, metavar="FILE", help="rows with question (JSON, JSON lines, CSV, TSV, Parquet)")
    add("--output", required=True, metavar="DIR", help="the folder of all rounds, and of rounds.html, their report")
    add("--method", choices=METHODS, default=METHODS[0], help="how the next upstream is trained (sft)")
    add("--rounds", type=int, default=1, metavar="N", help="how many (1)")
    add("--limit", type=int, metavar="N", help="questions to train on at most (all)")
    add(
        "--held_out",
        default="100",
        metavar="N|FILE",
        help="questions to measure on: how many of --questions, or a file (100)",
    )
    add(
        "--help_and_harm",
        metavar="FILE",
        help="prompts with 'unsafe', or XSTest's 'type': the share of safe ones answered and of unsafe ones declined, each round",
    )
    add("--shuffled", action="store_true", help="the control: train on corrections of other questions")
    add("--keep_going", action="store_true", help="go on where the held-out measure falls (stop there)")
    add_edit_filter_flags(parser)
    add_training_flags(parser)
    add(
        "--upstream_url",
        metavar="URL",
        help="a server that answers (OpenAI's protocol); a trained upstream is called by its folder",
    )
    add("--upstream_model", metavar="NAME", help="the first upstream's name there")
    add(
        "--upstream_key",
        default="OPENAI_API_KEY",
        metavar="VARIABLE",
        help="the variable with its key (OPENAI_API_KEY)",
    )
    add_model_flags(parser, longest=512)
    add_server_flags(parser)


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """The files of flags for what is trained."""
    add = parser.add_argument
    add("--train_config", metavar="FILE", help="flags of the upstream's training (configs/upstream/METHOD.yaml)")
    add(
        "--reward_config",
        metavar="FILE",
        help="of rloo: flags of the reward model's training (configs/upstream/reward.yaml)",
    )
    add(
        "--aligner_each_round",
        action="store_true",
        help="from round 2 on train a new Aligner on what the last one corrected",
    )
    add("--aligner_base", metavar="DIR", help="the model that it is trained from (the base of --aligner)")
    add("--aligner_config", metavar="FILE", help="flags of its training (training's defaults)")


def run(args: argparse.Namespace) -> int:
    """Run the rounds; returns the exit status."""
    from aligner.rounds.config import RoundsConfig

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is Ctrl-C
    args.further = args.rest
    config = config_from(args, RoundsConfig)
    from aligner.rounds.run import run_rounds  # torch, for which a misspelt flag need not wait

    return run_rounds(config)
