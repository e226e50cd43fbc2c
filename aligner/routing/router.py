"""From a question to the Aligner that corrects its answer: the first rule that fits, else the classifier, else `otherwise`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aligner.demo import locate
from aligner.models import check_place, device_map_options, load_model, load_tokenizer
from aligner.routing.classifier import Classifier, read_classifier
from aligner.routing.config import NONE, Routes
from aligner.routing.features import mean_states, middle_layer
from aligner.routing.rules import first_rule
from aligner.steering.hooks import without_head

Features = Callable[[Sequence[str]], torch.Tensor]  # of texts, (N, H)


@dataclass(frozen=True)
class Choice:
    """The Aligner for a question, or none; what decided it; and how probable the classifier found it."""

    aligner: str
    by: str
    probability: float | None = None

    @property
    def leaves_alone(self) -> bool:
        """Whether no Aligner is to correct the answer."""
        return self.aligner == NONE

    def about(self) -> dict[str, Any]:
        """The choice as a row or an answer says it."""
        sure = {} if self.probability is None else {"probability": round(self.probability, 4)}
        return {"aligner": self.aligner, "by": self.by, **sure}


def choice_line(choice: Choice) -> str:
    """A choice in a line."""
    sure = "" if choice.probability is None else f", probability {choice.probability:.2f}"
    alone = " (the answer is left alone)" if choice.leaves_alone else ""
    return f"{choice.aligner}{alone}: by {choice.by}{sure}"


@dataclass(frozen=True)
class Router:
    """The routes, their classifier where questions have been given for one, and what it reads."""

    routes: Routes
    classifier: Classifier | None
    features: Features

    def choose(self, questions: Sequence[str], answers: Sequence[str]) -> list[Choice]:
        """The choice for each question with its answer, in order. Rules are of the question alone."""
        rules = [first_rule(self.routes.rules, question) for question in questions]
        choices = {
            n: Choice(self.routes.rules[rule].to, f"rule {rule + 1}")
            for n, rule in enumerate(rules)
            if rule is not None
        }
        left = [number for number in range(len(questions)) if number not in choices]
        if self.classifier and left:
            rows_NC = self.classifier.probabilities(
                self.features([self.routes.text_of(questions[number], answers[number]) for number in left])
            )
            choices |= {number: self._likeliest(row_C) for number, row_C in zip(left, rows_NC, strict=True)}
        return [
            choices.get(number) or Choice(self.routes.otherwise or NONE, "otherwise")
            for number in range(len(questions))
        ]

    def _likeliest(self, probabilities_C: torch.Tensor) -> Choice:
        assert self.classifier
        place = int(probabilities_C.argmax())
        choice = Choice(self.classifier.choices[place], "classifier", float(probabilities_C[place]))
        if choice.probability is not None and choice.probability < self.routes.sure:
            return Choice(str(self.routes.otherwise), "otherwise", choice.probability)
        return choice


def open_router(routes: Routes, trust_remote_code: bool = False, features: Features | None = None) -> Router:
    """The router of a routes.yaml. Its model is loaded when the first question needs it, unless `features` are given.

    UserError where the classifier is not there or not that of these routes.
    """
    if not routes.rows:
        return Router(routes, None, _nothing)
    classifier = read_classifier(routes, trust_remote_code)
    return Router(routes, classifier, features or features_of(locate(routes.features_model()), trust_remote_code))


def features_of(folder: str, trust_remote_code: bool = False) -> Features:
    """The features that a model gives; it is loaded at the first call."""
    check_place(folder)

    @functools.cache
    def opened() -> Features:
        where = device_map_options(folder, torch.float32, trust_remote_code)
        model = load_model(folder, torch.float32, trust_remote_code, **where).eval()
        return features_from(model, load_tokenizer(folder, trust_remote_code))

    return lambda texts: opened()(texts)


def features_from(model: Any, tokenizer: Any) -> Features:
    """The features that an open model gives. The tokenizer is used by one thread at a time."""
    base = without_head(model)
    layer = middle_layer(base)
    return lambda texts: mean_states(base, tokenizer, texts, layer)


def _nothing(texts: Sequence[str]) -> torch.Tensor:
    raise AssertionError("without a classifier nothing is read")
