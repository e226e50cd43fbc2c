"""What the flags of `aligner correct` ask for, as work, and the drift table that it ends with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from aligner.card import prompt_of
from aligner.demo import locate
from aligner.encoder import Encoder
from aligner.inference.correct_file import Drift, Stage, Work
from aligner.inference.corrector import Corrector, Settings, best_dtype
from aligner.inference.sampling import Sampling
from aligner.inference.served import ServedAligner, Upstream
from aligner.inference.servers import Server
from aligner.models import check_place, fingerprint, load_config, load_tokenizer, positions_of
from aligner.records import UserError


def work_of(args: argparse.Namespace) -> Work:
    """The work that a command line asks for. UserError where its flags do not go together."""
    for name, needs in (
        ("upstream_url", "upstream_model"),
        ("upstream_model", "upstream_url"),
        ("aligner_model", "aligner_url"),
    ):
        if getattr(args, name) and not getattr(args, needs):
            raise UserError(f"--{name} needs --{needs}.")
    if args.aligner_url and args.stack:
        raise UserError("--aligner_url serves one Aligner: give --model, and run again for the next of a stack.")
    sampling = Sampling(seed=args.seed) if args.sample else None
    settings = Settings(args.batch_size, args.max_new_tokens, sampling)
    folders = [locate(folder) for folder in args.stack or [args.model]]
    for folder in folders:
        check_place(folder)
    templates = [prompt_of(folder, args.prompt_template) for folder in folders]
    if args.feedback and not any(template.takes_feedback for template in templates):
        raise UserError(
            f"--feedback: the prompt '{templates[0].name}' has no slot for it. Train an Aligner with --prompt_template feedback, "
            "or try that prompt on this one."
        )
    about = {  # not where a server is: it may come back elsewhere
        "model": [fingerprint(folder, args.trust_remote_code) for folder in folders],
        "prompt": [template.text for template in templates],
        "max_new_tokens": args.max_new_tokens,
        "dtype": "the server's" if args.aligner_url else args.dtype or best_dtype(),
        "served model": args.aligner_model,
        "upstream": [args.upstream_model, args.upstream_max_tokens, args.upstream_temperature],
        **({"sampling": asdict(sampling)} if sampling else {}),
    }
    stack = [
        Stage(name, partial(_open, args, folder, settings), template.takes_feedback)
        for name, folder, template in zip(_names(folders), folders, templates, strict=True)
    ]
    upstream = None
    if args.upstream_url:
        server = Server(args.upstream_url, args.upstream_model, args.upstream_key, args.concurrency, args.timeout)
        upstream = Upstream(server, args.upstream_max_tokens, args.upstream_temperature)
    return Work(args.input, args.output, stack, args.rounds, args.feedback, upstream, about)


def _names(folders: Sequence[str]) -> list[str]:
    """The last part of each folder's path, with its place in the stack where two are called alike."""
    names = [Path(folder).resolve().name for folder in folders]
    return [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, 1)]


def _open(args: argparse.Namespace, folder: str, settings: Settings) -> Corrector | ServedAligner:
    """An Aligner here, or the one that is served; of that one the prompt and the tokenizer are here."""
    if not args.aligner_url:
        return Corrector.load(folder, args.prompt_template, settings, args.trust_remote_code, args.dtype)
    server = Server(
        args.aligner_url, args.aligner_model or args.model, args.aligner_key, args.concurrency, args.timeout
    )
    encoder = Encoder(load_tokenizer(folder, args.trust_remote_code))
    positions = positions_of(load_config(folder, args.trust_remote_code)) or 10**9
    return ServedAligner(server, prompt_of(folder, args.prompt_template), encoder, positions, settings)


def drift_lines(drift: Sequence[Drift]) -> list[str]:
    """A table of what each pass changed; none for a single one."""
    if len(drift) < 2:
        return []
    width = max(len(each.name) for each in drift)
    lines = [f"{'':<{width}}  unchanged  like its input  like the answer  length"]
    for each in drift:
        lines.append(
            f"{each.name:<{width}}{each.unchanged:>11.0%}{each.to_input:>15.2f}{each.to_answer:>17.2f}{each.length:>8.2f}"
        )
    return lines
