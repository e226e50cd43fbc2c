"""The flags that several commands share, and the way from parsed flags to a command's settings."""

from __future__ import annotations

import argparse
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

Config = TypeVar("Config")


def config_from(args: argparse.Namespace, kind: type[Config]) -> Config:
    """A dataclass filled with the flags of the same names; a field that is a dataclass itself is filled likewise."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        nested = is_dataclass(hints[field.name])
        value = config_from(args, hints[field.name]) if nested else getattr(args, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def add_model_flags(parser: argparse.ArgumentParser, longest: int = 2048) -> None:
    """How models are opened and how they decode. longest: tokens of a text, by default."""
    add = parser.add_argument
    add("--batch_size", type=int, default=8, metavar="N", help="texts decoded at once (8)")
    add("--max_new_tokens", type=int, default=longest, metavar="N", help=f"longest text in tokens ({longest})")
    add(
        "--prompt_template",
        metavar="NAME",
        help="a known prompt or a YAML file, instead of the model's own; needed where it has no aligner.json",
    )
    add("--dtype", choices=("float32", "bfloat16"), help="of the weights (bfloat16 on a GPU that has it, else float32)")
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the model")


def add_steer_flags(parser: argparse.ArgumentParser) -> None:
    """A direction inside the model, added while it decodes."""
    add = parser.add_argument
    add("--steer", metavar="DIR", help="a folder that 'aligner interpret' wrote of this model: add its direction")
    add(
        "--alpha",
        type=float,
        metavar="A",
        help="of --steer: how much of it, in units of the residual's norm; above 0 corrects more, below 0 copies more",
    )
    add("--steer_layer", type=int, metavar="N", help="of --steer: behind which layer, from 1 (the one that DIR chose)")


def add_guard_flags(parser: argparse.ArgumentParser) -> None:
    """Which answers stay as they are."""
    add = parser.add_argument
    add(
        "--keep_unfinished",
        action="store_true",
        help="take corrections that did not end within --max_new_tokens, cut off there, all the same",
    )
    add(
        "--keep",
        choices=("code", "none"),
        default="code",
        help="code: an answer is left alone where its correction would change fenced code in it (code)",
    )
    add(
        "--correct_structured",
        action="store_true",
        help="correct JSON, structured output and the text beside tool calls like prose (otherwise left alone)",
    )
    add(
        "--scripts",
        nargs="+",
        metavar="NAME",
        help="of Unicode (Latin, Han, Cyrillic): leave alone answers with less than half of their letters in these, as languages "
        "that the Aligner was never trained on (any)",
    )


def add_edit_filter_flags(parser: argparse.ArgumentParser) -> None:
    """Which corrections are trained on."""
    add = parser.add_argument
    add("--least_edit", type=float, default=0.0, metavar="X", help="drop corrections that change less of the text (0)")
    add(
        "--length_ratio",
        type=float,
        nargs=2,
        default=(0.0, float("inf")),
        metavar=("LEAST", "MOST"),
        help="drop corrections whose length over the answer's is outside (any length)",
    )


def add_column_flag(parser: argparse.ArgumentParser, roles: str) -> None:
    """The names of the fields in rows that call them otherwise."""
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="ROLE=NAME",
        help=f"fields by other names, of {roles}: question=prompt,answer=response",
    )


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """How servers are called."""
    add = parser.add_argument
    add("--concurrency", type=int, default=8, metavar="N", help="requests to a server at once (8)")
    add(
        "--timeout",
        type=float,
        default=600,
        metavar="S",
        help="seconds for a reply, at each try (600)",
    )
