"""The flags of `aligner interpret`: where inside an Aligner correcting is decided, and a direction that turns it up and down."""

from __future__ import annotations

import argparse

from aligner.commands.shared_flags import add_column_flag, add_model_flags, config_from


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.epilog = (
        "Writes directions.safetensors and card.json (what --steer reads), figures.json, interpretation.html, its pictures "
        "accuracy.png, effect.png and scan.png, interpretation.md, and COMPLETED."
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="the Aligner: an output folder or a hub id")
    add(
        "--input",
        required=True,
        metavar="FILE",
        help="question, answer, and correction or corrected; rows that the Aligner was not trained on",
    )
    add("--output", required=True, metavar="DIR", help="the folder to write")
    add_column_flag(parser, "question, answer, correction")
    add(
        "--compare",
        nargs="+",
        default=[],
        metavar="[NAME=]DIR",
        help="other Aligners of the same prompt, such as the warm-up stage (OUTPUT/identity) or one trained without it",
    )
    add(
        "--base", metavar="DIR", help="the untrained model, a control (what the Aligner's card names; 'none': left out)"
    )
    add("--fit_rows", type=int, default=60, metavar="N", help="rows that directions are fitted on (60)")
    add("--held_out_rows", type=int, default=100, metavar="N", help="rows of other questions they are tried on (100)")
    add("--tokens", type=int, default=20, metavar="N", help="tokens of a continuation that are read (20)")
    add("--alphas", type=float, nargs="+", default=None, metavar="A", help="how much is added (-0.15 to 0.15 by 0.05)")
    add(
        "--effect_rows",
        type=int,
        default=24,
        metavar="N",
        help="held-out answers that are corrected at every alpha (24)",
    )
    add("--control_rows", type=int, default=12, metavar="N", help="of them for random directions and the base (12)")
    add("--random_directions", type=int, default=10, metavar="N", help="directions without a meaning, a control (10)")
    add("--seed", type=int, default=42, metavar="N", help="of the rows' order and the random directions (42)")
    add_model_flags(parser, longest=96)


def run(args: argparse.Namespace) -> int:
    """Read, steer and write; returns the exit status."""
    from aligner.interpretation.config import ALPHAS, InterpretConfig

    args.alphas = sorted(args.alphas or ALPHAS)
    config = config_from(args, InterpretConfig)
    from aligner.interpretation.command import interpret  # torch, for which a misspelt flag need not wait

    return interpret(config)
