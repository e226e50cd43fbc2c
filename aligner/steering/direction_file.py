"""The folder that `aligner interpret` writes, as `--steer` reads it: the directions, and the card of the model they belong to.

directions.safetensors   a tensor (L, H) of unit vectors for each way of fitting, and `norms` (L,), a state's mean length
card.json                the model (name, sha256, layers, width), the layer and the way that were chosen, what was fitted on
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from aligner.files import COMPLETED, is_completed, read_json, sha256_of, sync, write_json
from aligner.models import fingerprint
from aligner.records import UserError
from aligner.steering.hooks import decoder_layers, steer, width_of
from aligner.steering.options import SteerOptions

DIRECTIONS, CARD, NORMS = "directions.safetensors", "card.json", "norms"


@dataclass(frozen=True)
class Steering:
    """A vector to add behind a layer (from 0), and what a reader of the result must know of it."""

    layer: int
    layers: int
    vector_H: torch.Tensor
    about: dict[str, Any]

    def install(self, model: PreTrainedModel) -> dict[str, Any]:
        """Steer the model from here on; returns `about`. UserError where the model has another shape."""
        present = decoder_layers(model)
        width = width_of(model)
        if (len(present), width) != (self.layers, len(self.vector_H)):
            raise UserError(
                f"--steer: its directions are for {self.layers} layers of width {len(self.vector_H)}, and the model has "
                f"{len(present)} of width {width}. Run 'aligner interpret' on this model."
            )
        steer(present[self.layer], self.vector_H)
        return self.about


def write_directions(folder: Path, ways: dict[str, torch.Tensor], norms_L: torch.Tensor, card: dict[str, Any]) -> None:
    """Write the directions, and the card that names them by their sha256."""
    save_file({**{name: way.contiguous() for name, way in ways.items()}, NORMS: norms_L}, folder / DIRECTIONS)
    sync(folder / DIRECTIONS)
    write_json(folder / CARD, {**card, "directions_sha256": sha256_of(folder / DIRECTIONS)})


def read_steering(options: SteerOptions, model: str, trust_remote_code: bool = False) -> Steering | None:
    """The steering that the flags ask for, of the model in a folder or on the hub. None where they ask for none.

    UserError where the folder is not whole, or its directions were read in another model: there they would mean nothing.
    """
    if options.steer is None or options.alpha is None:
        return None
    folder = Path(options.steer)
    if not is_completed(folder) or not (folder / CARD).is_file():
        raise UserError(
            f"--steer {folder}: is no finished folder of 'aligner interpret' (it has no {COMPLETED} and {CARD})."
        )
    card = read_json(folder / CARD)
    own = fingerprint(model, trust_remote_code)
    if card["model_sha256"] != own:
        raise UserError(
            f"--steer {folder}: belongs to {card['model']} (sha256 {card['model_sha256'][:12]}), not to {model} ({own[:12]}). "
            "Run 'aligner interpret' on this model."
        )
    if card["directions_sha256"] != sha256_of(folder / DIRECTIONS):
        raise UserError(f"--steer {folder}: {DIRECTIONS} is not as it was written. Run 'aligner interpret' again.")
    return _steering(options, folder, card)


def _steering(options: SteerOptions, folder: Path, card: dict[str, Any]) -> Steering:
    layers, way, alpha = int(card["layers"]), str(card["way"]), float(options.alpha or 0)
    number = options.steer_layer or int(card["layer"])
    if not 1 <= number <= layers:
        raise UserError(f"--steer_layer {number}: the model has layers 1 to {layers}.")
    tensors = load_file(folder / DIRECTIONS)
    vector_H = alpha * tensors[NORMS][number - 1] * tensors[way][number - 1]
    about = {"direction": folder.resolve().name, "alpha": alpha, "layer": number, "way": way}
    about |= {"directions_sha256": card["directions_sha256"], "model_sha256": card["model_sha256"]}
    return Steering(number - 1, layers, vector_H, about)
