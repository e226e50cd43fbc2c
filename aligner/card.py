"""aligner.json: the description of a checkpoint, with the text of the prompt it was trained with."""

from __future__ import annotations

import importlib.metadata
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aligner.files import read_json, write_json
from aligner.known_prompts import KNOWN, OF_BASE, find_template
from aligner.objectives import FILE as OBJECTIVES_FILE
from aligner.objectives import PUBLISHED, read_objectives
from aligner.prompts import PromptTemplate
from aligner.readers.paths import nearest_folder
from aligner.records import UserError
from aligner.terminal import warn_once

FILE = "aligner.json"
PACKAGES = ("qac-aligner", "torch", "transformers", "deepspeed", "datasets", "accelerate")


@dataclass(frozen=True)
class Card:
    """The description of a checkpoint.

    `settings` holds the flags that decide the weights; `data` the specs with sha256 and tallies, and under `deciding`
    the part of them that does; `config` every flag of the run.
    """

    prompt: PromptTemplate
    stage: str
    base_model: str
    base_model_sha256: str
    max_length: int
    records_per_update: int
    data: dict[str, Any]
    settings: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def objectives(self) -> dict[str, str]:
        """The objectives that the records name, each with the sentence that the model saw for it; mostly none."""
        return dict(self.data["deciding"].get("objectives", {}))

    def fingerprint_fields(self) -> dict[str, Any]:
        """All that decides the weights, by name: two cards that agree in it describe the same run."""
        return {
            "prompt": self.prompt.text,
            "base_model": self.base_model_sha256,
            "records_per_update": self.records_per_update,
            **self.data["deciding"],
            **self.settings,
        }


def differences(old: Card, new: Card) -> list[str]:
    """The names of the fingerprint fields that differ, with both values where they are short."""
    before, after = old.fingerprint_fields(), new.fingerprint_fields()
    names = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            values = f"{before.get(name)} -> {after.get(name)}"
            names.append(f"{name} ({values})" if len(values) < 60 else name)
    return names


def package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result; one that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_card(folder: str | Path, card: Card) -> None:
    """Write `aligner.json` into a folder."""
    write_json(Path(folder) / FILE, asdict(card))


def read_card(folder: str | Path) -> Card | None:
    """The card of a folder, or None where there is none. UserError where it is not one."""
    file = Path(folder) / FILE
    return card_from(read_json(file), str(file)) if file.is_file() else None


def card_from(value: Any, place: str) -> Card:
    """A card from the plain value that `asdict` made of one. UserError, naming the place, where it is not one."""
    try:
        prompt = PromptTemplate(str(value["prompt"]["name"]), str(value["prompt"]["text"]))
        card = Card(**{**value, "prompt": prompt})
        card.fingerprint_fields()
        return card
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise UserError(f"{place}: is not an Aligner's card ({error}). Pass --prompt_template to go without.") from None


def prompt_of(folder: str, chosen: str | None) -> PromptTemplate:
    """The prompt to use with a model: the chosen one, else its card's. UserError names the known ones."""
    if chosen in OF_BASE:
        raise UserError(
            f"--prompt_template {chosen} is for training: the {FILE} of such a model has the text. Leave it out."
        )
    if chosen:
        template = find_template(chosen)
        with suppress(UserError):  # a broken card is no reason to refuse a chosen prompt
            own = read_card(folder) if Path(folder).is_dir() else None
            if own and own.prompt.text != template.text:
                warn_once(f"{folder} was trained with the prompt '{own.prompt.name}', and '{template.name}' is used")
        return template
    card = read_card(folder) if Path(folder).is_dir() else _hub_card(folder)
    if card is None:
        raise _no_card(folder)
    return card.prompt


def objectives_of(folder: str, prompt: PromptTemplate) -> dict[str, str]:
    """The objectives that a model can be asked for by name: those of its card, or of a published prompt, or the usual ones."""
    if prompt.name in PUBLISHED:
        return read_objectives(PUBLISHED[prompt.name])
    card = None
    with suppress(UserError):  # a broken card has been reported where its prompt was wanted
        card = read_card(folder) if Path(folder).is_dir() else _hub_card(folder)
    return (card and card.objectives) or read_objectives(OBJECTIVES_FILE)


def _no_card(folder: str) -> UserError:
    """What is wrong with a model without a card: it is not there, it is a resume state, or its prompt is unknown."""
    place = Path(folder)
    if place.is_dir() and not (place / "config.json").is_file() and not (place / "state.json").is_file():
        return UserError(
            f"{folder} holds no model: it has no config.json and no aligner.json. Name an output folder or a hub id."
        )
    if (place / "state.json").is_file():
        return UserError(
            f"{folder} is a resume state, not a model. Write it as one: aligner export {folder} --output MODEL."
        )
    remedy = (
        f"Pass --prompt_template with one of {', '.join(KNOWN)}, or with a YAML file (aligner-7b-v1.0 was trained with "
        "edit-pair)."
    )
    if not place.is_dir():
        return UserError(
            f"'{folder}': there is no such folder, and no {FILE} of a model of that name can be fetched from the hub."
            f"{nearest_folder(folder) or ' Check the name.'} If the model is on the hub and has none: "
            f"{remedy[0].lower()}{remedy[1:]}"
        )
    return UserError(f"{folder} has no {FILE}, so the prompt it was trained with is unknown. {remedy}")


def _hub_card(model: str) -> Card | None:
    """The card of a model on the hub, or None where it has none or the hub cannot be reached."""
    from transformers.utils import cached_file

    try:
        file = cached_file(model, FILE, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return card_from(read_json(file), f"{model}/{FILE}") if file else None
