"""`aligner evaluate --measure`: from its settings to measure.json, and from that the page and a README's table."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.console import progress
from aligner.evaluation.measures.config import MeasureConfig
from aligner.evaluation.measures.controls import BASE, SHUFFLED_ALIGNER, SHUFFLED_OBJECTIVES
from aligner.evaluation.measures.items import TextMeasure, declining, read_restoration, rows_of, truth
from aligner.evaluation.measures.matrix import matrix_markdown, picture_panels
from aligner.evaluation.measures.measure import CorrectedText, text_figures
from aligner.evaluation.measures.objectives import HEADS, NOTHING, CorrectRows, objectives_figures
from aligner.evaluation.measures.page import page
from aligner.evaluation.measures.table import ALIGNER, markdown_lines, report_lines
from aligner.evaluation.measures.text_scores import shown_objectives, text_scores
from aligner.evaluation.subprocess_step import command
from aligner.files import json_line, sha256_of, write_json, write_lines, write_text
from aligner.locks import take
from aligner.objectives import sentences, split_objectives
from aligner.readers.rows import read_rows
from aligner.records import Row, UserError
from aligner.steering.options import SteerOptions
from aligner.terminal import print_lines

if TYPE_CHECKING:
    from aligner.inference.corrector import Corrector


def run_measure(config: MeasureConfig) -> int:
    """Measure, write measure.json, measure.html and measure.md, and print the tables. Returns the exit status."""
    from aligner.models import quiet_libraries

    quiet_libraries()
    folder = Path(config.output)
    measure = None if config.measure in ("preference", "objectives") else text_measure(config)
    systems = _systems(config)
    release = take(folder / "evaluation.lock", f"{folder}: another evaluation is writing it. Wait for it.")
    try:
        report = {**_about(config, systems), **_figures(config, measure, systems, folder)}
        write_measure_report(folder, report)
    finally:
        release()
    print_lines(*report_lines(report), f"report: {folder / 'measure.html'}")
    return 0


def write_measure_report(folder: Path, report: dict[str, Any]) -> None:
    """The figures as JSON; and out of them the page and the table for a README, and of a matrix its picture."""
    write_json(folder / "measure.json", report)
    picture = b""
    if "matrix" in report:
        from aligner.plots import draw_matrix

        names = [column["name"] for column in report["columns"]]
        draw_matrix(names, picture_panels(report), folder / "measure.png")
        picture = (folder / "measure.png").read_bytes()
    write_text(folder / "measure.html", page(report, picture))
    write_text(folder / "measure.md", "\n".join([*matrix_markdown(report), *markdown_lines(report)]) + "\n")


def text_measure(config: MeasureConfig) -> TextMeasure:
    """The measure that the settings name, with its items. UserError where the rows do not have what it needs."""
    rows = str(config.rows)
    if config.measure == "restoration":
        return read_restoration(rows, config.limit, config.damage, config.hold_back)
    return (declining if config.measure == "declining" else truth)(rows, config.limit)


def _systems(config: MeasureConfig) -> dict[str, str]:
    """The models by their name in the table. A wrong address is reported before anything is corrected."""
    from aligner.card import read_card
    from aligner.demo import locate
    from aligner.models import check_place

    own = locate(config.models[0])
    check_place(own)
    card = read_card(own) if Path(own).is_dir() else None
    base = config.base or (card.base_model if card else None) or "none"
    named = {ALIGNER: own, BASE: None if base == "none" else locate(base), SHUFFLED_ALIGNER: config.shuffled}
    systems = {name: locate(place) for name, place in named.items() if place}
    for place in systems.values():
        check_place(place)
    return systems


def _about(config: MeasureConfig, systems: dict[str, str]) -> dict[str, Any]:
    from aligner.models import fingerprint

    return {
        "measure": config.measure,
        "rows": {"file": config.rows, "sha256": sha256_of(str(config.rows)), "limit": config.limit},
        "systems": {
            name: {"model": place, "sha256": fingerprint(place, config.trust_remote_code)}
            for name, place in systems.items()
        },
        "damage": config.damage,
        "hold_back": config.hold_back,
        "max_new_tokens": config.max_new_tokens,
        "dtype": config.dtype,
        "nats_ahead": config.nats_ahead,
        "steered": config.steering.flags(),
        "recipes_tried": config.tried,
    }


def _figures(
    config: MeasureConfig, measure: TextMeasure | None, systems: dict[str, str], folder: Path
) -> dict[str, Any]:
    tried = [f"recipes tried before these figures: {config.tried}"]
    if config.measure == "objectives":
        return _objectives(config, systems, folder, tried)
    if measure is None:
        from aligner.evaluation.measures.preference import preference_figures

        opened: dict[str, Callable[[], Corrector]] = {
            name: partial(_open, config, name, place, folder) for name, place in systems.items()
        }
        bar = partial(progress, desc="likelihoods", delay=2)
        parts = preference_figures(str(config.rows), config.limit, opened, bar)
        missing = [f"{name}: not measured, none was given" for name in (BASE, SHUFFLED_ALIGNER) if name not in systems]
        return {
            "unit": "share in which the better answer is the likelier one",
            "parts": parts,
            "notes": missing + tried,
        }
    correct = {name: partial(_correct_pairs, config, name, place, folder) for name, place in systems.items()}
    parts, notes = text_figures(measure, correct, config.control_limit)
    return {"unit": f"{'minus ' if measure.error else ''}{measure.unit}", "parts": parts, "notes": notes + tried}


def _objectives(config: MeasureConfig, systems: dict[str, str], folder: Path, tried: list[str]) -> dict[str, Any]:
    """The figures of the matrix. UserError for an objective that the Aligner does not know, or where none has a measure."""
    requested, (scores, left_out) = requested_objectives(config, systems[ALIGNER]), text_scores()
    rows = rows_of(str(config.rows), "question", "answer")[: config.limit]
    named = {SHUFFLED_OBJECTIVES if name == SHUFFLED_ALIGNER else name: place for name, place in systems.items()}
    correct: dict[str, CorrectRows] = {
        name: partial(_correct, config, name, place, folder) for name, place in named.items()
    }
    correct[ALIGNER] = _kept_by_objective(folder / "asked", requested, correct[ALIGNER])
    figures = objectives_figures(rows, requested, correct, config.control_limit, scores)
    missing = [f"{name}: not measured, none was given" for name in (BASE, SHUFFLED_OBJECTIVES) if name not in named]
    about = "when the objective is asked for and when nothing is; the gain is over asking for nothing, towards the objective"
    unit = "the objective's own measure"
    notes = [*figures["notes"], *left_out, *missing, *tried]
    return {**figures, "unit": unit, "about": about, "heads": list(HEADS), "notes": notes}


def _kept_by_objective(folder: Path, requested: Mapping[str, str], correct: CorrectRows) -> CorrectRows:
    """`correct`, which also leaves what it made under each objective in a file of its name: for a judge, and for people."""
    names = {sentence: name for name, sentence in requested.items()}

    def kept(rows: Sequence[Mapping[str, Any]]) -> Sequence[CorrectedText]:
        replies = correct(rows)
        name = names[rows[0]["objectives"][0]] if rows and "objectives" in rows[0] else NOTHING
        stem = re.sub(r"[^\w-]+", "-", name)[:60]  # a sentence asked for has its words as its name
        write_lines(
            folder / f"{stem}.jsonl",
            ({**row, "corrected": reply.text} for row, reply in zip(rows, replies, strict=True)),
        )
        return replies

    return kept


def requested_objectives(config: MeasureConfig, own: str) -> dict[str, str]:
    """What is asked for, with its sentence in the Aligner's card."""
    from aligner.card import objectives_of, prompt_of

    template = prompt_of(own, config.prompt_template)
    if not template.takes_feedback:
        raise UserError(f"{own}: its prompt '{template.name}' has no slot for objectives, so none can be asked for.")
    known = objectives_of(own, template)
    names = split_objectives(config.objectives) or [name for name in shown_objectives() if name in known]
    if not set(names) & set(shown_objectives()):
        raise UserError(
            f"--measure objectives: a text shows {', '.join(shown_objectives())}; none of them is asked for."
        )
    return {name: sentences([name], known) for name in names}


def _correct_pairs(
    config: MeasureConfig, name: str, place: str, folder: Path, pairs: Sequence[tuple[str, str]]
) -> list[CorrectedText]:
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    return _correct(config, name, place, folder, rows)


def _prompt(config: MeasureConfig, name: str, folder: Path) -> str | None:
    """The prompt to pass on: the given one; for the base, which has none, the Aligner's own as a file."""
    from aligner.card import prompt_of
    from aligner.demo import locate

    if config.prompt_template or name != BASE:
        return config.prompt_template
    prompt = prompt_of(locate(config.models[0]), None)
    file = folder / "prompt.yaml"
    write_text(file, json_line({"name": prompt.name, "template": prompt.text}))  # JSON is YAML
    return str(file)


def _open(config: MeasureConfig, name: str, place: str, folder: Path) -> Corrector:
    from aligner.inference.corrector import Corrector

    prompt, trusted = _prompt(config, name, folder), config.trust_remote_code
    steer = config.steering if name == ALIGNER else SteerOptions()
    return Corrector.load(place, prompt, trust_remote_code=trusted, dtype=config.dtype, steer=steer)


def _correct(
    config: MeasureConfig, name: str, place: str, folder: Path, rows: Sequence[Mapping[str, Any]]
) -> list[CorrectedText]:
    """What a model makes of these rows' answers, in a process of its own. Kept in `folder`: run again, it is not made again, and a
    killed one goes on."""
    from aligner.card import prompt_of
    from aligner.models import fingerprint

    prompt = _prompt(config, name, folder)
    flags: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "trust_remote_code": config.trust_remote_code}
    flags |= {"dtype": config.dtype} if config.dtype else {}
    flags |= config.steering.flags() if name == ALIGNER else {}
    flags |= {"sentences": True} if prompt_of(place, prompt).by_sentence else {}
    flags |= {} if config.nats_ahead is None else {"nats_ahead": config.nats_ahead}
    parts = [
        *map(json_line, rows),
        fingerprint(place, config.trust_remote_code),
        prompt_of(place, prompt).text,
        str(flags),
        *(config.steering.digests() if name == ALIGNER else ()),
    ]
    stem = folder / "corrections" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    source, corrected = stem.with_suffix(".rows.jsonl"), stem.with_suffix(".jsonl")
    if not corrected.exists():
        print_lines(f"{name}: corrections of {len(rows):,} answers")
        write_lines(source, rows)
        more = {"batch_size": config.batch_size, "prompt_template": prompt}
        command("correct", {"model": place, "input": source, "output": corrected, **flags, **more})
    replies = [row.value for row in read_rows(corrected) if isinstance(row, Row)]
    if len(replies) != len(rows):
        raise UserError(f"{corrected}: has {len(replies):,} rows for {len(rows):,} answers. Remove it and run again.")
    texts = [
        row["answer"] if reply["corrected"] is None else reply["corrected"]
        for reply, row in zip(replies, rows, strict=True)
    ]
    return [CorrectedText(text, bool(reply.get("finished", False))) for text, reply in zip(texts, replies, strict=True)]
