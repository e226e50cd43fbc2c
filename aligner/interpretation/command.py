"""`aligner interpret`: from its settings to a folder with the directions, every figure, the page and its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from aligner.card import FILE as ALIGNER_CARD
from aligner.card import read_card
from aligner.console import progress, setup_logging
from aligner.demo import locate
from aligner.evaluation.checkpoint_sweep import in_order
from aligner.evaluation.pairs import Pair, named_fields, read_pairs
from aligner.files import COMPLETED, sha256_of, whole_folder, write_json, write_text
from aligner.inference.corrector import Corrected, CorrectionRequest, Corrector, Settings
from aligner.interpretation.config import FEWEST, InterpretConfig
from aligner.interpretation.direction_file import write_directions
from aligner.interpretation.directions import WAYS, States, Tokens, accuracies, best_layer, fit, margins, read_rows
from aligner.interpretation.effect import Effect, random_directions, sweep
from aligner.interpretation.hooks import decoder_layers, width_of
from aligner.interpretation.page import CAPTIONS, markdown_lines, page
from aligner.interpretation.pictures import draw_pictures
from aligner.interpretation.scan import scan
from aligner.interpretation.statistics import Estimate
from aligner.models import check_place, fingerprint, positions_of, quiet_libraries
from aligner.prompts import DEFAULT
from aligner.records import UserError
from aligner.terminal import print_errors, print_lines, printable
from aligner.training.datasets.options import QAC, parse_columns

BASE = "untrained base"
SCANNED = 2  # rows in the heat map
SHOWN = 5  # alphas at which an answer is shown
PARTS = (0.35, 0.6)  # of the depth: layers that are steered beside the chosen one


@dataclass(frozen=True)
class Reading:
    """A model whose directions were fitted: by way of fitting the directions (L, H) and the held-out accuracies, the layer (from 0)
    and the way that were chosen, and its states on the held-out rows."""

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
    own = reading(config, name, places[name], corrector, fitted, held)
    print_lines(chosen_line(own, len(held)))
    pairs = effect_pairs(config, corrector, held)
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
    prompt = options.prompt_template or (None if has_card else DEFAULT.name)
    corrector = Corrector.load(place, prompt, settings, options.trust_remote_code, options.dtype)
    if has_card or options.prompt_template:
        return corrector
    card = read_card(own)
    return replace(corrector, template=card.prompt) if card else corrector


def chosen_rows(config: InterpretConfig) -> tuple[list[Pair], list[str]]:
    """The rows that say something, in a random order of their questions, and what became of the others."""
    columns = parse_columns(config.columns, "") or QAC
    pairs, faults = read_pairs(config.input, None, **named_fields(columns))
    for fault in faults[:3]:
        print_errors(f"warning: {fault}")
    changed = [pair for pair in pairs if pair.before != pair.after and pair.after.strip()]
    order = sorted({pair.question for pair in changed})
    Random(config.seed).shuffle(order)
    place = {question: number for number, question in enumerate(order)}
    notes = [f"{len(faults):,} rows cannot be used"] if faults else []
    if same := len(pairs) - len(changed):
        notes.append(f"{same:,} rows left out: their correction is their answer, or empty")
    return sorted(changed, key=lambda pair: place[pair.question]), notes


def split(
    config: InterpretConfig, corrector: Corrector, rows: Sequence[Pair]
) -> tuple[list[Pair], list[Pair], list[str]]:
    """The rows to fit on and those held out, no question on both sides. UserError where too few have room in the model."""
    positions = positions_of(corrector.model.config) or 10**9
    wanted = config.fit_rows + config.held_out_rows
    kept: list[Pair] = []
    for number, pair in enumerate(rows):
        if len(kept) == wanted:
            rows = rows[:number]
            break
        tokens = tokens_of(corrector, pair)
        longest = max(len(ids[: config.tokens]) for ids in (tokens.copy, tokens.correction))
        if len(tokens.prompt) + longest <= positions:
            kept.append(pair)
    middle = config.fit_rows if len(kept) == wanted else len(kept) // 3
    while 0 < middle < len(kept) and kept[middle].question == kept[middle - 1].question:
        middle += 1
    if min(middle, len(kept) - middle) < FEWEST:
        raise UserError(f"{config.input}: {len(kept):,} usable rows; {2 * FEWEST} of several questions are the fewest.")
    lost = len(rows) - len(kept)
    return kept[:middle], kept[middle:], [f"{lost:,} rows left out: longer than the model's positions"] if lost else []


def tokens_of(corrector: Corrector, pair: Pair) -> Tokens:
    """A row as ids: the prompt, and behind it the answer and the correction as training would have them."""
    prompt = corrector.encoder.render(corrector.template, pair.question, pair.before, "")
    (ids, copy, _), (_, correction, _) = corrector.encoder.pairs([prompt, prompt], [pair.before, pair.after])
    return Tokens(ids, copy, correction)


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


def effect_pairs(config: InterpretConfig, corrector: Corrector, held: Sequence[Pair]) -> list[tuple[str, str]]:
    """Held-out answers to steer on: those that leave a correction room to be half as long again."""
    short = [
        (pair.question, pair.before)
        for pair in held
        if 1.5 * len(tokens_of(corrector, pair).copy) <= config.options.max_new_tokens
    ]
    if len(short) < FEWEST:
        raise UserError(
            f"{config.input}: {len(short):,} held-out answers are short enough to be corrected in "
            f"{config.options.max_new_tokens:,} tokens. Raise --max_new_tokens."
        )
    return short[: config.effect_rows]


Named = tuple[str, str, int, Effect]  # what was added, its kind, the rows, what it did


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
    randoms = [effect.line.r2.value for _, kind, _, effect in effects if kind == "random"]
    chosen = effects[0][3].line
    summary = [chosen_line(each, held) for each in readings]
    summary.append(
        f"the ratio follows alpha with R2 {chosen.r2.value:.2f} ({chosen.r2.low:.2f} to {chosen.r2.high:.2f}), slope "
        f"{chosen.slope:+.2f}, {'never' if chosen.monotone else 'not without'} falling; the median of {len(randoms)} random "
        f"directions of the same length has R2 {np.median(randoms):.2f}"
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
        "random_median_r2": float(np.median(randoms)),
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
