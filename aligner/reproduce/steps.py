"""The steps of an experiment at the small scale: each a command that a person would type, with the file that it makes.

A step whose product is there is not run again, so a killed experiment goes on with the same command.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.evaluation.measures.text_scores import shown_objectives
from aligner.evaluation.subprocess_step import StepFailed, the_same
from aligner.files import COMPLETED, read_json, remove_folder, sha256_of, write_lines
from aligner.known_prompts import OBJECTIVES
from aligner.parsing import json_value
from aligner.reproduce.experiment import RUN_KEYS, Experiment, Fields, Scale, rows_by_side
from aligner.reproduce.rows import DAMAGED, files_of
from aligner.terminal import print_lines

STATES = "checkpoints"  # of a training, from which a killed one goes on
CONTROLS = 100  # answers, of each part, that a control corrects where answers are short


@dataclass(frozen=True)
class Step:
    """A command, what it makes, and about how long it takes. `product` is a file: there, the step is done. `rows`: the file
    that it reads."""

    name: str
    words: tuple[str, ...]
    product: Path
    seconds: float
    rows: Path


def run_step(step: Step) -> None:
    """Run a step that is not done. UserError where its product was made with other words or rows, StepFailed where it fails."""
    folder = os.path.commonpath([step.product, step.rows])  # the experiment's own: moved elsewhere, it goes on
    settings = {"words": [word.replace(folder, ".") for word in step.words], "rows": sha256_of(step.rows)}
    the_same(step.product.parent / f".{step.product.name}.step", settings, step.product)
    if step.product.exists() or (
        step.product.name == COMPLETED and _copied_from_beside(step.product.parent, Path(folder), settings)
    ):
        return
    status = _status_of(step.words)
    if status not in (0, 1) or not step.product.exists():
        raise StepFailed(f"{step.name} ended with {status}: see above. The same command goes on from there.")
    if step.product.name == COMPLETED:
        for states in step.product.parent.rglob(STATES):  # the warm-up's too: a night of trainings would fill a disk
            remove_folder(states)


def _copied_from_beside(made: Path, folder: Path, settings: Fields) -> bool:
    """Whether an experiment beside this one had trained just this, such as the same control: then it is copied."""
    for mark in sorted(folder.parent.glob(f"*/{made.relative_to(folder)}/.{COMPLETED}.step")):
        if (mark.parent / COMPLETED).exists() and read_json(mark) == json_value(json.dumps(settings)):
            left_out = shutil.ignore_patterns(COMPLETED, STATES)  # resume states are large, and it is complete
            shutil.copytree(mark.parent, made, dirs_exist_ok=True, ignore=left_out)
            shutil.copyfile(mark.parent / COMPLETED, made / COMPLETED)  # last: killed before, it is copied anew
            print_lines(f"{made}: a copy of {mark.parent}, which was trained alike")
            return True
    return False


def _status_of(words: Sequence[str]) -> int:
    """Run `python -m WORDS`. Stopped, this ends when the command has: a training saves its state first."""
    process = subprocess.Popen([sys.executable, "-m", *words])
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return process.wait()
    except SystemExit:
        process.terminate()
        process.wait()
        raise
    except KeyboardInterrupt:  # which the terminal has sent to the command too
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def answering_steps(experiment: Experiment, data: Path, folder: Path) -> list[Step]:
    """Where the rows are prompts: a model's answers to those of each file, which are written to `folder`/prompts, in
    `folder`/answers under the file's name."""
    if not experiment.upstream:
        return []
    steps = []
    for file in files_of(experiment):
        sides = rows_by_side(experiment, data, (file,))
        prompts, product = folder / "prompts" / file, folder / "answers" / file
        write_lines(prompts, [row for side in sides.values() for row in side])
        flags = {"input": prompts, "output": product, "width": 1, **experiment.upstream}
        seconds = sum(map(len, sides.values())) * experiment.scales["small"].seconds.get("reply", 1)
        steps.append(
            Step(f"answers to {file}", ("aligner", "baseline", "beam", *words_of(flags)), product, seconds, prompts)
        )
    return steps


def training_flags(experiment: Experiment, scale: Scale, name: str, folder: Path) -> dict[str, Any]:
    """The flags of a run's training."""
    run = scale.runs[name]
    spec = "correction-json" if run.get("shuffled") else experiment.data_set
    share = f"{run['share']}" if "share" in run else ""
    flags = {**scale.train, **{key: value for key, value in run.items() if key not in RUN_KEYS}}
    flags["train_datasets"] = f"{spec}:{share}:{folder / 'rows' / f'train-{name}.jsonl'}"
    if beside := run.get("beside"):
        more = [f"{spec}:{part}:{folder / 'rows' / f'train-{other}.jsonl'}" for other, part in beside.items()]
        flags["train_datasets"] = [flags["train_datasets"], *more]
    if "from" in run:
        flags["model_name_or_path"] = str(model_of(scale, run["from"], folder))
    if spec == "restoration":
        flags["hold_back"] = experiment.damage
    if experiment.rated:
        flags["prompt_template"] = OBJECTIVES.name
    return {**flags, "output_dir": str(folder / "runs" / name)}


def model_of(scale: Scale, name: str, folder: Path) -> Path:
    """The folder of a run's Aligner: that of the run which it corrects like, or one that was trained before."""
    run = scale.runs[name]
    return Path(run["trained"]) if "trained" in run else folder / "runs" / run.get("like", name)


def _asking(flags: dict[str, Any], run: Fields, answers: int) -> tuple[dict[str, Any], int]:
    """The flags of the measure of objectives, and how many corrections it makes. A run that never saw one is asked for that and
    for one that it saw; the controls stand in the report of the run that saw all."""
    flags = {**flags, "max_new_tokens": 300, "batch_size": 32, "control_limit": 60}
    if left_out := run.get("leave_out"):
        other = next(name for name in shown_objectives() if name != left_out)
        request = {"base": "none", "objectives": f"{left_out},{other}"}
        return {**{name: value for name, value in flags.items() if name != "shuffled"}, **request}, 3 * answers
    return flags, (len(shown_objectives()) + 1) * (answers + 2 * 60)


def words_of(flags: Fields) -> list[str]:
    """Flags as words of a command line."""
    words: list[str] = []
    for flag, value in flags.items():
        words += [f"--{flag}", *(str(each) for each in (value if isinstance(value, list) else [value]))]
    return words


def steps_of(experiment: Experiment, folder: Path, counts: dict[str, int]) -> list[Step]:
    """All steps but the last, which is of the chosen recipe: train every run, then measure it on the questions to choose by."""
    steps = training_steps(experiment, folder, counts)
    for name, run in experiment.scales["small"].runs.items():
        if not run.get("shuffled"):
            side = "choose" if experiment.chooses else "report"
            steps += measuring_steps(experiment, folder, name, side, counts[side], tried=1)
    return steps


def training_steps(experiment: Experiment, folder: Path, counts: dict[str, int]) -> list[Step]:
    """Train every run, the control first."""
    scale, steps = experiment.scales["small"], []
    trained = [name for name, run in scale.runs.items() if not {"like", "trained"} & run.keys()]
    for name in sorted(trained, key=lambda name: not scale.runs[name].get("shuffled")):
        flags = training_flags(experiment, scale, name, folder)
        others = sum(counts[other] * float(part) for other, part in scale.runs[name].get("beside", {}).items())
        seen = (counts[name] + others) * (float(flags.get("epochs", 3)) + float(flags.get("identity_proportion", 0)))
        product = folder / "runs" / name / COMPLETED
        words = ("aligner.launch", *words_of(flags))
        rows = folder / "rows" / f"train-{name}.jsonl"
        steps.append(Step(f"train {name}", words, product, seen * scale.seconds.get("record", 1), rows))
    return steps


def measuring_steps(experiment: Experiment, folder: Path, name: str, side: str, answers: int, tried: int) -> list[Step]:
    """Measure a run on the questions of a side. Where recipes are compared (`choose`): each measure's gain, the losses on copied
    and edited tokens, and several passes; where the chosen one is reported: each measure beside the controls that are models."""
    scale, rows = experiment.scales["small"], folder / "rows" / f"{side}.jsonl"
    output, steps = folder / "measures" / name / side, []
    control = next((other for other, run in scale.runs.items() if run.get("shuffled")), None)
    run, each = scale.runs[name], scale.seconds.get("correction", 1)
    model = model_of(scale, name, folder)
    reported = {"shuffled": folder / "runs" / control} if control else {}
    for measure in experiment.measures:
        flags = {"measure": measure, "rows": rows, "models": model, "output": output / measure}
        flags |= {
            "dtype": "bfloat16",
            **(reported if side == "report" else {"base": "none"}),
        }  # the type: as it was trained
        flags |= {"hold_back": experiment.damage} if experiment.damage and measure == "restoration" else {}
        flags |= {"nats_ahead": run["nats_ahead"]} if "nats_ahead" in run and measure != "preference" else {}
        flags |= {"tried": tried, "control_limit": 20}
        seconds = 3.5 * each * answers  # damaged in three ways, and every second one left alone
        if measure == "objectives":
            flags, corrections = _asking(flags, run, answers)
            seconds = each * corrections
        if measure == "declining":
            flags |= {"max_new_tokens": 128, "batch_size": 32, "control_limit": CONTROLS}
            seconds = each * (answers + (2 * CONTROLS if side == "report" else 0))
        words = ("aligner", "evaluate", *words_of(flags))
        if measure == "preference":
            seconds = (3 if side == "report" else 1) * scale.seconds.get("pair", 1) * answers
        product = output / measure / "measure.json"
        steps.append(Step(f"{measure} of {name}, {side}", words, product, seconds, rows))
    if side == "report":
        return steps
    if "like" not in run:  # else they are that run's
        judged = folder / "rows" / DAMAGED if experiment.damage else rows
        losses = {"after": judged, "models": f"{name}={model}", "output": output / "losses", "max_new_tokens": 256}
        product = output / "losses" / "report.json"
        words = ("aligner", "evaluate", *words_of(losses))
        steps.append(Step(f"losses of {name}, {side}", words, product, answers * each, judged))
    if experiment.passes > 1:
        file = output / "passes.jsonl"
        flags = {"model": model, "input": rows, "output": file, "passes": experiment.passes}
        words = ("aligner", "correct", *words_of({**flags, "max_new_tokens": 256}))
        steps.append(Step(f"passes of {name}, {side}", words, file, answers * experiment.passes * each, rows))
    return steps
