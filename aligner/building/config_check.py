"""Settings of a build that cannot be meant."""

from __future__ import annotations

from collections.abc import Iterator

from aligner.building.config import PEOPLE, BuildConfig, ModelConfig, SourceConfig
from aligner.rounds.filters import WANTED

Finding = tuple[str, bool, str]  # a setting, whether it cannot be meant, and why, with the remedy
A_SHARE = "it is a share, 0 to 1."
ABOVE_NOTHING = "it is a share, above 0 and at most 1."
ONE_AT_LEAST = "it must be at least 1. Leave it out for all."


def findings(config: BuildConfig) -> list[tuple[str, str]]:
    """What cannot be meant: the setting, and the finding with its remedy."""
    wrong = [(place, text) for place, is_wrong, text in (*_of_questions(config), *_of_rows(config)) if is_wrong]
    for place, models in (("answers.upstreams", config.answers.upstreams),
                          ("corrections.annotators", config.corrections.annotators)):  # fmt: skip
        wrong += [(place, text) for text in _model_findings(models)]
    if any(each.is_people for each in config.answers.upstreams):
        wrong.append(("answers.upstreams", f"'{PEOPLE}' only correct. Name a model."))
    return wrong


def _of_questions(config: BuildConfig) -> Iterator[Finding]:
    """Sources, filters of questions, leaks."""
    yield from _of_sources(config.sources)
    questions, leaks = config.questions, config.leaks
    yield "questions.limit", _is_below_one(questions.limit), ONE_AT_LEAST
    yield "questions.characters", not _is_range(questions.characters), "give the least and the most, as [8, 4000]."
    yield "questions.near", not _is_share(questions.near), ABOVE_NOTHING
    yield "leaks.near", not _is_share(leaks.near), ABOVE_NOTHING
    yield "leaks.ngram", leaks.ngram < 3, "it must be at least 3 words."
    yield "leaks.containment", not _is_share(leaks.containment), ABOVE_NOTHING


def _of_sources(sources: tuple[SourceConfig, ...]) -> Iterator[Finding]:
    names, shares = [source.label for source in sources], [source.share for source in sources]
    given = [share for share in shares if share is not None]
    yield "sources", not sources, "none is named. Name one at least."
    yield "sources", not all(source.data.strip() for source in sources), "'data' is empty. Name a file or a set."
    yield "sources", len({*names}) < len(names), "two have the same name. Give each a 'name' of its own."
    yield "sources", 0 < len(given) < len(shares), "some have a share and some have none. Give all one, or none."
    yield "sources", any(share <= 0 for share in given), "a share must be above 0."


def _of_rows(config: BuildConfig) -> Iterator[Finding]:
    """Answers, corrections, people, the filters of rows, money."""
    filters = config.filter
    people = [each for each in config.corrections.annotators if each.is_people]
    yield "answers.per_question", _is_below_one(config.answers.per_question), ONE_AT_LEAST
    yield "cap", config.cap is not None and config.cap < 0, "it is money, 0 at least. Leave it out for none."
    yield "people.review", not 0 <= config.people.review <= 1, A_SHARE
    yield "people.readers", config.people.readers < 1, "it must be at least 1."
    yield "people", any(each.url or each.folder for each in people), "are no model: leave url out."
    yield "filter.unchanged", not 0 <= filters.unchanged <= 1, A_SHARE
    yield "filter.most_edit", not 0 <= filters.least_edit <= filters.most_edit <= 1, "edits are shares, 0 to 1."
    yield "filter.length_ratio", not _is_range(filters.length_ratio), "give the least and the most, as [0.1, 10]."
    yield "filter.longest", filters.longest < 1, "it must be at least 1 character."
    yield "filter.refusals", filters.refusals not in ("keep", "drop"), "it is 'keep' or 'drop'."
    yield "filter.wanted", filters.wanted not in WANTED, f"it is one of {', '.join(WANTED)}."
    yield "check.max_length", config.check.max_length < 1, "it must be at least 1 token."


def _is_below_one(number: int | None) -> bool:
    return number is not None and number < 1


def _is_share(value: float | None) -> bool:
    return value is None or 0 < value <= 1


def _is_range(value: tuple[float, ...]) -> bool:
    return len(value) == 2 and 0 <= value[0] <= value[1]


def _model_findings(models: tuple[ModelConfig, ...]) -> list[str]:
    """What is wrong with the models of one stage."""
    findings = [] if models else ["none is named. Name one at least."]
    if len({each.name for each in models}) < len(models):
        findings.append("two have the same name. Give each its own.")
    for each in models:
        if not each.is_people and bool(each.url) == bool(each.folder):
            findings.append(f"'{each.name}' needs either url and model, or folder.")
        elif each.url and not each.model:
            findings.append(f"'{each.name}' needs 'model', its name on the server.")
        if each.price.read < 0 or each.price.written < 0:
            findings.append(f"'{each.name}': a price is 0 or more, for a million tokens.")
        if each.folder and each.repetition_penalty is not None:
            findings.append(f"'{each.name}': repetition_penalty is for servers. Leave it out.")
        if each.share <= 0 or each.concurrency < 1 or each.max_tokens < 1 or each.batch_size < 1:
            findings.append(f"'{each.name}': share must be above 0; concurrency, max_tokens, batch_size at least 1.")
        if not 0 <= each.temperature <= 2 or not 0 < each.top_p <= 1 or each.top_k < 0:
            findings.append(
                f"'{each.name}': temperature is 0 to 2, top_p above 0 and at most 1, top_k 0 (off) or more."
            )
    return findings
