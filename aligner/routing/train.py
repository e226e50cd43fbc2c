"""Training the classifier: questions of each choice, three ways apart, and the figures of the part that nothing was chosen on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from aligner.demo import locate
from aligner.models import fingerprint
from aligner.questions import question_key
from aligner.readers.rows import read_rows
from aligner.records import DataError, UserError
from aligner.routing.classifier import (
    CARD,
    PENALTIES,
    Classifier,
    best_temperature,
    figures,
    fit,
    smoothing_of,
    write_classifier,
)
from aligner.routing.config import Routes
from aligner.routing.features import STATES
from aligner.routing.router import Features, features_of

FEWEST = 20  # questions of a choice
PARTS = (("fit", 0.6), ("calibrate", 0.8), ("test", 1.0))  # up to which share of each choice's questions


@dataclass(frozen=True)
class Questions:
    """Questions and the places of their choices, by part; and how many of each choice are left out, for another has them too."""

    choices: tuple[str, ...]
    texts: Mapping[str, list[str]]
    labels: Mapping[str, list[int]]
    shared: int


def read_questions(routes: Routes) -> Questions:
    """The questions of all choices with rows, each once and in one of three parts, which have every choice in the same shares.

    A question of several choices is left out. UserError where a row cannot be used, or a choice has too few questions.
    """
    choices = tuple(routes.rows)
    owners: dict[str, set[int]] = {}
    text: dict[str, str] = {}
    for label, choice in enumerate(choices):
        for file in routes.rows[choice]:
            for row in read_rows(file):
                if isinstance(row, DataError):
                    raise row
                fields = row.value if isinstance(row.value, dict) else {}
                for name in ("question", "answer") if routes.with_answer else ("question",):
                    if not isinstance(fields.get(name), str) or not fields[name].strip():
                        raise DataError(*row.origin, f"has no {name}", "Write one, or remove the row")
                key = question_key(fields["question"])
                owners.setdefault(key, set()).add(label)
                text.setdefault(key, routes.text_of(fields["question"], fields.get("answer", "")))
    own = {key: next(iter(labels)) for key, labels in owners.items() if len(labels) == 1}
    for label, choice in enumerate(choices):
        if (count := sum(each == label for each in own.values())) < FEWEST:
            raise UserError(f"{routes.file}: '{choice}' has {count} questions of its own; {FEWEST} are the fewest.")
    texts: dict[str, list[str]] = {part: [] for part, _ in PARTS}
    labels: dict[str, list[int]] = {part: [] for part, _ in PARTS}
    for label in range(len(choices)):
        keys = sorted((key for key, each in own.items() if each == label), key=_digest)
        for number, key in enumerate(keys):
            part = next(part for part, end in PARTS if number < end * len(keys))
            texts[part].append(text[key])
            labels[part].append(label)
    return Questions(choices, texts, labels, len(owners) - len(own))


def _digest(key: str) -> str:
    """The order of questions: by chance, and by nothing that another split of the same questions goes by."""
    return hashlib.sha256(f"route {key}".encode()).hexdigest()


def train(routes: Routes, trust_remote_code: bool = False, features: Features | None = None) -> dict[str, Any]:
    """Train and write the classifier of a routes.yaml; returns its card. Weights come from the first part of the questions, penalty
    and temperature from the second, figures from the third. UserError where it cannot be."""
    folder, model = Path(routes.classifier), locate(routes.features_model())
    if _holds_something_else(folder):
        raise UserError(f"{folder}: is there and holds no classifier. Name another folder under 'classifier'.")
    questions = read_questions(routes)
    read = features or features_of(model, trust_remote_code)
    states = {part: read(texts) for part, texts in questions.texts.items()}
    labels = {part: torch.tensor(each) for part, each in questions.labels.items()}
    classifier = fit_best(questions.choices, states, labels)
    raw_NC = classifier.logits(states["test"])
    counts = {
        choice: sum(each.count(n) for each in questions.labels.values()) for n, choice in enumerate(questions.choices)
    }
    card = {
        "features": str(model),
        "states": STATES,
        "with_answer": routes.with_answer,
        "features_sha256": fingerprint(model, trust_remote_code),
        "questions": counts,
        "shared": questions.shared,
        "tested": len(labels["test"]),
        "before_temperature": figures(F.softmax(raw_NC, dim=1), labels["test"]),
        "after_temperature": figures(classifier.probabilities(states["test"]), labels["test"]),
        "confusion": confusion(raw_NC.argmax(1), labels["test"], len(questions.choices)),
    }
    write_classifier(folder, classifier, card)
    return {**card, "choices": list(classifier.choices), "temperature": classifier.temperature}


def _holds_something_else(folder: Path) -> bool:
    """Whether a folder has files that no classifier brought; hidden ones aside, which others keep beside what they made."""
    if folder.is_dir():
        return not (folder / CARD).is_file() and any(not each.name.startswith(".") for each in folder.iterdir())
    return folder.exists()


def fit_best(
    choices: Sequence[str], states: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor]
) -> Classifier:
    """The classifier with the penalty and the temperature under which the second part is likeliest."""
    best: tuple[float, Classifier] | None = None
    for penalty in PENALTIES:
        each = fit(choices, states["fit"], labels["fit"], penalty)
        logits_NC = each.logits(states["calibrate"])
        temperature = best_temperature(logits_NC, labels["calibrate"])
        smoothing = smoothing_of(logits_NC)
        nll = float(F.cross_entropy(logits_NC / temperature, labels["calibrate"], label_smoothing=smoothing))
        if best is None or nll < best[0]:
            best = nll, replace(each, temperature=temperature)
    assert best
    return best[1]


def confusion(chosen_N: torch.Tensor, labels_N: torch.Tensor, count: int) -> list[list[int]]:
    """How many questions of each choice (rows) the classifier gave to each (columns)."""
    return [[int(((labels_N == own) & (chosen_N == to)).sum()) for to in range(count)] for own in range(count)]


def card_lines(card: Mapping[str, Any], folder: str) -> Iterator[str]:
    """What was learned, for a terminal."""
    counts = ", ".join(f"{count:,} {choice}" for choice, count in card["questions"].items())
    yield f"questions: {counts}; {card['shared']:,} left out, for several choices have them"
    yield f"of {card['tested']:,} questions that nothing was chosen on:"
    for name, key in (
        ("as fitted", "before_temperature"),
        (f"temperature {card['temperature']:.2f}", "after_temperature"),
    ):
        each = card[key]
        yield (
            f"  {name:<17} accuracy {each['accuracy']:.1%}, negative log-likelihood {each['nll']:.3f}, "
            f"calibration error {each['calibration_error']:.3f}"
        )
    width = max(map(len, card["choices"]))
    yield (
        "  " + " " * width + "  given to " + "  ".join(f"{choice:>{max(5, len(choice))}}" for choice in card["choices"])
    )
    for choice, row in zip(card["choices"], card["confusion"], strict=True):
        cells = (f"{n:>{max(5, len(other))},}" for n, other in zip(row, card["choices"], strict=True))
        yield f"  {choice:<{width}}           " + "  ".join(cells)
    yield f"classifier: {folder}"
