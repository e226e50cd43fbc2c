"""building.yaml: where questions come from, who answers and corrects, what is kept. Read strictly, before anything is paid for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import PurePath
from typing import Any, get_args, get_origin, get_type_hints

from aligner.files import read_yaml
from aligner.hub import is_hub_address
from aligner.records import UserError
from aligner.rounds.filters import WANTED
from aligner.texts import kind_of

PRINCIPLES = "configs/building/principles.yaml"
PEOPLE = "people"  # the annotator who is no model


@dataclass(frozen=True)
class SourceConfig:
    """Where questions come from. data: a registered data set (NAME[:PROPORTION[:PATH]]), a file, or hub:ORG/NAME. share: its weight
    among the questions that are kept. question: the field that holds the question. harmless: nobody asks for harm there."""

    data: str
    name: str = ""
    share: float | None = None
    licence: str = ""
    question: str = ""
    harmless: bool = False

    @property
    def label(self) -> str:
        """What the source is called in rows and tables: its name, else its data set or its file's name."""
        return self.name or (self.data if is_hub_address(self.data) else PurePath(self.data).name)


@dataclass(frozen=True)
class QuestionsConfig:
    """Which questions are kept. limit: how many in all. near: the least share of words that near duplicates have in common
    (null: only equal ones go). scripts: of Unicode, of which half of the letters must be. languages: ISO 639-1 codes.
    characters: least and most of a question. repetition: the least share of different runs of three words."""

    limit: int | None = None
    near: float | None = 0.97
    scripts: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    characters: tuple[int, ...] = (8, 4000)
    repetition: float = 0.5


@dataclass(frozen=True)
class LeaksConfig:
    """The evaluation sets whose questions must not be trained on. ngram: words of a run that is looked for. containment: the least
    share of a set's question's runs in a question. near: as of duplicates, without excuses for names (null: only equal and
    contained ones go). model: a folder or hub id whose embeddings are compared too. similarity: the least cosine of two
    embeddings that are taken for the same question."""

    sets: tuple[str, ...] = ()
    ngram: int = 8
    containment: float = 0.5
    near: float | None = 0.97
    model: str | None = None
    similarity: float = 0.95


@dataclass(frozen=True)
class Price:
    """What a million tokens cost, read and written, in the build's currency."""

    read: float = 0.0
    written: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """A model that answers or corrects: behind a server (url and model) or here (folder). key: the variable with the server's key.
    share: its weight among the others. Sampling as the model takes it; repetition_penalty is sent to servers alone, and
    what a server refuses is left out and said."""

    name: str
    url: str | None = None
    model: str | None = None
    key: str = "OPENAI_API_KEY"
    folder: str | None = None
    share: float = 1.0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float | None = None
    max_tokens: int = 2048
    dialect: str = "openai"
    concurrency: int = 8
    timeout: float = 600
    batch_size: int = 8
    price: Price = Price()

    @property
    def is_people(self) -> bool:
        """Whether it stands for people, who have no draft."""
        return self.name == PEOPLE

    def deciding(self) -> dict[str, Any]:
        """What decides a reply: not where the model is served, nor how quickly it is called."""
        names = ("model", "folder", "temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "dialect")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class AnswersConfig:
    """Who answers. per_question: how many of the upstreams, drawn by their shares (null: all). keep_unfinished: take answers that
    were cut off at max_tokens."""

    upstreams: tuple[ModelConfig, ...]
    per_question: int | None = None
    keep_unfinished: bool = False


@dataclass(frozen=True)
class CorrectionsConfig:
    """Who corrects, drawn by their shares; `people` among them correct without a draft. principles: a copy of
    configs/building/principles.yaml."""

    annotators: tuple[ModelConfig, ...]
    principles: str = PRINCIPLES


@dataclass(frozen=True)
class PeopleConfig:
    """Which corrections people look at. review: the share of the models' corrections. readers: how many look at each. wait: whether
    the build waits for them; otherwise what they have not settled is dropped."""

    review: float = 0.0
    readers: int = 2
    wait: bool = True


@dataclass(frozen=True)
class FilterConfig:
    """Which corrections are kept. unchanged: the largest share of the rows that may equal their answer. least_edit, most_edit: of
    the share of the text that is changed. length_ratio: characters of a correction over its answer's, least and most. longest:
    characters of an answer or a correction. refusals: keep or drop refusals of harmless questions. verdicts: a verdicts.jsonl of
    `aligner evaluate`; wanted, dimensions: as of `aligner pairs`."""

    unchanged: float = 0.0
    least_edit: float = 0.0
    most_edit: float = 0.98
    length_ratio: tuple[float, ...] = (0.1, 10.0)
    longest: int = 8000
    refusals: str = "drop"
    verdicts: str | None = None
    wanted: str = WANTED[0]
    dimensions: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckConfig:
    """`aligner check` as the last stage. model_name_or_path: a tokenizer, with which rows longer than max_length tokens go."""

    model_name_or_path: str | None = None
    max_length: int = 2048
    prompt_template: str | None = None


@dataclass(frozen=True)
class BuildConfig:
    """A whole building.yaml. cap: the most money that models may cost, all tries together. licence: of what is built, if one is
    chosen. register: Python files that register data sets."""

    sources: tuple[SourceConfig, ...]
    answers: AnswersConfig
    corrections: CorrectionsConfig
    name: str = "corrections"
    licence: str = ""
    seed: int = 42
    cap: float | None = None
    currency: str = "USD"
    register: tuple[str, ...] = ()
    questions: QuestionsConfig = QuestionsConfig()
    leaks: LeaksConfig = LeaksConfig()
    people: PeopleConfig = PeopleConfig()
    filter: FilterConfig = FilterConfig()
    check: CheckConfig = CheckConfig()


def read_config(file: str) -> BuildConfig:
    """The settings in a file. UserError, naming the place, where one is missing, unknown, or cannot be meant."""
    config: BuildConfig = _filled(BuildConfig, read_yaml(file), file, "")
    for place, finding in _findings(config):
        raise UserError(f"{file}: {place}: {finding}")
    return config


def _filled(kind: Any, value: Any, file: str, place: str) -> Any:
    """A dataclass from names and values."""
    where = f"{file}: {place}: " if place else f"{file}: "
    if not isinstance(value, Mapping):
        raise UserError(f"{where}holds {kind_of(value)}, not names and values.")
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    for name in value:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise UserError(f"{where}'{name}' is not known. {f'Did you mean {near[0]!r}?' if near else 'Remove it.'}")
    for name, field in known.items():
        if name not in value and field.default is MISSING:
            raise UserError(f"{where}'{name}' is missing.")
    inside = f"{place}." if place else ""
    return kind(**{name: _value(hints[name], each, file, f"{inside}{name}") for name, each in value.items()})


def _value(hint: Any, value: Any, file: str, place: str) -> Any:
    """A value of the type that a field has."""
    if is_dataclass(hint):
        return _filled(hint, value, file, place)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{file}: {place}: holds {kind_of(value)}, not a list.")
        return tuple(_value(get_args(hint)[0], each, file, f"{place}[{n}]") for n, each in enumerate(value))
    choices = get_args(hint) or (hint,)
    if value is None and type(None) in choices:
        return None
    if float in choices and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not any(type(value) is choice for choice in choices):
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise UserError(f"{file}: {place}: holds {kind_of(value)}, not {names[choices[0]]}.")
    return value


def _findings(config: BuildConfig) -> list[tuple[str, str]]:
    """What cannot be meant: the place, and the finding with its remedy."""
    sources = [source.label for source in config.sources]
    shares = [source.share is not None for source in config.sources]
    people = [each for each in config.corrections.annotators if each.is_people]
    filters, questions = config.filter, config.questions
    tests = [
        ("sources", not sources, "none is named. Name one at least."),
        ("sources", len({*sources}) < len(sources), "two have the same name. Give each a 'name' of its own."),
        ("sources", any(shares) and not all(shares), "some have a share and some have none. Give all one, or none."),
        ("sources", any((source.share or 1) <= 0 for source in config.sources), "a share must be above 0."),
        ("questions.characters", not _is_range(questions.characters), "give the least and the most, as [8, 4000]."),
        ("questions.near", not 0 < (questions.near or 1) <= 1, "it is a share, above 0 and at most 1."),
        ("leaks.near", not 0 < (config.leaks.near or 1) <= 1, "it is a share, above 0 and at most 1."),
        ("leaks.ngram", config.leaks.ngram < 3, "it must be at least 3 words."),
        ("leaks.containment", not 0 < config.leaks.containment <= 1, "it is a share, above 0 and at most 1."),
        ("people.review", not 0 <= config.people.review <= 1, "it is a share, 0 to 1."),
        ("people.readers", config.people.readers < 1, "it must be at least 1."),
        ("people", bool(people) and any(each.url or each.folder for each in people), "are no model: leave url out."),
        ("filter.unchanged", not 0 <= filters.unchanged <= 1, "it is a share, 0 to 1."),
        ("filter.most_edit", not 0 <= filters.least_edit <= filters.most_edit <= 1, "edits are shares, 0 to 1."),
        ("filter.length_ratio", not _is_range(filters.length_ratio), "give the least and the most, as [0.1, 10]."),
        ("filter.refusals", filters.refusals not in ("keep", "drop"), "it is 'keep' or 'drop'."),
        ("filter.wanted", filters.wanted not in WANTED, f"it is one of {', '.join(WANTED)}."),
    ]
    findings = [(place, text) for place, wrong, text in tests if wrong]
    for place, models in (("answers.upstreams", config.answers.upstreams),
                          ("corrections.annotators", config.corrections.annotators)):  # fmt: skip
        findings += [(place, text) for text in _model_findings(models)]
    if any(each.is_people for each in config.answers.upstreams):
        findings.append(("answers.upstreams", f"'{PEOPLE}' only correct. Name a model."))
    return findings


def _is_range(value: tuple[float, ...]) -> bool:
    return len(value) == 2 and 0 <= value[0] <= value[1]


def _model_findings(models: tuple[ModelConfig, ...]) -> list[str]:
    """What is wrong with the models of one stage."""
    findings = [] if models else ["none is named. Name one at least."]
    if len({each.name for each in models}) < len(models):
        findings.append("two have the same name. Give each its own.")
    for each in models:
        if not each.is_people and bool(each.url) == bool(each.folder):
            findings.append(f"'{each.name}' needs either url and model, or folder.")
        elif each.url and not each.model:
            findings.append(f"'{each.name}' needs 'model', its name on the server.")
        if each.folder and each.repetition_penalty is not None:
            findings.append(f"'{each.name}': repetition_penalty is for servers. Leave it out.")
        if each.share <= 0 or each.concurrency < 1 or each.max_tokens < 1 or each.batch_size < 1:
            findings.append(f"'{each.name}': share must be above 0; concurrency, max_tokens, batch_size at least 1.")
        if not 0 <= each.temperature <= 2 or not 0 < each.top_p <= 1 or each.top_k < 0:
            findings.append(
                f"'{each.name}': temperature is 0 to 2, top_p above 0 and at most 1, top_k 0 (off) or more."
            )
    return findings
