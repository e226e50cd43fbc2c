"""An experiment that compares methods: train the Aligner, let every method answer the same questions, and set help against cost."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aligner.baselines.help_per_cost import SystemAnswers, cost_lines, help_per_cost, system_answers
from aligner.baselines.prompts import read_prompts
from aligner.console import progress
from aligner.evaluation.measures.items import TextMeasure, answered_truth, declining_items
from aligner.files import read_json, read_yaml, write_json, write_lines, write_text
from aligner.locks import take
from aligner.plots import draw_costs
from aligner.readers.rows import read_rows
from aligner.records import Row, UserError
from aligner.refusals import is_unsafe
from aligner.reproduce.comparison import UPSTREAM, Comparison
from aligner.reproduce.experiment import Experiment, digest_of, rows_by_side
from aligner.reproduce.rows import write_rows
from aligner.reproduce.steps import Step, run_step, training_steps, words_of
from aligner.shipped import shipped
from aligner.terminal import print_lines

BEHIND = " + Aligner"
CALLS = {
    "bon": 20,
    "beam": 4,
    "refine": 2,
    "critique": 1,
    "revise": 2,
}  # in replies to a question, about, for the estimate
UPSTREAMS = "configs/evaluation/upstreams.yaml"


def run_comparison(experiment: Experiment, data: Path, folder: Path, dry_run: bool) -> int:
    """Run it at the small scale, or print its estimate alone (`dry_run`). Killed, the same command goes on."""
    assert experiment.comparison
    release = take(folder / "reproduce.lock", f"{folder}: another run of this experiment is writing it. Wait for it.")
    try:
        counts = write_rows(experiment, data, folder / "rows")
        questions = write_questions(experiment, data, folder)
        check_trained_questions(experiment, folder / "rows" / "questions.jsonl")
        steps = [*training_steps(experiment, folder, counts), *answering_steps(experiment, folder, questions)]
        left = [step for step in steps if not step.product.exists()]
        hours = sum(step.seconds for step in left) / 3600
        print_lines(
            f"{experiment.name}: {experiment.about}",
            f"{questions:,} questions to report, none of them trained on",
            f"{len(left):,} of {len(steps):,} steps left: about {hours:.1f} hours on two quiet cores",
        )
        if dry_run:
            return 0
        lines: list[str] = []
        for step in progress(steps, desc=experiment.name, unit=" steps"):
            run_step(step)
            if (folder / "answers" / f"{UPSTREAM}.jsonl").exists():  # a table from the first method on
                lines = write_comparison(experiment, data, folder)
        print_lines(*lines)
        return 0
    finally:
        release()


def with_rounds(experiment: Experiment, named: Sequence[str]) -> Experiment:
    """The experiment with a further method for each NAME=DIR: the best upstream that `aligner rounds` left in the folder, greedily.

    UserError where there is none, or the name is taken.
    """
    comparison = experiment.comparison
    assert comparison
    methods = dict(comparison.methods)
    for text in named:
        name, _, folder = text.partition("=")
        if not folder or name in methods:
            taken = f"'{name}' is a method already" if folder else "write NAME=DIR"
            raise UserError(f"--rounds {text}: {taken}.")
        later = read_json(Path(folder) / "rounds.json")["rounds"][1:]
        if not later:
            raise UserError(f"{folder}: no round is finished there. Run 'aligner rounds' to its end.")
        best = max(later, key=lambda each: each["lead"]["value"])["round"]
        methods[name] = {"method": "beam", "width": 1, "model": f"{folder}/round-{best}/upstream"}
    return replace(experiment, comparison=replace(comparison, methods=methods))


def check_trained_questions(experiment: Experiment, questions: Path) -> None:
    """UserError where an upstream of `--rounds` was trained on a question that is reported."""
    reported = {digest_of(row.value["question"]) for row in read_rows(questions) if isinstance(row, Row)}
    assert experiment.comparison
    for name, method in experiment.comparison.methods.items():
        if "model" in method:
            file = Path(method["model"]).parents[1] / "questions" / "train.jsonl"
            trained = {digest_of(row.value["question"]) for row in read_rows(file) if isinstance(row, Row)}
            if both := len(trained & reported):
                raise UserError(
                    f"--rounds {name}: {both:,} of the reported questions were trained on ({file}). Run 'aligner rounds' on the "
                    f"questions of {questions.parent}, those to train on."
                )


def write_questions(experiment: Experiment, data: Path, folder: Path) -> int:
    """Write the questions of all measures, each once, and the prompts. Returns how many there are."""
    comparison = experiment.comparison
    assert comparison
    rows = [
        {"question": row["question"], "measure": measure}
        for measure in comparison.questions
        for row in measured_rows(experiment, data, measure)
    ]
    write_lines(folder / "rows" / "questions.jsonl", {row["question"]: row for row in rows}.values())
    file = folder / "rows" / "prompts.yaml"
    write_json(file, {**read_prompts().about(), **comparison.prompts})  # JSON is YAML
    read_prompts(str(file))
    return len(rows)


def measured_rows(experiment: Experiment, data: Path, measure: str) -> list[dict[str, Any]]:
    """A row of each question of a measure, none of which an Aligner was trained on: by digest, so that which does not depend on the
    order in the file."""
    assert experiment.comparison
    file, most = experiment.comparison.questions[measure]
    if not (data / file).exists():
        raise UserError(f"{data / file}: there is no such file. --data names the folder with it.")
    trained = {digest_of(row["question"]) for row in rows_by_side(experiment, data, experiment.rows)["train"]}
    rows: dict[str, dict[str, Any]] = {}
    for row in read_rows(data / file):
        if isinstance(row, Row) and isinstance(row.value, dict) and isinstance(row.value.get("question"), str):
            digest = digest_of(row.value["question"])
            if digest not in trained:
                rows.setdefault(digest, row.value)
    most = most if experiment.limit is None else min(most, experiment.limit)
    if measure != "declining":
        return [rows[digest] for digest in sorted(rows)[:most]]
    kinds = [[d for d in sorted(rows) if is_unsafe(rows[d]) == unsafe] for unsafe in (True, False)]
    return [rows[digest] for kind in kinds for digest in kind[: most // 2]]  # as many of each


def answering_steps(experiment: Experiment, folder: Path, questions: int) -> list[Step]:
    """Every method's answers, in the order of the file."""
    comparison, seconds = experiment.comparison, experiment.scales["small"].seconds.get("reply", 1)
    assert comparison
    files = {"rows": folder / "rows" / "questions.jsonl", "prompts": folder / "rows" / "prompts.yaml"}
    run = next(iter(experiment.scales["small"].runs))
    steps = []
    for name in comparison.methods:
        words = baseline_words(
            comparison, name, folder / "answers", files["rows"], comparison.upstream, folder / "runs" / run
        )
        product = folder / "answers" / f"{name}.jsonl"
        method = comparison.methods[name]
        nested = method["method"] == "bon" and "input" in method
        replies = 0 if nested else CALLS[method["method"]] + bool(method.get("aligner"))
        words = ["aligner", *words, "--prompts", str(files["prompts"])]
        source = folder / "answers" / f"{method['input']}.jsonl" if "input" in method else files["rows"]
        steps.append(Step(name, tuple(words), product, replies * questions * seconds, source))
    return steps


def baseline_words(
    comparison: Comparison, name: str, answers: Path, questions: Path, upstream: Mapping[str, Any], aligner: Path
) -> list[str]:
    """The words of `aligner baseline` behind `aligner`."""
    method = comparison.methods[name]
    source = answers / f"{method['input']}.jsonl" if "input" in method else questions
    flags = {"input": source, "output": answers / f"{name}.jsonl", **upstream, **comparison.flags(name)}
    flags |= {"aligner": aligner} if method.get("aligner") else {}
    return ["baseline", str(method["method"]), *words_of(flags)]


def write_comparison(experiment: Experiment, data: Path, folder: Path) -> list[str]:
    """comparison.json, and out of it comparison.md and a picture of each measure, of the methods that have answered. Returns the
    lines of the tables."""
    comparison = experiment.comparison
    assert comparison
    reports = {m: _report(experiment, data, folder, m) for m in comparison.questions}
    write_json(folder / "comparison.json", {"experiment": experiment.name, "measures": reports})
    lines = [line for report in reports.values() for line in cost_lines(report)]
    write_text(folder / "comparison.md", "\n".join([f"# {experiment.name}", "", experiment.about, "", *lines]) + "\n")
    for measure, report in reports.items():
        points = {row["system"]: (_bounds(row["tokens"]), _bounds(row["gain"])) for row in report["systems"]}
        draw_costs(points, f"gain, {measure}", folder / f"{measure}.png")
    return [*lines, f"{folder / 'comparison.md'}"]


def _bounds(estimate: Mapping[str, float]) -> tuple[float, float, float]:
    return estimate["value"], estimate["low"], estimate["high"]


def _report(experiment: Experiment, data: Path, folder: Path, measure: str) -> dict[str, Any]:
    comparison = experiment.comparison
    assert comparison
    rows = measured_rows(experiment, data, measure)
    questions = [row["question"] for row in rows]
    systems: dict[str, SystemAnswers] = {}
    for name, method in comparison.methods.items():
        file = folder / "answers" / f"{name}.jsonl"
        if not file.exists():
            continue
        read = [row.value for row in read_rows(file) if isinstance(row, Row)]
        by_question = {row["question"]: row for row in read}
        answers = [by_question[question] for question in questions]
        systems[name] = system_answers(answers, corrected=False)
        if method.get("aligner"):
            systems[f"{name}{BEHIND}"] = system_answers(answers, corrected=True)
    own = dict(zip(questions, systems[UPSTREAM].texts, strict=True))
    return help_per_cost(_measure(data, comparison, measure, rows, own), systems, UPSTREAM, UPSTREAM + BEHIND)


def _measure(
    data: Path, comparison: Comparison, name: str, rows: Sequence[Mapping[str, Any]], own: Mapping[str, str]
) -> TextMeasure:
    """The measure of the upstream's own answers."""
    if name == "truth":
        return answered_truth(str(data / comparison.questions[name][0]), own)
    return declining_items([{**row, "answer": own[row["question"]]} for row in rows], by_prompt=True)


def comparison_lines(experiment: Experiment) -> list[str]:
    """The commands at the paper's size: each of its upstreams by each method, and a judge over the answers."""
    comparison = experiment.comparison
    assert comparison
    settings = read_yaml(shipped(UPSTREAMS))
    lines, output = [], Path(f"output/reproduce/{experiment.name}")
    for upstream, address in settings["upstreams"].items():
        answers = output / "answers" / upstream
        searches = "localhost" in address["upstream_url"]  # a provider's server has no beam search
        flags = {"max_new_tokens": settings["aligner"]["upstream_max_tokens"], **address}
        flags |= {"dialect": "vllm"} if searches else {}
        run = next(iter(experiment.scales["paper"].runs))
        methods = {
            name: method
            for name, method in comparison.methods.items()
            if searches or method["method"] != "beam" or method.get("width") == 1
        }
        for name, method in methods.items():
            more = {"reward": "reward", "reward_model": "PKU-Alignment/beaver-7b-v1.0-reward"}
            rewarded = {**flags, **(more if method["method"] == "bon" else {})}
            words = baseline_words(comparison, name, answers, Path("questions.jsonl"), rewarded, output / run)
            lines.append(shlex.join(["aligner", *words]))
        systems = {name: f"{answers / name}.jsonl:answer" for name in methods}
        systems |= {
            f"{name}-aligner": f"{answers / name}.jsonl:corrected"
            for name, method in methods.items()
            if method.get("aligner")
        }
        named = [f"{name}={file}" for name, file in systems.items()]
        words = ["aligner", "evaluate", "--systems", *named, "--output", str(output / "reports" / upstream)]
        lines.append(shlex.join([*words, *words_of({**settings["judge"], "dimensions": "helpful,harmless"})]))
    return lines
