"""README.md of what was built, as the hub shows it: sources and licences, models, prompts, counts, agreement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from aligner.building.config import BuildConfig, ModelConfig
from aligner.building.flow import flow_table
from aligner.building.principles import Principles
from aligner.building.stage import Row, StageResult
from aligner.training.checkpoint.model_card import public

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def data_card(config: BuildConfig, results: Sequence[StageResult], principles: Principles, rows: Sequence[Row]) -> str:
    """The Markdown text with the hub's YAML header."""
    size = next((name for most, name in SIZES if len(rows) < most), "n>1M")
    header: dict[str, Any] = {
        "license": config.licence.lower() or "other",
        "task_categories": ["text-generation"],
        "tags": ["aligner", "alignment", "correction"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train.jsonl"}]}],
    }
    if config.questions.languages:
        header["language"] = list(config.questions.languages)
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False).strip()}\n---",
        f"# {config.name}",
        "",
        f"{len(rows):,} rows of a question, a model's answer and its correction, built with `aligner build`. They train an "
        "Aligner, a model that rewrites other models' answers: `aligner train --train_datasets FOLDER`.",
        "",
        "![rows by stage](kept.png)",
        "",
        "Each row has question, answer, correction, and where they come from: source, origin, upstream, annotator; critique and "
        "harmful are the annotator's.",
        "",
        "## Sources and licences",
        "",
        "| source | data | licence |",
        "|---|---|---|",
        *(
            f"| {each.label} | {public(each.data)} | {each.licence or 'not said: ask its owner'} |"
            for each in config.sources
        ),
        "",
        "The answers and corrections are subject to the terms of the models that wrote them.",
        "",
        "## Models",
        "",
        *_models("answers", config.answers.upstreams),
        *_models("corrections", config.corrections.annotators),
        "",
        "## Kept",
        "",
        *(line.replace("# ", "### ", 1) if line.startswith("# ") else line for line in flow_table(config, results)[2:]),
        "",
        *_leaks(config, results),
        *_people(results),
        "## Principles and prompt",
        "",
        "```yaml",
        principles.text.rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _models(role: str, models: Sequence[ModelConfig]) -> Iterator[str]:
    yield f"| {role} by | model | share | sampling |"
    yield "|---|---|---|---|"
    whole = sum(each.share for each in models)
    for each in models:
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens")
        sampling = ", ".join(f"{name} {getattr(each, name):g}" for name in names if getattr(each, name))
        greedy = f"greedy, max_tokens {each.max_tokens}"
        sampling = "-" if each.is_people else sampling if each.temperature else greedy
        yield f"| {each.name} | {public(each.model or each.folder or '-')} | {each.share / whole:.1%} | {sampling} |"
    yield ""


def _leaks(config: BuildConfig, results: Sequence[StageResult]) -> Iterator[str]:
    yield "## Evaluation sets"
    yield ""
    counts = results[1].counts
    if not config.leaks.sets:
        yield "The questions were compared with no evaluation set."
    else:
        how = " and by the meaning of their embeddings" if config.leaks.model else ""
        sets = ", ".join(map(public, config.leaks.sets))
        yield (
            f"{sum(counts['dropped'].values()):,} of {counts['into']:,} questions were dropped because they are in, nearly in, or "
            f"hold a question of {sets} ({counts['evaluation questions']:,} questions), compared word by word{how}."
        )
    yield ""


def _people(results: Sequence[StageResult]) -> Iterator[str]:
    yield "## People"
    yield ""
    counts = next(result.counts for result in results if result.name == "people")
    if not counts["looked at"]:
        yield "No person looked at the rows."
        yield ""
        return
    agreed = counts["agreement"]
    kappa = "not defined" if agreed["kappa"] is None else f"{agreed['kappa']:.3f}"
    yield (
        f"People looked at {counts['looked at']:,} rows. Of {agreed['rows']:,} pairs of verdicts {agreed['same']:,} were the "
        f"same, Cohen's kappa {kappa}; a second reader decided {counts['second reader']:,} rows."
    )
    yield ""
