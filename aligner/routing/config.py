"""routes.yaml: the Aligners, the rules on the question, and the questions that the classifier learns from.

aligners     by name: model, and if need be rows, aligner_url, aligner_model, aligner_key, prompt_template
none         rows of questions whose answers are to be left alone
rules        in order, the first that fits: matches, words, at_least, at_most (words of the question), and to
features     the local model whose hidden states the classifier reads (the first Aligner that is local)
classifier   the folder that `aligner route FILE --train` writes (NAME-classifier, beside the file)
with_answer  whether the classifier reads the answer too (false)
otherwise    the choice where no rule fits and there is no classifier, or it is less sure than `sure`
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from aligner.files import read_yaml
from aligner.records import UserError
from aligner.texts import kind_of

NONE = "none"  # the choice that leaves an answer alone
KEYS = ("aligners", "none", "rules", "features", "classifier", "with_answer", "otherwise", "sure")


@dataclass(frozen=True)
class RoutedModel:
    """An Aligner that may be chosen. model: its folder or hub id, which of a served one gives prompt and tokenizer. rows: files
    with questions that are its own. aligner_url: the servers that have it; aligner_key: the variable with their key."""

    name: str
    model: str
    rows: tuple[str, ...] = ()
    aligner_url: tuple[str, ...] = ()
    aligner_model: str | None = None
    aligner_key: str = "ALIGNER_API_KEY"
    prompt_template: str | None = None


@dataclass(frozen=True)
class Rule:
    """Where all that it says holds of a question, the choice is `to`. words: any of them, as whole words or phrases in any case.
    at_least, at_most: words of the question."""

    to: str
    matches: str | None = None
    words: tuple[str, ...] = ()
    at_least: int | None = None
    at_most: int | None = None


@dataclass(frozen=True)
class Routes:
    """The contents of a routes.yaml."""

    file: str
    aligners: Mapping[str, RoutedModel]
    none: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    features: str | None = None
    classifier: str = ""
    otherwise: str | None = None
    sure: float = 0.0
    with_answer: bool = False
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of each choice that the classifier knows

    def text_of(self, question: str, answer: str) -> str:
        """What the classifier reads."""
        return f"{question}\n\n{answer}" if self.with_answer else question

    def check_local(self) -> None:
        """UserError where an Aligner is served: a server gives no losses."""
        if served := [each.name for each in self.aligners.values() if each.aligner_url]:
            raise UserError(
                f"{self.file}: '{served[0]}' is served, and losses need it here. Leave out its aligner_url."
            )

    def features_model(self) -> str:
        """The model whose states are read. UserError where every Aligner is served and none is named."""
        local = [each.model for each in self.aligners.values() if not each.aligner_url]
        if not self.features and not local:
            raise UserError(f"{self.file}: every Aligner is served. Name a local model under 'features'.")
        return self.features or local[0]


def read_routes(path: str) -> Routes:
    """Read a routes.yaml. UserError where something is missing, unknown or misspelt."""
    value = read_yaml(path)
    if not isinstance(value, dict) or not isinstance(value.get("aligners"), dict) or not value["aligners"]:
        raise UserError(f"{path}: needs 'aligners', each with a name and its model.")
    _known(path, value, KEYS)
    aligners = {str(name): _aligner(f"{path}: aligners: {name}", str(name), v) for name, v in value["aligners"].items()}
    if NONE in aligners:
        raise UserError(f"{path}: no Aligner can be called '{NONE}', which is the choice to leave an answer alone.")
    none = _none(f"{path}: {NONE}", value.get(NONE))
    rules = value.get("rules") or []
    if not isinstance(rules, list):
        raise UserError(f"{path}: rules: holds {kind_of(rules)}; it is a list.")
    own = {name: each.rows for name, each in aligners.items() if each.rows} | ({NONE: none} if none else {})
    routes = Routes(
        file=path,
        aligners=aligners,
        none=none,
        rules=tuple(_rule(f"{path}: rule {number}", rule) for number, rule in enumerate(rules, 1)),
        features=value.get("features"),
        classifier=str(value.get("classifier") or Path(path).with_name(f"{Path(path).stem}-classifier")),
        otherwise=value.get("otherwise"),
        sure=_share(path, value.get("sure", 0.0)),
        with_answer=_truth(path, value.get("with_answer", False)),
        rows=own,
    )
    _check(path, routes)
    return routes


def _check(path: str, routes: Routes) -> None:
    """UserError where a choice is none, or a question could be left without one."""
    choices = [*routes.aligners, NONE]
    named = [(f"rule {number}: to", rule.to) for number, rule in enumerate(routes.rules, 1)]
    for place, choice in [*named, *([("otherwise", routes.otherwise)] if routes.otherwise else [])]:
        if choice not in choices:
            raise UserError(f"{path}: {place}: there is no '{choice}'. There are {', '.join(choices)}.")
    if len(routes.rows) == 1:
        raise UserError(
            f"{path}: only '{next(iter(routes.rows))}' has rows. The classifier needs two choices with rows."
        )
    if not routes.otherwise and (not routes.rows or routes.sure):
        why = "where the classifier is not sure" if routes.rows else "where no rule fits, for nothing has rows"
        raise UserError(f"{path}: 'otherwise' is missing: the choice {why}.")


def _aligner(place: str, name: str, value: Any) -> RoutedModel:
    value = {"model": value} if isinstance(value, str) else value
    if not isinstance(value, dict) or not isinstance(value.get("model"), str):
        raise UserError(f"{place}: needs a model: an output folder or a hub id.")
    _known(place, value, [key for key in RoutedModel.__dataclass_fields__ if key != "name"])
    lists = {key: _texts(f"{place}: {key}", value[key]) for key in ("rows", "aligner_url") if key in value}
    if value.get("aligner_model") and not lists.get("aligner_url"):
        raise UserError(f"{place}: aligner_model needs aligner_url.")
    return RoutedModel(**{**value, **lists, "name": name})


def _none(place: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or set(value) != {"rows"}:
        raise UserError(f"{place}: needs rows, and no more: files with questions whose answers are to be left alone.")
    return _texts(f"{place}: rows", value["rows"])


def _rule(place: str, value: Any) -> Rule:
    if not isinstance(value, dict) or not isinstance(value.get("to"), str) or len(value) < 2:
        raise UserError(f"{place}: needs 'to', and one of matches, words, at_least, at_most.")
    _known(place, value, list(Rule.__dataclass_fields__))
    for key in ("at_least", "at_most"):
        if key in value and (not isinstance(value[key], int) or isinstance(value[key], bool)):
            raise UserError(f"{place}: {key} is {value[key]!r}: it is a number of words.")
    try:
        regex.compile(value.get("matches") or "")
    except (regex.error, TypeError) as error:
        raise UserError(f"{place}: matches is no regular expression ({error}).") from None
    words = {"words": _texts(f"{place}: words", value["words"])} if "words" in value else {}
    return Rule(**{**value, **words})


def _texts(place: str, value: Any) -> tuple[str, ...]:
    """A text, or a list of them."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(each, str) and each for each in listed):
        raise UserError(f"{place}: holds {kind_of(value)}; it is a text or a list of texts.")
    return tuple(listed)


def _share(path: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{path}: sure is {value!r}: it is a probability, from 0 and below 1.")
    return float(value)


def _truth(path: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{path}: with_answer is {value!r}: it is true or false.")
    return value


def _known(place: str, value: Mapping[str, Any], names: Any) -> None:
    for key in value:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" There are {', '.join(names)}."
            raise UserError(f"{place}: '{key}' is not known.{hint}")
