"""What building.yaml says: where questions come from, who answers and corrects, what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from aligner.hub import is_hub_address
from aligner.rounds.filters import WANTED

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
