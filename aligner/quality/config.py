"""The settings of `aligner check`, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from aligner.objectives import FILE
from aligner.records import UserError

COUNTED = ("cut", "unspellable")  # kinds that a tokenizer tells


@dataclass(frozen=True)
class CheckConfig:
    """The settings of `aligner check`, a field for each flag. UserError where one needs another."""

    data: tuple[str, ...]
    eval_datasets: tuple[str, ...] = ()
    register: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    prefer: str | None = None
    multi_turn: bool = False
    pairs: str | None = None
    margin: float | None = None
    pairs_per_question: int | None = None
    damage: str | None = None
    hold_back: str | None = None
    format: str | None = None
    sentences: bool = False
    objectives_file: str = FILE
    model_name_or_path: str | None = None
    max_length: int = 2048
    prompt_template: str | None = None
    exact: bool = False
    dump: str | None = None
    output: str | None = None
    json: bool = False
    fail_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.needs_all_tokens and not self.model_name_or_path:
            raise UserError("--dump and --fail_on cut or unspellable need a tokenizer: --model_name_or_path TOK.")
        if {"overlap", "near-overlap"} & set(self.fail_on) and not self.eval_datasets:
            raise UserError("--fail_on overlap needs --eval_datasets PATH.")

    @property
    def needs_all_tokens(self) -> bool:
        """Whether a sample of the rows would not do for the tokens."""
        return bool(self.dump or {*COUNTED} & {*self.fail_on})
