"""The flags of `aligner baseline`."""

from __future__ import annotations

import argparse

from aligner.baselines.config import DIALECTS, REWARDS
from aligner.baselines.methods import METHODS
from aligner.commands.shared_flags import add_column_flag, add_model_flags, add_server_flags, config_from
from aligner.evaluation.judges.dimensions import DIMENSIONS

EXAMPLES = """methods:
  bon       best-of-N: draw --n answers, keep the one with the highest --reward
  beam      beam search with --width beams; --width 1 is greedy decoding, the upstream as it is
  refine    Self-Refine: feedback on the answer, then a revision by it, --rounds times
  critique  Self-Critique: critique and revised answer in one reply
  revise    as Constitutional AI revises: a critique by a principle, then a revision, --rounds times

examples:
  aligner baseline bon --n 10 --model embedded --input questions.jsonl --output bon-10.jsonl
  aligner baseline bon --n 5 --model embedded --input bon-10.jsonl --output bon-5.jsonl   # its first five, nothing is paid
  aligner baseline beam --width 1 --model embedded --aligner output/sft --input questions.jsonl --output aligner.jsonl
  aligner baseline revise --upstream_url http://localhost:8000/v1 --upstream_model NAME --aligner output/sft \\
      --input questions.jsonl --output revised.jsonl
  aligner evaluate --systems bon=bon-10.jsonl revised=revised.jsonl --output report

--batch_size, --dtype and --trust_remote_code are of all models here, --prompt_template of --aligner, whose corrections may have
twice --max_new_tokens.

A row has 'answer', 'failure' (empty, unfinished, no revision; the text before it stands), 'cost' (calls, tokens, forward passes,
seconds, by who is paid) and, with --aligner, 'corrected'. A row's own 'answer' is what refine, critique and revise begin with.
Killed or stopped, the same command continues and pays for no reply twice. Exit 0: every row was answered. Exit 1: the rows named
could not be, the others were. Exit 2: the command cannot be carried out, or a server is gone."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    add = parser.add_argument
    add("method", metavar="METHOD", choices=tuple(METHODS), help=f"one of {', '.join(METHODS)}, see below")
    add("--input", required=True, metavar="FILE", help="rows with question (JSON, JSON lines, CSV, TSV, Parquet)")
    add(
        "--output", required=True, metavar="FILE", help="JSON lines; FILE.about.json beside it has prompts and settings"
    )
    add("--model", metavar="DIR", help="the upstream, a model here: a folder, a hub id, or 'embedded'")
    add("--upstream_url", metavar="URL", help="the upstream, behind an OpenAI-compatible server")
    add("--upstream_model", metavar="NAME", help="its name there")
    add(
        "--upstream_key",
        default="OPENAI_API_KEY",
        metavar="VARIABLE",
        help="the variable with its key (OPENAI_API_KEY)",
    )
    add(
        "--dialect",
        choices=DIALECTS,
        default="openai",
        help="how the server is asked for beams; 'transformers serve' also draws only when asked its own way (openai)",
    )
    add("--aligner", metavar="DIR", help="an Aligner behind the method: an output folder or a hub id")
    add("--prompts", metavar="FILE", help="your copy of configs/baselines/prompts.yaml (that file)")
    add_column_flag(parser, "question, answer")
    add_method_flags(parser)
    add("--seed", type=int, default=42, metavar="N", help="of drawn answers and principles (42)")
    add_model_flags(parser, longest=512)
    add_server_flags(parser)


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """What one method alone takes."""
    add = parser.add_argument
    add("--n", type=int, metavar="N", help="of bon: answers drawn (5)")
    add("--temperature", type=float, metavar="X", help="of bon (0.7)")
    add("--width", type=int, metavar="N", help="of beam (4)")
    add("--rounds", type=int, default=1, metavar="N", help="of refine and revise (1)")
    add(
        "--reward",
        choices=REWARDS,
        help="of bon: likelihood (the mean log-probability of a token under --reward_model); reward, cost: a model that scores; "
        "served: a judge of pairs, each answer against the first in both orders (likelihood)",
    )
    add(
        "--reward_model", metavar="DIR|NAME", help="of --reward: its folder, hub id or name there (likelihood: --model)"
    )
    add("--judge_url", metavar="URL", help="of --reward served")
    add("--judge_key", default="OPENAI_API_KEY", metavar="VARIABLE", help="the variable with its key (OPENAI_API_KEY)")
    add("--dimension", choices=tuple(DIMENSIONS), default="helpful", help="of --reward served (helpful)")


def run(args: argparse.Namespace) -> int:
    """Answer a file; returns the exit status."""
    from aligner.baselines.config import BaselineConfig

    config = config_from(args, BaselineConfig)
    from aligner.baselines.command import run_baseline  # torch, for which a misspelt flag need not wait

    return run_baseline(config)
