"""What a run shows: before it the arithmetic and rendered examples, after it what was learned and what is next."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from aligner.quality.edits import diff, show
from aligner.questions import question_key
from aligner.records import Correction, UserError
from aligner.terminal import print_lines, printable
from aligner.training.config import RunConfig
from aligner.training.datasets.damage import DamagePlan, damage_plan
from aligner.training.datasets.mixture import Source
from aligner.training.datasets.supervised import Tokens
from aligner.training.stages import BEFORE, Stage, StageData
from aligner.training.train_log import evaluations, read_log

if TYPE_CHECKING:
    from aligner.inference.corrector import Corrector

WIDTH = 100
LONGEST = 160  # tokens of a correction that is generated to be looked at


def console() -> Console:
    """The screen; plain text of a fixed width where it is no terminal."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)


def examples(tokens: Sequence[Tokens], sources: Sequence[Source], count: int = 3) -> list[Tokens]:
    """The first row of each source, and further ones up to `count`: each data set may have a prompt of its own."""
    places = [set(source.files) or {source.path} for source in sources]
    firsts = [next((row for row in tokens if row.origin.file in files), None) for files in places]
    chosen = {row.origin: row for row in firsts if row}
    for row in tokens[:count]:
        if len(chosen) < count:
            chosen[row.origin] = row
    return list(chosen.values())


def show_examples(rows: Sequence[Tokens], tokenizer: Any) -> None:
    """Rows as the model sees them, the learned part green (without colour in double brackets)."""
    screen = console()
    for row in rows:
        prompt = tokenizer.decode(row.ids[: row.prompt_length].tolist())
        learned = tokenizer.decode(row.ids[row.prompt_length :].tolist())
        line = Text(printable(prompt, lines=True))
        learned = printable(learned, lines=True)
        line.append(learned if screen.is_terminal else f"[[{learned}]]", style="bold green")
        screen.print(f"\n{printable(row.origin)}: {len(row.ids)} tokens, {row.target_length} learned")
        screen.print(line, soft_wrap=not screen.is_terminal)


def held_out_losses(stages: Sequence[Stage], export: str) -> list[tuple[str, float]]:
    """The held-out loss before, after the warm-up if there was one, and after the correction; empty if never evaluated.

    export: whether the correction's model is its last or its best.
    """
    losses: list[tuple[str, float]] = []
    for stage in stages:
        values = [loss for _, loss in evaluations(read_log(stage.folder))]
        if values:
            losses += [] if losses else [("before", values[0])]
            if stage.name != "correction":
                losses.append((f"after the {BEFORE[stage.name]}", values[-1]))
            else:
                losses.append(("after the correction", min(values[1:] or values) if export == "best" else values[-1]))
    return losses


def show_result(stages: Sequence[Stage], data: StageData, config: RunConfig) -> None:
    """The losses, some corrections, what help there is, the folder, and the next command, ready to paste."""
    screen, folder, held_out = console(), stages[-1].folder, data.held_out
    if losses := held_out_losses(stages, config.output.export):
        screen.print(f"\nLoss on {len(held_out)} held-out corrections (nats per token)")
        for name, loss in losses:
            screen.print(f"  {name:<34}{loss:.4f}")
    corrections = config.output.show_corrections
    restores = not config.data.sentences and any(
        source.dataset.split()[0] == "restoration" for source in data.train_sources
    )
    if held_out and (corrections or restores):
        try:
            corrector = open_corrector(folder, config.model.trust_remote_code)
            if corrections:
                different = {question_key(record.question): record for record in reversed(held_out)}
                show_corrections(screen, corrector, list(different.values())[::-1][:corrections])
            if restores:
                damage = damage_plan(config.data.damage, config.data.hold_back)
                show_help(screen, corrector, held_out, damage)
        except UserError as error:  # the run is complete all the same
            screen.print(printable(f"what it learned cannot be shown: {error}"))
    screen.print(printable(f"\ncheckpoint  {folder}\npicture     {folder / 'loss.png'}", lines=True))
    screen.print("next:", style="bold")
    print_lines(f"  {shlex.join(next_command(folder, data))}")


def open_corrector(folder: Path, trust_remote_code: bool) -> Corrector:
    """The new Aligner."""
    # Not at the top: that would be half of this file's import time, also where nothing is generated.
    from aligner.inference.corrector import Corrector, Settings

    settings = Settings(batch_size=16, max_new_tokens=LONGEST)
    return Corrector.load(str(folder), settings=settings, trust_remote_code=trust_remote_code)


def show_help(screen: Console, corrector: Corrector, held_out: Sequence[Correction], damage: DamagePlan) -> None:
    """How much of the damage that it was trained on the new Aligner takes out of held-out answers."""
    from aligner.evaluation.measures.held_out import held_out_help, help_lines  # not at the top, as above

    screen.print("\nmeasuring the help on held-out answers ...", style="dim")
    figures = held_out_help(corrector, held_out, damage)
    screen.print("Does it help?", style="bold")
    for line in help_lines(figures):
        screen.print(f"  {line}", soft_wrap=True)


def next_command(folder: Path, data: StageData) -> list[str]:
    """What to do with the new model: correct with it; one whose prompt shows no answer is asked, as any other model is."""
    if "answer" not in data.prompts.correcting.slots:
        return ["transformers", "serve", str(folder)]
    return [*command_line(), "correct", "--model", str(folder), *example_flags(data)]


def example_flags(data: StageData) -> list[str]:
    """What can be corrected here and now: a file of the data whose rows have question and answer, else a record."""
    sources = [s.path for s in (*data.eval_sources, *data.train_sources) if s.dataset.startswith("correction-json ")]
    if files := [path for path in sources if Path(path).is_file()]:
        mode = ["--sentences"] if data.prompts.correcting.by_sentence else []
        return [*mode, "--input", files[0], "--output", "corrected.jsonl", "--max_new_tokens", "256"]
    record = (data.held_out or data.train)[0]
    return ["--question", record.question, "--answer", record.answer]


def show_corrections(screen: Console, corrector: Corrector, records: Sequence[Correction]) -> None:
    """Generate corrections of held-out answers and show each as a diff against its answer."""
    from aligner.inference.corrector import CorrectionRequest  # not at the top, as above

    screen.print("\ncorrecting a few held-out answers ...", style="dim")
    requests = [CorrectionRequest(record.question, record.answer, record.feedback, record.prefix) for record in records]
    corrected_answers = corrector.correct(requests)
    screen.print("Held-out answers as the new Aligner corrects them (taken out, put in)")
    for record, corrected in zip(records, corrected_answers, strict=True):
        ended = "" if corrected.finished else f"; cut off at {LONGEST} tokens"
        screen.print(Text("\n" + printable(record.question, lines=True), style="bold"))
        screen.print(show(diff(record.answer, corrected.text), screen.is_terminal))
        screen.print(f"({corrected.edits.copied:.0%} of it copied{ended})", style="dim")


def command_line() -> list[str]:
    """How to call `aligner` from here: by its name where that finds it, else by its path."""
    script = Path(sys.executable).with_name("aligner")
    if shutil.which("aligner") == str(script):
        return ["aligner"]
    if script.exists():
        near = script.is_relative_to(Path.cwd())
        return [str(script.relative_to(Path.cwd()) if near else script)]
    return [sys.executable, "-m", "aligner"]
