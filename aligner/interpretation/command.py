"""`aligner interpret`: from its settings to a folder with the directions, every figure, the page and its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aligner.card import FILE as ALIGNER_CARD
from aligner.card import read_card
from aligner.console import progress, setup_logging
from aligner.demo import locate
from aligner.evaluation.checkpoint_sweep import in_order
from aligner.evaluation.pairs import Pair
from aligner.files import whole_folder
from aligner.inference.corrector import Corrected, CorrectionRequest, Corrector, Settings
from aligner.interpretation.config import InterpretConfig
from aligner.interpretation.directions import WAYS, States, accuracies, best_layer, fit, margins, read_rows
from aligner.interpretation.effect import random_directions, sweep
from aligner.interpretation.report import Named, Reading, chosen_line, example_of, report, write_all
from aligner.interpretation.rows import chosen_rows, effect_pairs, split, tokens_of
from aligner.interpretation.scan import scan
from aligner.models import check_place, quiet_libraries
from aligner.prompts import DEFAULT
from aligner.records import UserError
from aligner.steering.hooks import decoder_layers, width_of
from aligner.terminal import print_lines, printable

BASE = "untrained base"
SCANNED = 2  # rows in the heat map
PARTS = (0.35, 0.6)  # of the depth: layers that are steered beside the chosen one


def interpret(config: InterpretConfig) -> int:
    """Read and steer the Aligner and its controls, and write the folder. Returns the exit status."""
    quiet_libraries()
    setup_logging()
    output = Path(config.output)
    if output.exists():
        raise UserError(f"{output}: is already there. Name another output, or remove it.")
    places = model_places(config)
    rows, notes = chosen_rows(config)
    name, *others = places
    corrector = open_model(config, places[name], places[name])
    fitted, held, left_out = split(config, corrector, rows)
    print_lines(*notes, *left_out, f"{len(fitted):,} rows to fit on, {len(held):,} of other questions held out")
    pairs = effect_pairs(config, corrector, held)
    own = reading(config, name, places[name], corrector, fitted, held)
    print_lines(chosen_line(own, len(held)))
    effects = list(own_effects(config, corrector, own, pairs))
    scans = [scan_of(config, corrector, own, pair) for pair in held[:SCANNED]]
    examples = [example_of(effects[0][3], pairs)]
    readings = [own]
    for other in others:
        del corrector  # one model at a time
        corrector = open_model(config, places[other], places[name])
        readings.append(reading(config, other, places[other], corrector, fitted, held))
        print_lines(chosen_line(readings[-1], len(held)))
        effects.append(other_effect(config, corrector, readings[-1], pairs))
    figures = report(config, readings, effects, len(fitted), len(held), [*notes, *left_out], examples)
    with whole_folder(output) as folder:
        write_all(folder, config, own, figures, scans)
    print_lines(*figures["summary"], f"page: {output / 'interpretation.html'}")
    return 0


def model_places(config: InterpretConfig) -> dict[str, str]:
    """The Aligner and what it is compared with, by name; a wrong address is an error before anything is read."""
    own = locate(config.model)
    check_place(own)
    card = read_card(own) if Path(own).is_dir() else None
    base = config.base or (card.base_model if card else None) or "none"
    places = {Path(own).resolve().name: own, **dict(in_order(config.compare))}
    if base != "none":
        places[BASE] = base
    places = {name: locate(place) for name, place in places.items()}
    for place in places.values():
        check_place(place)
    return places


def open_model(config: InterpretConfig, place: str, own: str) -> Corrector:
    """A model, with the prompt of its own card; of the base, which has none, that of the Aligner."""
    options = config.options
    settings = Settings(options.batch_size, options.max_new_tokens)
    has_card = not Path(place).is_dir() or (Path(place) / ALIGNER_CARD).is_file()
    prompt = options.prompt_template or (None if has_card or place == own else DEFAULT.name)
    corrector = Corrector.load(place, prompt, settings, options.trust_remote_code, options.dtype)
    if has_card or options.prompt_template:
        return corrector
    card = read_card(own)
    return replace(corrector, template=card.prompt) if card else corrector


def reading(
    config: InterpretConfig, name: str, place: str, corrector: Corrector, fitted: Sequence[Pair], held: Sequence[Pair]
) -> Reading:
    """Fit a model's directions on some rows and ask them about others."""
    layers = decoder_layers(corrector.model)
    width = width_of(corrector.model)

    def states(rows: Sequence[Pair], what: str) -> States:
        bar = progress(rows, desc=f"{name}: reading {what}", unit=" rows")
        return read_rows(corrector.model, layers, (tokens_of(corrector, row) for row in bar), config.tokens, width)

    fit_states, held_states = states(fitted, "rows to fit on"), states(held, "held-out rows")
    directions = {way: fit(way, fit_states) for way in WAYS}
    accuracy = {way: accuracies(directions[way], held_states) for way in WAYS}
    best = {way: best_layer(accuracy[way], margins(directions[way], held_states)) for way in WAYS}
    way = max(WAYS, key=lambda way: accuracy[way][best[way]].value)
    return Reading(name, place, directions, accuracy, fit_states.norms_L, best[way], way)


def own_effects(
    config: InterpretConfig, corrector: Corrector, own: Reading, pairs: Sequence[tuple[str, str]]
) -> Iterator[Named]:
    """The Aligner steered: by the chosen direction, by both ways of fitting at other layers, and by random directions."""
    layers = decoder_layers(corrector.model)
    plain = corrector.correct([CorrectionRequest(*pair) for pair in pairs])
    steered = partial(_sweep, config, corrector, layers)
    yield steered(
        f"layer {own.layer + 1}, {own.way} (chosen)", "chosen", own.layer, own.unit(own.layer, own.way), pairs, plain
    )
    others = sorted({own.layer, *(max(0, round(part * len(layers)) - 1) for part in PARTS)})
    for layer in others:
        for way in WAYS:
            if (layer, way) != (own.layer, own.way):
                yield steered(f"layer {layer + 1}, {way}", "layer", layer, own.unit(layer, way), pairs, plain)
    few, norm = pairs[: config.control_rows], own.norms_L[own.layer]
    width = own.directions[own.way].shape[-1]
    for number, unit_H in enumerate(random_directions(config.random_directions, width, config.seed), 1):
        name = f"layer {own.layer + 1}, random {number}"
        yield steered(name, "random", own.layer, norm * unit_H, few, plain[: len(few)])


def other_effect(
    config: InterpretConfig, corrector: Corrector, other: Reading, pairs: Sequence[tuple[str, str]]
) -> Named:
    """Another model, steered by its own chosen direction."""
    layers, name = decoder_layers(corrector.model), f"{other.name}, layer {other.layer + 1}, {other.way}"
    few = pairs[: config.control_rows] if other.name == BASE else pairs
    return _sweep(config, corrector, layers, name, "model", other.layer, other.unit(other.layer, other.way), few, None)


def _sweep(
    config: InterpretConfig,
    corrector: Corrector,
    layers: Sequence[torch.nn.Module],
    name: str,
    kind: str,
    layer: int,
    unit_H: torch.Tensor,
    pairs: Sequence[tuple[str, str]],
    plain: Sequence[Corrected] | None,
) -> Named:
    effect = sweep(corrector, layers[layer], unit_H, pairs, config.alphas, plain)
    means = " ".join(f"{mean:.2f}" for mean in effect.ratios_NA.mean(0))
    print_lines(f"{name}: R2 {effect.line.r2.value:.2f}, ratios {means}")
    return name, kind, len(pairs), effect


def scan_of(config: InterpretConfig, corrector: Corrector, own: Reading, pair: Pair) -> dict[str, Any]:
    """The heat map of a row: its tokens, and a row of scores for every layer."""
    row = tokens_of(corrector, pair)
    layers = decoder_layers(corrector.model)
    scores_LK = scan(corrector.model, layers, own.directions[own.way], row, config.tokens)
    tokens = [printable(corrector.text([token])) for token in row.correction[: config.tokens]]
    return {"question": pair.question, "tokens": tokens, "scores": scores_LK.tolist()}
