"""aligner build: stage after stage, each a folder; run again it goes on, and does only what is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aligner.baselines.converse import Progress
from aligner.building.answers import answer_questions, collect_answers, drawn_upstreams
from aligner.building.asking import (
    FIRST_REPLIES,
    Estimate,
    Purse,
    Question,
    ReplyJournal,
    ask,
    check_first,
    estimate,
    identity_of,
    spent_on,
)
from aligner.building.asking import money_of as money_of_usage
from aligner.building.config import BuildConfig, ModelConfig
from aligner.building.corrections import collect_corrections, correction_questions, drawn_annotator
from aligner.building.filters import filter_corrections
from aligner.building.last_check import check_rows
from aligner.building.leaks import screen_leaks
from aligner.building.people import Desk, collect_readings, row_needs_people
from aligner.building.places import check_places
from aligner.building.principles import Principles, read_principles
from aligner.building.questions import collect_questions, draw_shares
from aligner.building.read_questions import version_of
from aligner.building.result import write_result
from aligner.building.stage import REMEDIES, ROWS, Row, Sieve, StageResult, run_stage
from aligner.files import sha256_of
from aligner.locks import take
from aligner.records import UserError
from aligner.training.datasets.registry import register_files

STAGES = tuple(REMEDIES)
Say = Callable[[str], Any]


@dataclass(frozen=True)
class BuildJob:
    """What is built, and how it is told. file: building.yaml, kept with what is built. annotations: files that people's tools
    exported. dry_run: stop before the first reply is asked for."""

    config: BuildConfig
    file: str
    output: Path
    say: Say
    progress: Progress
    annotations: tuple[str, ...] = ()
    dry_run: bool = False


@dataclass(frozen=True)
class BuildSummary:
    """What came of it. results: of the finished stages. waiting: rows that people have to look at, and the files for them."""

    results: tuple[StageResult, ...]
    waiting: int = 0
    files: tuple[Path, ...] = ()


class Builder:
    """The stages of one job, each from the rows of the one before it."""

    def __init__(self, job: BuildJob, journal: ReplyJournal) -> None:
        self.job, self.config, self.journal = job, job.config, journal
        self.purse = Purse(self.config.cap, self.config.currency, journal.spent)
        self.principles: Principles = read_principles(self.config.corrections.principles)
        self.results: list[StageResult] = []

    @property
    def rows(self) -> list[Row]:
        """The rows of the last stage."""
        return self.results[-1].rows

    def stage(self, deciding: Any, work: Callable[[], Sieve]) -> StageResult:
        """Run the next stage and tell what it kept."""
        name = STAGES[len(self.results)]
        before = self.results[-1].sha256 if self.results else ""
        folder = self.job.output / "stages" / f"{len(self.results) + 1}-{name}"
        result = run_stage(folder, name, [before, deciding], work)
        self.results.append(result)
        dropped = result.counts["dropped"]
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        self.job.say(
            f"{name}: {result.counts['kept']:,} of {result.counts['into']:,} kept"
            + (f" ({reasons})" if reasons else "")
        )
        if not result.rows:
            first = next((f" (the first: {some[0]})" for some in result.counts["examples"].values()), "")
            raise UserError(
                f"{name}: no row is left{first}. {folder}/dropped.jsonl has every reason; {REMEDIES[name]}."
            )
        return result

    def questions(self) -> None:
        """Read, filter, screen and draw: what costs nothing."""
        config = self.config
        sources = [{**asdict(each), "share": None, "licence": None} for each in config.sources]
        versions = [version_of(each.data) for each in config.sources]
        settings = {**asdict(config.questions), "limit": None}
        self.stage([sources, versions, settings], lambda: collect_questions(config))
        leaks = config.leaks
        sets = [asdict(leaks), [version_of(each) for each in leaks.sets]]
        self.stage(sets, lambda: screen_leaks(self.rows, leaks))
        shares = [[each.label, each.share] for each in config.sources]
        self.stage([shares, config.questions.limit, config.seed], lambda: draw_shares(self.rows, config))

    def answers(self) -> None:
        """Each question to its upstreams."""
        answers, rows = self.config.answers, self.rows
        identities = {each.name: identity_of(each) for each in answers.upstreams}
        self.stage(
            [
                self._models(answers.upstreams, identities),
                answers.per_question,
                answers.keep_unfinished,
                self.config.seed,
            ],
            lambda: self._asked(
                answers.upstreams,
                identities,
                {
                    each.name: [row for row in rows if each.name in drawn_upstreams(row, self.config)]
                    for each in answers.upstreams
                },
                lambda model, some: answer_questions(some, model, self.config.seed),
                lambda outcomes: collect_answers(rows, outcomes, self.config),
            ),
        )

    def corrections(self) -> None:
        """Each answer to its annotator."""
        annotators, rows = self.config.corrections.annotators, self.rows
        models = [each for each in annotators if not each.is_people]
        identities = {each.name: identity_of(each) for each in annotators}
        self.stage(
            [self._models(annotators, identities), self.principles.text, self.config.seed],
            lambda: self._asked(
                models,
                identities,
                {each.name: [row for row in rows if drawn_annotator(row, self.config) == each.name] for each in models},
                lambda model, some: correction_questions(some, model, self.principles, self.config.seed),
                lambda outcomes: collect_corrections(
                    rows, {row: outcomes[row, name] for row, name in outcomes}, self.config
                ),
            ),
        )

    def people(self) -> tuple[int, tuple[Path, ...]]:
        """What people said of the corrections; how many rows wait for them, and the files for them."""
        config = self.config
        to_read = [row for row in self.rows if row_needs_people(row, config)]
        desk = Desk(self.job.output / "people", config.people)
        if self.job.annotations:
            self.job.say(desk.take_in(self.job.annotations, {row["id"] for row in self.rows}))
        waiting, files = desk.lay_out(to_read)
        if waiting and config.people.wait:
            return waiting, files
        opinions = desk.opinions(to_read)
        self.stage(
            [asdict(config.people), config.seed, sorted(map(str, opinions.items()))],
            lambda: collect_readings(self.rows, to_read, opinions, config.people),
        )
        return waiting if to_read else 0, files

    def last(self) -> None:
        """The second filter and the check."""
        settings = self.config.filter
        verdicts = sha256_of(settings.verdicts) if settings.verdicts else None
        self.stage([asdict(settings), verdicts, self.config.seed], lambda: filter_corrections(self.rows, self.config))
        check, rows = self.config.check, self.results[-1]
        last = self.stage(asdict(check), lambda: check_rows(rows.rows, rows.folder / ROWS, check))
        for line in last.counts["check"]:
            self.job.say(f"  {line}")

    def _models(self, models: Sequence[ModelConfig], identities: dict[str, str]) -> list[Any]:
        return [
            {**each.deciding(), "name": each.name, "share": each.share, "folder": identities[each.name]}
            for each in models
        ]

    def _asked(
        self,
        models: Sequence[ModelConfig],
        identities: dict[str, str],
        rows: dict[str, list[Row]],
        questions_of: Callable[[ModelConfig, Sequence[Row]], list[Question]],
        collect: Callable[[dict[tuple[str, str], Any]], Sieve],
    ) -> Sieve:
        """Ask every model its rows, and say what that takes before and has taken after; the sieve of the outcomes."""
        questions = {each.name: questions_of(each, rows[each.name]) for each in models}
        self.tell_estimates({m.name: estimate(m, identities[m.name], questions[m.name], self.journal) for m in models})
        outcomes: dict[tuple[str, str], Any] = {}
        cost: dict[str, Any] = {}
        for model in models:
            asked = partial(
                ask, model, identities[model.name], journal=self.journal, purse=self.purse, progress=self.job.progress
            )
            check_first(model, asked(questions[model.name][:FIRST_REPLIES]))
            talks = asked(questions[model.name])
            for row, talk in zip(rows[model.name], talks, strict=True):
                outcomes[row["id"], model.name] = talk.outcome
            usage = spent_on(talks)
            money = round(money_of_usage(usage, model.price), 6)
            cost[model.name] = {**asdict(usage), "seconds": round(usage.seconds, 1), "money": money}
            unknown = f", {usage.unknown:,} calls without a count" if usage.unknown else ""
            self.job.say(
                f"  {model.name}: {usage.calls:,} replies, {usage.prompt_tokens:,} tokens read, {usage.completion_tokens:,} "
                f"written, {money:,.2f} {self.config.currency}{unknown}"
            )
        if self.purse.cap is not None and self.purse.spent > self.purse.cap:
            self.job.say(
                f"  {self.purse.spent:,.2f} are spent, beyond the cap: a server states more tokens than its texts have bytes"
            )
        sieve = collect(outcomes)
        sieve.notes["cost"] = cost
        return sieve

    def tell_estimates(self, estimates: dict[str, Estimate]) -> None:
        """What is going to be asked and paid."""
        for name, each in estimates.items():
            if each.requests:
                self.job.say(
                    f"  {name}: {each.requests:,} replies to come: about {each.read:,} tokens read, {each.written:,} written (at "
                    f"most {each.most_written:,}), {each.money:,.2f} {self.config.currency} (at most {each.most_money:,.2f})"
                )
        money = sum(each.money for each in estimates.values())
        cap = f", the cap is {self.purse.cap:g}" if self.purse.cap is not None else ", there is no cap"
        if self.purse.cap is not None and self.purse.spent + money > self.purse.cap:
            cap += ": it will be reached"
        if money or self.purse.spent:
            self.job.say(f"  about {money:,.2f} {self.config.currency} to come, {self.purse.spent:,.2f} spent{cap}")

    def tell_plan(self) -> None:
        """What answers and corrections will take, before the first reply."""
        config, rows = self.config, self.rows
        by_upstream: dict[str, list[Row]] = {each.name: [] for each in config.answers.upstreams}
        by_annotator: dict[str, list[Row]] = {each.name: [] for each in config.corrections.annotators}
        for row in rows:
            for name in drawn_upstreams(row, config):
                by_upstream[name].append(row)
                pair = {**row, "id": f"{row['id']}-{name}", "answer": "word " * 240}  # as long as answers are, about
                by_annotator[drawn_annotator(pair, config)].append(pair)
        self.job.say("answers:")
        self.tell_estimates(
            {m.name: estimate(m, identity_of(m), answer_questions(by_upstream[m.name], m, config.seed), self.journal)
             for m in config.answers.upstreams}
        )  # fmt: skip
        self.job.say("corrections, if every answer is kept:")
        self.tell_estimates(
            {m.name: estimate(m, identity_of(m), correction_questions(by_annotator[m.name], m, self.principles, 0), self.journal)
             for m in config.corrections.annotators if not m.is_people}
        )  # fmt: skip


def build(job: BuildJob) -> BuildSummary:
    """Run all stages, or go on with them. UserError where one cannot be done; ServerGone where a server is gone or the cap reached:
    the same command goes on."""
    register_files(list(job.config.register))
    check_places(job.config, job.file)
    release = take(job.output / "build.lock", f"{job.output}: another build is writing it. Wait for it.")
    journal = None
    try:
        journal = ReplyJournal(job.output / "replies" / "replies.jsonl")
        builder = Builder(job, journal)
        builder.questions()
        if job.dry_run:
            builder.tell_plan()
            return BuildSummary(tuple(builder.results))
        builder.answers()
        builder.corrections()
        waiting, files = builder.people()
        if waiting and job.config.people.wait:
            return BuildSummary(tuple(builder.results), waiting, files)
        builder.last()
        write_result(job.config, job.file, job.output, builder.results, builder.principles)
        return BuildSummary(tuple(builder.results))
    finally:
        if journal:
            journal.close()
        release()
