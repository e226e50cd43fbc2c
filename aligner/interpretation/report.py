"""What was read and done as figures, and the folder that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aligner.evaluation.rates import Estimate
from aligner.files import COMPLETED, sha256_of, write_json, write_text
from aligner.interpretation.config import InterpretConfig
from aligner.interpretation.effect import Effect
from aligner.interpretation.page import CAPTIONS, markdown_lines, page
from aligner.interpretation.pictures import draw_pictures
from aligner.models import fingerprint
from aligner.steering.direction_file import write_directions

SHOWN = 5  # alphas at which an answer is shown
Named = tuple[str, str, int, Effect]  # what was added, its kind, the rows, what it did


@dataclass(frozen=True)
class Reading:
    """A model whose directions were fitted: by way of fitting the directions (L, H) and the held-out accuracies, the layer (from 0)
    and the way that were chosen, and the mean length of its states by layer."""

    name: str
    place: str
    directions: dict[str, torch.Tensor]
    accuracy: dict[str, list[Estimate]]
    norms_L: torch.Tensor
    layer: int
    way: str

    def unit(self, layer: int, way: str) -> torch.Tensor:
        """A direction of the length of the residual behind its layer."""
        return self.norms_L[layer] * self.directions[way][layer]


def example_of(effect: Effect, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The answer whose ratio follows alpha most, at five alphas from the lowest to the highest."""
    centred_NA = effect.ratios_NA - effect.ratios_NA.mean(1, keepdims=True)
    row = int(np.argmax(centred_NA @ np.asarray(effect.alphas)))
    places = sorted({round(place) for place in np.linspace(0, len(effect.alphas) - 1, SHOWN)})
    corrections = [
        {"alpha": effect.alphas[a], "ratio": float(effect.ratios_NA[row, a]), "text": effect.texts_AN[a][row]}
        for a in places
    ]
    return {"question": pairs[row][0], "answer": pairs[row][1], "corrections": corrections}


def chosen_line(own: Reading, held: int) -> str:
    """Where a model tells copying from correcting, in words."""
    best = own.accuracy[own.way][own.layer]
    return (
        f"{own.name}: of {held:,} held-out rows {best.value:.0%} ({best.low:.0%} to {best.high:.0%}) are told apart at layer "
        f"{own.layer + 1} of {len(own.norms_L)} ({own.way}), chosen by that; chance is 50 %"
    )


def report(
    config: InterpretConfig,
    readings: Sequence[Reading],
    effects: Sequence[Named],
    fitted: int,
    held: int,
    notes: Sequence[str],
    examples: list[dict[str, Any]],
) -> dict[str, Any]:
    """Every figure, as JSON has it."""
    randoms = [effect.line for _, kind, _, effect in effects if kind == "random"]
    random_r2, random_slope = (
        float(np.median(v)) for v in ([x.r2.value for x in randoms], [abs(x.slope) for x in randoms])
    )
    chosen = effects[0][3].line
    summary = [chosen_line(each, held) for each in readings]
    summary.append(
        "no correction changed at any alpha (none ended by itself, or all copy): nothing is shown about the direction"
        if not effects[0][3].ratios_NA.any()
        else f"the ratio follows alpha with R2 {chosen.r2.value:.2f} ({chosen.r2.low:.2f} to {chosen.r2.high:.2f}), slope "
        f"{chosen.slope:+.2f}, {'never' if chosen.monotone else 'not without'} falling; the median of {len(randoms)} random "
        f"directions of the same length has R2 {random_r2:.2f}, slope {random_slope:.2f} in size"
    )
    return {
        "name": readings[0].name,
        "settings": {**asdict(config), "input_sha256": sha256_of(config.input)},
        "fitted": fitted,
        "held_out": held,
        "notes": list(notes),
        "readings": [
            {
                "name": each.name,
                "model_sha256": fingerprint(each.place, config.options.trust_remote_code),
                "layer": each.layer + 1,
                "way": each.way,
                "accuracy": {way: [asdict(estimate) for estimate in values] for way, values in each.accuracy.items()},
                "norms": each.norms_L.tolist(),
            }
            for each in readings
        ],
        "effects": [
            {"name": name, "kind": kind, "rows": rows, **effect.figures()} for name, kind, rows, effect in effects
        ],
        "random_medians": {"r2": random_r2, "slope_in_size": random_slope},
        "examples": examples,
        "summary": [*summary, *notes],
    }


def write_all(
    folder: Path, config: InterpretConfig, own: Reading, figures: dict[str, Any], scans: list[dict[str, Any]]
) -> None:
    """The files of the folder; COMPLETED is the last."""
    card = {
        "model": own.name,
        "model_sha256": figures["readings"][0]["model_sha256"],
        "layers": len(own.norms_L),
        "width": own.directions[own.way].shape[-1],
        "layer": own.layer + 1,
        "way": own.way,
        "fitted_on": {
            "input_sha256": figures["settings"]["input_sha256"],
            "rows": figures["fitted"],
            "seed": config.seed,
        },
    }
    write_directions(folder, own.directions, own.norms_L, card)
    write_json(folder / "figures.json", {**figures, "scans": scans})
    draw_pictures(folder, figures, scans)
    pictures = {name: (folder / f"{name}.png").read_bytes() for name in CAPTIONS}
    write_text(folder / "interpretation.html", page(figures, pictures))
    write_text(folder / "interpretation.md", "\n".join(markdown_lines(figures)) + "\n")
    write_text(folder / COMPLETED, "")
