"""An experiment as a YAML file: its rows, how their questions are split, the runs, and what is measured of each.

Questions are split three ways. Aligners are trained on the first part; recipes are compared on the second; the third is measured
once, for the chosen recipe alone.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.chat_api.dialogue import candidate_questions
from aligner.evaluation.measures.config import MEASURES
from aligner.files import read_yaml
from aligner.questions import question_key
from aligner.readers.rows import read_rows
from aligner.records import DataError, UserError
from aligner.reproduce.comparison import Comparison, known_flags, read_comparison
from aligner.shipped import shipped
from aligner.texts import kind_of
from aligner.training.datasets.damage import damage_plan
from aligner.training.flags import SPELLINGS

FOLDER = shipped("configs/reproduce")
SIDES = ("train", "choose", "report")
RUN_KEYS = {
    "rows",
    "upstream",
    "shuffled",
    "share",
    "records",
    "like",
    "nats_ahead",
    "leave_out",
    "from",
    "beside",
    "trained",
}  # of a run, besides flags of training
OPTIONAL = {
    "answers",
    "comparison",
    "damage",
    "fewest_words",
    "measures",
    "own_words",
    "passes",
    "rated",
    "route",
    "sets",
    "types_held_back",
    "upstream",
}
HELD_BACK = "types never trained on"  # the part that prompts of such a type are reported in
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Scale:
    """One size of an experiment. train: flags that all runs share. runs: what each changes, by its name (`like`: it is the Aligner
    of that run, which corrects otherwise; `leave_out`: an objective that it does not learn; `from`: the run whose Aligner it begins
    from; `beside`: shares of other runs' rows; `trained`: a folder, which is not trained anew). seconds: of a record trained on
    once, of an answer corrected (correction), of a pair whose likelihoods are compared (pair), on two quiet cores, for the
    estimate. gpus, gpu_memory, records, tokens_per_row, tflops (of a GPU): for the plan. commands: further ones, as typed."""

    train: Fields = field(default_factory=dict)
    runs: Mapping[str, Fields] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    gpus: int = 8
    gpu_memory: int = 80
    records: int = 20_000
    tokens_per_row: float = 760
    tflops: float = 125
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """The contents of a YAML file.

    rows: files in the data folder. longest: characters of an answer or correction at most. questions: how many for each side
    (choose: 0 where the runs are no recipes to choose from: each is reported). limit: on each side so many at most, for a trial;
    None: as the file says. answers: of a side to measure at most. damage: what `--hold_back` keeps for measuring, where the records
    are restorations; else None. rated: pairs of each objective by its name, where the records are pairs of a question's answers,
    rated by what their texts show; else None. own_words: beside them, rows of each objective whose target is the answer's own
    words. fewest_words: of an answer that is measured. upstream: flags of `aligner baseline`, where the rows are prompts to decline
    or not, which this model answers first; else None. types_held_back: types of prompts (`type` of a row) that are reported alone,
    as a part of its own. passes: corrections of corrections, to see whether they settle. comparison: of other methods with the
    Aligner. sets: files by name, where every run is measured by its loss on each; route: runs that one is trained between. Where
    there is no scale `small`, the paper's commands are all there is.
    """

    name: str
    about: str
    scales: Mapping[str, Scale]
    rows: tuple[str, ...] = ()
    longest: int = 0
    questions: Mapping[str, int] = field(default_factory=dict)
    measures: tuple[str, ...] = ()
    answers: Mapping[str, int] = field(default_factory=dict)
    damage: str | None = None
    rated: Mapping[str, int] | None = None
    own_words: Mapping[str, int] = field(default_factory=dict)
    fewest_words: int = 0
    upstream: Fields | None = None
    types_held_back: tuple[str, ...] = ()
    passes: int = 1
    limit: int | None = None
    comparison: Comparison | None = None
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    route: tuple[str, ...] = ()

    @property
    def data_set(self) -> str:
        """The data set of its records."""
        if self.damage:
            return "restoration"
        return "declining" if self.upstream else "correction-json"

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a row that must be there, and short enough."""
        return ("question",) if self.upstream else ("question", "answer", "correction")

    @property
    def chooses(self) -> bool:
        """Whether recipes are compared on questions of their own; else every run that is no control is reported."""
        return self.questions["choose"] > 0

    def most(self, side: str) -> int:
        """Questions on a side at most."""
        return self.questions[side] if self.limit is None else min(self.limit, self.questions[side])


def experiment_names() -> list[str]:
    """The experiments that come with the project."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def read_experiment(name: str) -> Experiment:
    """Read an experiment by its name or its file. UserError where something is missing, unknown or misspelt."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not file.is_file():
        raise UserError(
            f"there is no experiment '{name}'. There are {', '.join(experiment_names())}; or give a YAML file."
        )
    value = read_yaml(file)
    needed = {"about", "rows", "longest", "questions", "small", "paper"}
    if not isinstance(value, dict) or "sets" not in value:
        needed.add("measures")
    if isinstance(value, dict) and value.keys() == {"about", "paper"}:
        return Experiment(file.stem, str(value["about"]), {"paper": _scale(f"{file}: paper", value["paper"])})
    if not isinstance(value, dict) or needed - value.keys():
        missing = min(needed - value.keys()) if isinstance(value, dict) else "keys"
        raise UserError(f"{file}: has no {missing}. It needs {', '.join(sorted(needed))}.")
    if unknown := value.keys() - needed - OPTIONAL:
        known = ", ".join((*sorted(needed), *sorted(OPTIONAL)))
        raise UserError(f"{file}: '{min(unknown)}' is not known. There are {known}.")
    if wrong := [each for each in value.get("measures", ()) if each not in MEASURES]:
        raise UserError(f"{file}: there is no measure '{wrong[0]}'. There are {', '.join(MEASURES)}.")
    if not isinstance(value["questions"], dict) or set(value["questions"]) != set(SIDES):
        raise UserError(f"{file}: questions needs {', '.join(SIDES)}, each with a number.")
    damage_plan(None, value.get("damage"))
    if "upstream" in value:
        if not isinstance(value["upstream"], dict):
            raise UserError(
                f"{file}: upstream holds {kind_of(value['upstream'])}; it needs flags of 'aligner baseline'."
            )
        known_flags(f"{file}: upstream", set(value["upstream"]))
    if not isinstance(value.get("types_held_back", []), list):
        raise UserError(f"{file}: types_held_back needs a list of the prompts' types.")
    scales = {scale: _scale(f"{file}: {scale}", value[scale]) for scale in ("small", "paper")}
    if strange := [name for name in value.get("route", ()) if name not in scales["small"].runs]:
        raise UserError(f"{file}: route: there is no run '{strange[0]}'. There are {', '.join(scales['small'].runs)}.")
    return Experiment(
        name=file.stem,
        about=str(value["about"]),
        rows=tuple(value["rows"]),
        longest=int(value["longest"]),
        questions=value["questions"],
        measures=tuple(value.get("measures", ())),
        scales=scales,
        answers=value.get("answers", {}),
        damage=value.get("damage"),
        rated=value.get("rated"),
        own_words=value.get("own_words", {}),
        fewest_words=int(value.get("fewest_words", 0)),
        upstream=value.get("upstream"),
        types_held_back=tuple(value.get("types_held_back", ())),
        passes=int(value.get("passes", 1)),
        comparison=read_comparison(f"{file}: comparison", value["comparison"]) if "comparison" in value else None,
        sets={name: tuple(files) for name, files in value.get("sets", {}).items()},
        route=tuple(value.get("route", ())),
    )


def _scale(place: str, value: Any) -> Scale:
    if not isinstance(value, dict) or not ({"train", "runs"} <= value.keys() or "commands" in value):
        raise UserError(f"{place}: holds {kind_of(value)}; it needs train and runs, or commands.")
    if unknown := value.keys() - set(Scale.__dataclass_fields__):
        raise UserError(f"{place}: '{min(unknown)}' is not known. There are {', '.join(Scale.__dataclass_fields__)}.")
    for name, flags in {"train": value.get("train"), **value.get("runs", {})}.items():
        for flag in flags or {}:
            if flag not in SPELLINGS and flag not in RUN_KEYS:
                near = difflib.get_close_matches(flag, [*SPELLINGS, *RUN_KEYS], n=1)
                raise UserError(
                    f"{place}: {name}: there is no flag '{flag}'.{f' Did you mean {near[0]!r}?' if near else ''}"
                )
    runs = {name: dict(flags or {}) for name, flags in value.get("runs", {}).items()}
    if strange := [name for name, run in runs.items() if "like" in run and "like" in runs.get(run["like"], run)]:
        raise UserError(f"{place}: {strange[0]}: there is no run '{runs[strange[0]]['like']}' that is trained.")
    for name, run in runs.items():
        earlier = list(runs)[: list(runs).index(name)]
        if late := [other for other in (run.get("from"), *run.get("beside", {})) if other and other not in earlier]:
            raise UserError(f"{place}: {name}: '{late[0]}' is no run that is trained before it.")
    return Scale(**{**value, "runs": runs, "commands": tuple(value.get("commands", ()))})


def rows_by_side(experiment: Experiment, data: Path, files: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """The rows of these files, by the side that their question is on.

    A question's side depends on its text alone: it is the same in every file and every run. Those of a type that is held back are
    reported, all of them.
    """
    rows: list[dict[str, Any]] = []
    held: list[dict[str, Any]] = []
    for file in files:
        path = data / file
        if not path.exists():
            raise UserError(
                f"{path}: there is no such file. --data names the folder with {', '.join(experiment.rows)}."
            )
        for row in read_rows(path):
            if isinstance(row, DataError):
                raise row
            fields = _question_of_chat(row.value)
            if _fits(fields, experiment) and fields.get("answer", "-"):  # a prompt that was not answered has none
                back = fields.get("type") in experiment.types_held_back
                (held if back else rows).append({**fields, "part": HELD_BACK} if back else fields)
    order = sorted({digest_of(row["question"]) for row in rows})
    total, sides, start = sum(experiment.questions.values()), {}, 0.0
    for side in ("report", "choose", "train"):
        # By shares of all keys, so that a question keeps its side in a file that has other questions beside it.
        end = start + experiment.questions[side] / total
        keys = [key for key in order if start <= int(key[:12], 16) / 16**12 < end][: experiment.most(side)]
        sides[side], start = set(keys), end
    by_side = {side: [row for row in rows if digest_of(row["question"]) in sides[side]] for side in SIDES}
    return {**by_side, "report": by_side["report"] + held[: experiment.limit]}


def _question_of_chat(value: Any) -> Any:
    """A row of a chat (messages, answer, preferred) as question, answer and correction; any other as it is."""
    if not isinstance(value, dict) or not {"messages", "answer", "preferred"} <= value.keys():
        return value
    kept = {name: field for name, field in value.items() if name not in ("messages", "preferred")}
    return {"question": candidate_questions(value["messages"])[0], **kept, "correction": value["preferred"]}


def _fits(row: Any, experiment: Experiment) -> bool:
    texts = [row.get(name) if isinstance(row, dict) else None for name in experiment.fields]
    shortest = 1 if experiment.upstream else 20  # of a prompt; an answer needs something to correct
    return all(isinstance(text, str) and shortest <= len(text.strip()) <= experiment.longest for text in texts)


def digest_of(question: str) -> str:
    """A digest of a question without case, punctuation and spacing."""
    return hashlib.sha256(question_key(question).encode()).hexdigest()
