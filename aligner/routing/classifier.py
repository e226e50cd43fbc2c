"""A logistic regression over a question's features, with a temperature, and the folder that holds it.

classifier.safetensors   weight (C, H), bias (C,), and mean and scale (H,), which features are standardised with
card.json                the choices in order, the temperature, the model of the features (name, sha256), the figures of training
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from aligner.demo import locate
from aligner.files import COMPLETED, is_completed, read_json, sha256_of, sync, write_json, write_text
from aligner.models import fingerprint
from aligner.records import UserError
from aligner.routing.config import Routes
from aligner.routing.features import STATES

WEIGHTS, CARD = "classifier.safetensors", "card.json"
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # on the squared weights, of which the held-out rows choose
BINS = 10  # of the calibration error


@dataclass(frozen=True)
class Classifier:
    """choices: names in the order of the classes. Probabilities are softmax(logits / temperature)."""

    choices: tuple[str, ...]
    weight_CH: torch.Tensor
    bias_C: torch.Tensor
    mean_H: torch.Tensor
    scale_H: torch.Tensor
    temperature: float = 1.0

    def logits(self, features_NH: torch.Tensor) -> torch.Tensor:
        """Those of each question, (N, C), before the temperature."""
        return ((features_NH - self.mean_H) / self.scale_H) @ self.weight_CH.T + self.bias_C

    def probabilities(self, features_NH: torch.Tensor) -> torch.Tensor:
        """Those of the choices, (N, C), each row with the sum 1."""
        return F.softmax(self.logits(features_NH) / self.temperature, dim=1)


def fit(choices: Sequence[str], features_NH: torch.Tensor, labels_N: torch.Tensor, penalty: float) -> Classifier:
    """The weights with the least mean cross-entropy plus penalty times the mean squared weight."""
    mean_H, scale_H = features_NH.mean(0), features_NH.std(0).clamp(min=1e-6)
    x_NH = ((features_NH - mean_H) / scale_H).double()
    weight_CH = torch.zeros(len(choices), x_NH.shape[1], dtype=torch.double, requires_grad=True)
    bias_C = torch.zeros(len(choices), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_CH, bias_C], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x_NH @ weight_CH.T + bias_C, labels_N) + penalty * weight_CH.square().sum() / len(
            choices
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    return Classifier(tuple(choices), weight_CH.detach().float(), bias_C.detach().float(), mean_H, scale_H)


def best_temperature(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> float:
    """The temperature with which held-out rows are likeliest, of 0.05 to 20.

    Each row counts as right with (N + 1) / (N + 2) alone, as Platt's targets do: N rows that are all right do not prove certainty.
    """
    tried, smoothing = torch.logspace(-1.301, 1.301, 201).tolist(), smoothing_of(logits_NC)
    return min(tried, key=lambda each: float(F.cross_entropy(logits_NC / each, labels_N, label_smoothing=smoothing)))


def smoothing_of(logits_NC: torch.Tensor) -> float:
    """The label smoothing that takes 1 / (N + 2) from the true class."""
    count, choices = logits_NC.shape
    return choices / ((choices - 1) * (count + 2))


def figures(probabilities_NC: torch.Tensor, labels_N: torch.Tensor) -> dict[str, float]:
    """How right the probabilities are: accuracy, negative log-likelihood in nats a question, and the expected calibration error
    (the mean distance, over ten bins of confidence, between confidence and accuracy)."""
    confidence_N, chosen_N = probabilities_NC.max(1)
    right_N = (chosen_N == labels_N).float()
    bin_N, error = (confidence_N * BINS).long().clamp(max=BINS - 1), 0.0
    for number in range(BINS):
        inside_N = bin_N == number
        if inside_N.any():
            error += float(inside_N.float().mean() * (confidence_N[inside_N].mean() - right_N[inside_N].mean()).abs())
    nll = float(F.nll_loss(probabilities_NC.clamp(min=1e-12).log(), labels_N))
    return {"accuracy": float(right_N.mean()), "nll": nll, "calibration_error": error}


def write_classifier(folder: Path, classifier: Classifier, card: dict[str, Any]) -> None:
    """Write the folder, COMPLETED last; an earlier classifier in it is replaced."""
    tensors = {"weight": classifier.weight_CH, "bias": classifier.bias_C}
    tensors |= {"mean": classifier.mean_H, "scale": classifier.scale_H}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMPLETED).unlink(missing_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    sync(folder / WEIGHTS)
    own = {"choices": list(classifier.choices), "temperature": classifier.temperature}
    write_json(folder / CARD, {**own, "weights_sha256": sha256_of(folder / WEIGHTS), **card})
    write_text(folder / COMPLETED, "")


def read_classifier(routes: Routes, trust_remote_code: bool = False) -> Classifier:
    """The classifier of a routes.yaml. UserError where it is not there, or was trained for other choices or another model."""
    folder, again = Path(routes.classifier), f"Run 'aligner route {routes.file} --train'."
    if not is_completed(folder) or not (folder / CARD).is_file():
        raise UserError(f"{routes.file}: its classifier {folder} is not there, or not whole. {again}")
    card = read_json(folder / CARD)
    if sorted(card["choices"]) != sorted(routes.rows):
        known = ", ".join(card["choices"])
        raise UserError(f"{routes.file}: its classifier {folder} knows the choices {known}, which are others. {again}")
    model = locate(routes.features_model())
    if card["features_sha256"] != fingerprint(model, trust_remote_code):
        raise UserError(f"{routes.file}: its classifier {folder} read another model than {model}. {again}")
    if card.get("states") != STATES:
        raise UserError(
            f"{routes.file}: its classifier {folder} was trained on other hidden states of that model. {again}"
        )
    if card["with_answer"] != routes.with_answer:
        raise UserError(f"{routes.file}: its classifier {folder} was trained with another 'with_answer'. {again}")
    if card["weights_sha256"] != sha256_of(folder / WEIGHTS):
        raise UserError(f"{folder}: {WEIGHTS} is not as it was written. {again}")
    tensors = load_file(folder / WEIGHTS)
    weight_CH, bias_C, mean_H, scale_H = (tensors[name] for name in ("weight", "bias", "mean", "scale"))
    return Classifier(tuple(card["choices"]), weight_CH, bias_C, mean_H, scale_H, float(card["temperature"]))
