"""README.md of a published Aligner, out of its aligner.json: prompt, base, data with their licences, recipe, figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from aligner.card import Card
from aligner.files import read_json
from aligner.records import UserError

# Of the registered sets, by their cards on the hub; a file's own licence is known to its owner alone.
LICENCES = {
    "aligner-20k": "cc-by-nc-4.0",
    "alignertails": "cc-by-nc-4.0",
    "pku-saferlhf": "cc-by-nc-4.0",
    "alpaca": "cc-by-nc-4.0",
    "hh-rlhf": "mit",
    "ultrafeedback": "mit",
}
BASES = {"embedded": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # names of ours, as the hub has them
RECIPE = (
    "epochs",
    "lr",
    "lr_scheduler_type",
    "lr_warmup_ratio",
    "weight_decay",
    "seed",
    "loss_reduction",
    "identity_proportion",
    "bf16",
)
LORA = ("lora_rank", "lora_alpha", "lora_target", "lora_4bit")


def model_card(card: Card, repo: str, evaluation: Path | None = None) -> str:
    """The Markdown text with the hub's YAML header. `evaluation`: a folder of `aligner evaluate`. UserError where it is none."""
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["aligner", "alignment", "correction"],
    }
    base = BASES.get(card.base_model, card.base_model)
    if "/" in base and public(base) == base:  # an id of the hub
        header["base_model"] = base
    front = yaml.safe_dump(header, sort_keys=False).strip()
    return (
        "\n".join([f"---\n{front}\n---", f"# {repo.rpartition('/')[2]}", "", *_body(card, repo), *_figures(evaluation)])
        + "\n"
    )


def _body(card: Card, repo: str) -> list[str]:
    shown = [slot for slot in ("question", "answer") if slot in card.prompt.slots]
    about = "rewrites a model's answer into a better one" if "answer" in shown else "answers questions"
    base = public(BASES.get(card.base_model, card.base_model))
    use = (
        f"aligner correct --model {repo} --question '...' --answer '...'"
        if "answer" in shown
        else f"transformers serve {repo}"
    )
    turns = {"question": "a user's question", "answer": "an assistant's answer"}
    return [
        f"A causal language model that {about}: {base}, trained with {', '.join(shown)} and correction.",
        "",
        "```bash",
        use,
        "```",
        "",
        f"Prompt (`{card.prompt.name}`; the correction follows it without a space, and the folder's chat template renders it",
        f"from {' and '.join(turns[slot] for slot in shown)}):",
        "",
        *_prompt(card.prompt.text),
        "",
        *_other_prompts(card),
        "| data | rows | taken | licence |",
        "|---|---|---|---|",
        *map(_source, card.data.get("train", [])),
        "",
        *_builds(card),
        f"Recipe: {card.records_per_update:,} records an update, at most {card.max_length:,} tokens a record; {_recipe(card)}.",
    ]


def _prompt(text: str) -> list[str]:
    return ["```json", json.dumps(text, ensure_ascii=False), "```"]


def _other_prompts(card: Card) -> list[str]:
    """Those of data sets that brought their own, with which the Aligner is not used."""
    others = card.data.get("deciding", {}).get("other prompts", {})
    head = (
        ["Some of the records were learned behind other prompts, each data set's behind its own:", ""] if others else []
    )
    return head + [line for name, text in others.items() for line in (f"`{name}`:", "", *_prompt(text), "")]


def _recipe(card: Card) -> str:
    values = {**{name: card.config.get(name) for name in RECIPE}, **{name: card.settings.get(name) for name in LORA}}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _source(source: Mapping[str, Any]) -> str:
    name = str(source.get("dataset", "")).split(" ")[0]
    place = public(str(source.get("path", "")))
    build = source.get("build") or {}
    licence = build.get("licence") or LICENCES.get(name, "its owner's: to be filled in")
    return f"| {name}: {place} | {source.get('rows', 0):,} | {source.get('taken', 0):,} | {licence} |"


def _builds(card: Card) -> list[str]:
    """A sentence for each source that `aligner build` wrote."""
    lines = []
    for build in filter(None, (source.get("build") for source in card.data.get("train", []))):
        roles = ((build[role], how) for role, how in (("upstreams", "answers by"), ("annotators", "corrections by")))
        models = "; ".join(f"{how} {', '.join(names)}" for names, how in roles)
        sources = ", ".join(f"{name} ({licence or 'licence not said'})" for name, licence in build["sources"].items())
        lines += [
            f"Built with `aligner build` as `{build['name']}` ({build['digest']}): questions of {sources}; {models}.",
            "",
        ]
    return lines


def public(path: str) -> str:
    """A path as others may see it: of a file or a folder the name alone; a hub's address stays."""
    return Path(path).name if path.startswith(("/", "~", ".")) or Path(path).exists() else path


def _figures(evaluation: Path | None) -> Sequence[str]:
    """What `aligner evaluate` measured: its table of a measure, or how many answers it left alone and the verdicts."""
    if evaluation is None:
        return []
    if (evaluation / "measure.md").is_file():
        return ["", "## Measured", "", (evaluation / "measure.md").read_text(encoding="utf-8").strip()]
    if not (evaluation / "report.json").is_file():
        raise UserError(f"--evaluation {evaluation}: holds no report of 'aligner evaluate'. Name its --output folder.")
    report = read_json(evaluation / "report.json")
    rows = [
        f"| {name} | {figures['wins']:,} | {figures['ties']:,} | {figures['losses']:,} |"
        for name, figures in report.get("verdicts", {}).items()
    ]
    copied = report["copying"]["all"]
    line = f"Of {copied['pairs']:,} answers {copied['identical']:,} were left as they are."
    judge = (
        [f"Judged by {report['judge']}:", "", "| | better | the same | worse |", "|---|---|---|---|", *rows]
        if rows
        else []
    )
    return ["", "## Measured", "", line, *judge]
