"""A finished folder -> the hub: weights, tokenizer, prompt and a model card, and nothing else of the run."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from aligner.card import FILE, Card, read_card, write_card
from aligner.files import is_completed, write_text
from aligner.hub import is_logged_in, upload
from aligner.records import UserError
from aligner.training.checkpoint.model_card import model_card, public

# What `save_pretrained` of a model and its tokenizer write; no log, no resume state, no command line, no picture.
PUBLISHED = re.compile(
    r"config\.json|generation_config\.json|model.*\.safetensors(\.index\.json)?|tokenizer.*|special_tokens_map\.json|vocab\..*|merges\.txt"
    r"|added_tokens\.json|spiece\.model|chat_template\.jinja|.*\.py"
)


def files_to_push(folder: Path) -> list[Path]:
    """The files of a finished folder that others need. UserError where it is no finished Aligner."""
    if not is_completed(folder) or read_card(folder) is None:
        raise UserError(
            f"{folder}: is no finished Aligner (it has no COMPLETED or no {FILE}). Name the output folder of a run."
        )
    return sorted(path for path in folder.iterdir() if path.is_file() and PUBLISHED.fullmatch(path.name))


@contextmanager
def publishable(folder: Path, repo: str, evaluation: Path | None) -> Iterator[Path]:
    """A folder with exactly what is published; weights are linked or copied."""
    files, card = files_to_push(folder), read_card(folder)
    assert card is not None
    with tempfile.TemporaryDirectory(dir=folder, prefix=".push-") as name:
        staged = Path(name)
        for file in files:
            try:
                os.link(file, staged / file.name)
            except OSError:  # a file system without links
                shutil.copyfile(file, staged / file.name)
        write_card(staged, public_card(card))
        write_text(staged / "README.md", model_card(card, repo, evaluation))
        yield staged


def public_card(card: Card) -> Card:
    """The card without the paths of the machine that trained it, of which the names stay."""
    data = {
        **card.data,
        **{side: [_public(source) for source in card.data.get(side, [])] for side in ("train", "eval")},
    }
    data["tally"] = {
        side: {**tally, "places": {kind: _named(files) for kind, files in tally.get("places", {}).items()}}
        for side, tally in card.data.get("tally", {}).items()
    }
    return replace(
        card, base_model=public(card.base_model), data=data, config={k: _short(v) for k, v in card.config.items()}
    )


def _public(source: dict[str, Any]) -> dict[str, Any]:
    spec = str(source["spec"]).replace(str(source["path"]), public(str(source["path"])))
    return {**source, "spec": spec, "path": public(str(source["path"])), "files": _named(source.get("files", {}))}


def _named(files: dict[str, Any]) -> dict[str, Any]:
    return {public(path): value for path, value in files.items()}


def _short(value: Any) -> Any:
    """A flag's value with each path in it as its name."""
    if isinstance(value, list):
        return [_short(each) for each in value]
    if not isinstance(value, str):
        return value
    return ":".join(public(part) for part in value.split(":"))


def push(
    folder: Path, repo: str, evaluation: Path | None, private: bool, dry_run: bool
) -> tuple[list[tuple[str, int]], str, str]:
    """Upload, or only say what would be: the files with their sizes, the model card, and where it lies ('' of a dry run).

    Without a token nothing is uploaded. UserError where the hub refuses.
    """
    with publishable(folder, repo, evaluation) as staged:
        files = [(path.name, path.stat().st_size) for path in sorted(staged.iterdir())]
        text = (staged / "README.md").read_text(encoding="utf-8")
        if dry_run or not is_logged_in():
            return files, text, ""
        return files, text, upload(staged, repo, "model", private, "Aligner")
