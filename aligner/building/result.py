"""The finished build: rows to train on, what was kept as a table and a picture, the data card, and what a model's card will say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligner.building.card import data_card
from aligner.building.config import BuildConfig
from aligner.building.flow import flow_table, flows_of
from aligner.building.principles import Principles
from aligner.building.stage import Row, StageResult, fingerprint_of, read_stage_rows
from aligner.files import COMPLETED, is_completed, read_json, read_text, write_json, write_lines, write_text
from aligner.flow_plot import Stage, draw_flow
from aligner.readers.paths import BUILD
from aligner.records import UserError
from aligner.training.checkpoint.model_card import public

ROWS, TABLE, PICTURE, CARD = "train.jsonl", "kept.md", "kept.png", "README.md"
SETTINGS, PRINCIPLES = "building.yaml", "principles.yaml"
FILES = (ROWS, TABLE, PICTURE, CARD, SETTINGS, PRINCIPLES)
PLACES = ("id", "source", "origin", "upstream", "upstream_model", "annotator", "annotator_model")
FIELDS = ("question", "answer", "correction", *PLACES, "critique", "harmful", "people")


def write_result(
    config: BuildConfig, file: str, output: Path, results: Sequence[StageResult], principles: Principles
) -> None:
    """Write everything beside the stages. COMPLETED is last; where nothing has changed and all is there nothing is written.

    UserError where the rows of the same build were changed by another hand: they are not thrown away.
    """
    about = about_build(config, results, principles)
    rows = [_public_row(row) for row in results[-1].rows]
    if is_completed(output) and (output / BUILD).is_file() and read_json(output / BUILD) == about:
        if (output / ROWS).is_file() and read_stage_rows(output / ROWS) != rows:
            raise UserError(
                f"{output / ROWS}: was changed after it was built. Move it elsewhere, and it is written anew; to train on your "
                "own, give that file to --train_datasets."
            )
        if all((output / name).is_file() for name in FILES):
            return
    (output / COMPLETED).unlink(missing_ok=True)
    flows = flows_of(results)
    write_lines(output / ROWS, rows)
    write_text(output / SETTINGS, read_text(file))
    write_text(output / PRINCIPLES, principles.text)
    table = flow_table(config, results)
    write_text(output / TABLE, "\n".join(table) + "\n")
    panels: dict[str, list[Stage]] = {}
    for flow in flows:
        panels.setdefault(flow.unit, []).append((flow.stage, flow.into, flow.kept, flow.dropped))
    draw_flow(panels, output / PICTURE)
    write_text(output / CARD, data_card(config, results, principles, rows))
    write_json(output / BUILD, about)
    write_text(output / COMPLETED, "")


def _public_row(row: Row) -> Row:
    """A row as others may see it: of the paths on this machine the names alone."""
    place, _, number = row["origin"].rpartition(" row ")
    paths = {"origin": f"{public(place)} row {number}"}
    paths |= {name: public(row[name]) for name in ("upstream_model", "annotator_model")}
    return {name: paths.get(name, row[name]) for name in FIELDS if name in row}


def about_build(config: BuildConfig, results: Sequence[StageResult], principles: Principles) -> dict[str, Any]:
    """What a model's card says of the data: the build's name and digest, its sources and models, its counts."""
    models = {"upstreams": config.answers.upstreams, "annotators": config.corrections.annotators}
    return {
        "name": config.name,
        "licence": config.licence,
        "digest": fingerprint_of(results[-1].counts["fingerprint"], results[-1].sha256)[:16],
        "rows": len(results[-1].rows),
        "sources": {each.label: each.licence for each in config.sources},
        **{
            kind: {each.name: public(each.model or each.folder or each.name) for each in some}
            for kind, some in models.items()
        },
        "principles": fingerprint_of(principles.text)[:16],
        "counts": {
            result.name: {name: result.counts[name] for name in ("into", "kept", "dropped")} for result in results
        },
    }
