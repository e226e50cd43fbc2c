"""What the settings name, looked up before anything is asked for: servers, folders, a prompt, verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aligner.building.config import BuildConfig
from aligner.inference.servers import Server
from aligner.known_prompts import find_template
from aligner.records import UserError


def check_places(config: BuildConfig, file: str) -> None:
    """UserError, with the setting's place, where one names what is not there or cannot be."""
    for setting, kind, name in _names(config):
        try:
            _check(kind, name)
        except UserError as error:
            raise UserError(f"{file}: {setting}: {error}") from None


def _names(config: BuildConfig) -> Iterator[tuple[str, str, str]]:
    """The place of each setting, what it names, and the name."""
    models = [("answers.upstreams", each) for each in config.answers.upstreams]
    models += [("corrections.annotators", each) for each in config.corrections.annotators]
    named = [(f"{place}, '{model.name}'", "server", model.url) for place, model in models]
    named += [(f"{place}, '{model.name}'", "folder", model.folder) for place, model in models]
    named += [
        ("leaks.model", "folder", config.leaks.model),
        ("filter.verdicts", "file", config.filter.verdicts),
        ("check.model_name_or_path", "folder", config.check.model_name_or_path),
        ("check.prompt_template", "prompt", config.check.prompt_template),
    ]
    yield from ((place, kind, name) for place, kind, name in named if name)


def _check(kind: str, name: str) -> None:
    if kind == "server":
        Server(name, "")
    elif kind == "prompt":
        find_template(name)
    elif kind == "file" and not Path(name).is_file():
        raise UserError(f"{name}: there is no such file.")
    elif kind == "folder":
        from aligner.demo import locate
        from aligner.models import check_place  # torch, which a build with served models alone does not need

        check_place(locate(name))
