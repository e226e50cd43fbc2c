"""Upstream answers -> corrected -> judged -> report, for a list of upstreams: `aligner campaign CONFIG.yaml`.

Each upstream and prompt set has a folder, `OUTPUT/UPSTREAM/SET`, and each part is the command a person would type, writing files:
run again, finished parts are skipped and interrupted ones continue. The result is a table in the layout of the paper's main one
(table 1): a row for each upstream, a column for each set and dimension, the mean below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.evaluation.judges.dimensions import DIMENSIONS, dimensions_named
from aligner.evaluation.prompt_sets import SETS, write_questions
from aligner.evaluation.subprocess_step import Flags, StepFailed, command, the_same
from aligner.files import read_json, read_yaml, sha256_of, write_json
from aligner.records import UserError
from aligner.terminal import print_errors, print_lines
from aligner.texts import kind_of

FIGURES = ("report.json", "report.html", "verdicts.jsonl")
NOT_RESULT_FLAGS = {  # they say where and how quickly something is generated, or name what `aligner_and_prompts` looks at itself
    *("model", "stack", "prompt_template", "trust_remote_code"),
    *("upstream_url", "upstream_key", "aligner_url", "aligner_key", "concurrency", "timeout", "batch_size"),
}


@dataclass(frozen=True)
class UpstreamConfig:
    """A model to correct. `flags`: of `aligner correct`, such as upstream_url, upstream_model, upstream_key."""

    name: str
    flags: Flags


@dataclass(frozen=True)
class PromptSetConfig:
    """A prompt set and the dimensions in which its answers are judged."""

    name: str
    dimensions: tuple[str, ...]
    path: str | None = None


@dataclass(frozen=True)
class Campaign:
    """The contents of a YAML file: `aligner` and `judge` are flags of `aligner correct` and `aligner evaluate`."""

    output: Path
    aligner: Flags
    judge: Flags
    upstreams: Sequence[UpstreamConfig]
    sets: Sequence[PromptSetConfig]


def read_campaign(file: str) -> Campaign:
    """Read a YAML file. UserError where something is missing, unknown or twice."""
    value = read_yaml(file)
    known = {"output", "aligner", "judge", "upstreams", "sets"}
    if not isinstance(value, dict) or known - value.keys():
        missing = min(known - value.keys()) if isinstance(value, dict) else "keys"
        raise UserError(f"{file}: has no {missing}. It needs {', '.join(sorted(known))}.")
    if unknown := value.keys() - known:
        raise UserError(f"{file}: '{min(unknown)}' is not known. There are {', '.join(sorted(known))}.")
    for name, kind in (("output", str), ("aligner", dict), ("judge", dict), ("upstreams", dict), ("sets", dict)):
        if not isinstance(value[name], kind) or not value[name]:
            raise UserError(
                f"{file}: {name} holds {kind_of(value[name])}, not {'text' if kind is str else 'names and values'}."
            )
    if not (value["aligner"].get("model") or value["aligner"].get("stack")):
        raise UserError(f"{file}: aligner: names no model (and no stack of them).")
    for name in map(str, value["upstreams"]):
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise UserError(f"{file}: upstreams: '{name}' is to be a folder's name: leave / out.")
    upstreams = [UpstreamConfig(str(name), dict(flags or {})) for name, flags in value["upstreams"].items()]
    sets = [_questions(file, str(name), dict(rest or {})) for name, rest in value["sets"].items()]
    return Campaign(Path(value["output"]), value["aligner"], value["judge"], upstreams, sets)


def _questions(file: str, name: str, rest: dict[str, Any]) -> PromptSetConfig:
    dimensions = tuple(rest.get("dimensions") or ())
    if name not in SETS:
        raise UserError(f"{file}: there is no prompt set '{name}': there are {', '.join(SETS)}.")
    if not dimensions:
        raise UserError(f"{file}: {name} is judged by dimensions, such as {', '.join(DIMENSIONS)}: none is named.")
    try:
        dimensions_named(dimensions)
    except UserError as error:
        raise UserError(f"{file}: {name}: {error}") from None
    return PromptSetConfig(name, dimensions, rest.get("path"))


def run_campaign(campaign: Campaign) -> int:
    """Run all parts. Returns the exit status: 0, or 1 where some rows failed, or a whole cell, which stays empty."""
    status, aligner = 0, {**result_flags(campaign.aligner), **aligner_and_prompts(campaign.aligner)}
    for questions in campaign.sets:
        question_file = campaign.output / "questions" / f"{questions.name}.jsonl"
        local = questions.path and Path(questions.path).is_file()
        source = {"path": questions.path, "sha256": sha256_of(questions.path) if local and questions.path else None}
        the_same(question_file.with_suffix(".json"), {"questions": source}, question_file)
        if not question_file.exists():
            write_questions(question_file, questions.name, questions.path)
        for upstream in campaign.upstreams:
            folder = campaign.output / upstream.name / questions.name
            print_lines(f"{upstream.name}, {questions.name}")
            try:
                settings = {
                    "aligner": aligner,
                    "upstream": result_flags(upstream.flags),
                    "questions": sha256_of(question_file),
                }
                the_same(folder / "settings.json", settings, folder / "corrected.jsonl")
                status = max(status, _one(campaign, upstream, questions, question_file, folder))
            except StepFailed as error:  # an upstream that is down leaves its own cells empty
                print_errors(f"error: {upstream.name}, {questions.name}: {error}")
                status = 1
    lines = main_table(campaign)
    print_lines(*lines)
    return status


def result_flags(flags: Flags) -> Flags:
    """The flags that decide the result; where and how quickly it is generated may change."""
    return {name: value for name, value in flags.items() if name not in NOT_RESULT_FLAGS}


def aligner_and_prompts(flags: Flags) -> Flags:
    """Fingerprints of the Aligners and the texts of their prompts: a folder may be trained anew, and a prompt's file edited."""
    from aligner.card import prompt_of  # imports torch, for which a misspelt file need not wait
    from aligner.demo import locate
    from aligner.models import check_place, fingerprint

    folders = [locate(str(folder)) for folder in flags.get("stack") or [flags["model"]]]
    for folder in folders:
        check_place(folder)
    prompts = [prompt_of(folder, flags.get("prompt_template")).text for folder in folders]
    return {
        "model": [fingerprint(folder, bool(flags.get("trust_remote_code"))) for folder in folders],
        "prompt": prompts,
    }


def _one(
    campaign: Campaign, upstream: UpstreamConfig, questions: PromptSetConfig, question_file: Path, folder: Path
) -> int:
    corrected, status = folder / "corrected.jsonl", 0
    for name in FIGURES:  # so that a cell that fails now does not show an earlier judge's figures
        (folder / name).unlink(missing_ok=True)
    if not corrected.exists():
        status = command("correct", {"input": question_file, "output": corrected, **campaign.aligner, **upstream.flags})
    flags = {"after": corrected, "output": folder, "dimensions": ",".join(questions.dimensions), **campaign.judge}
    return max(status, command("evaluate", flags))


def main_table(campaign: Campaign) -> list[str]:
    """The rates in the layout of the paper's main table, in per cent; also written to OUTPUT/table.json."""
    columns = [(each.name, dimension) for each in campaign.sets for dimension in each.dimensions]
    rates_by_upstream: dict[str, list[float | None]] = {}
    for upstream in campaign.upstreams:
        files = {each.name: campaign.output / upstream.name / each.name / "report.json" for each in campaign.sets}
        verdicts = {name: read_json(file)["verdicts"] if file.exists() else {} for name, file in files.items()}
        rates_by_upstream[upstream.name] = [
            verdicts[name].get(dimension, {}).get("rate") for name, dimension in columns
        ]
    means = []
    for values in zip(*rates_by_upstream.values(), strict=True):
        rates = [value for value in values if value is not None]
        means.append(sum(rates) / len(rates) if rates else None)
    rows = {**rates_by_upstream, "average": means}
    write_json(campaign.output / "table.json", {"columns": columns, "rows": rows})
    width = max(map(len, rows))
    heads = [f"{name} {dimension}" for name, dimension in columns]
    lines = [f"{'':<{width}}  " + "  ".join(heads)]
    for name, rates in rows.items():
        cells = ["-" if value is None else f"{100 * value:+.1f}" for value in rates]
        lines.append(
            f"{name:<{width}}  " + "  ".join(f"{cell:>{len(head)}}" for cell, head in zip(cells, heads, strict=True))
        )
    return lines
