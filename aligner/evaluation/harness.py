"""lm-evaluation-harness through its own package: an upstream, and the upstream behind `aligner serve`, as two models of one run.

    python -m aligner.evaluation.harness --tasks gsm8k --model NAME --upstream_url http://localhost:8000/v1 \\
        --layer_url http://localhost:8080/v1 --output DIR

The package (`pip install "lm_eval[api]"`, best in an environment of its own) is a program here, not an import. Both models are
called through chat completions, so tasks must generate text; those that compare log-probabilities cannot see a correction.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from aligner.files import read_json, write_text
from aligner.records import UserError
from aligner.terminal import print_errors, print_lines

Scores = dict[str, dict[str, float]]  # by task and metric


def run_harness(program: str, url: str, model: str, tasks: str, output: Path, more: Sequence[str]) -> Scores:
    """One model through the harness. UserError where the program is not there or fails."""
    if shutil.which(program) is None:
        raise UserError(
            f"--program {program}: there is none. 'pip install \"lm_eval[api]\"' into an environment of its own."
        )
    arguments = f"model={model},base_url={url.rstrip('/')}/chat/completions,num_concurrent=4,max_retries=3"
    command = [program, "--model", "local-chat-completions", "--model_args", arguments, "--tasks", tasks]
    command += ["--apply_chat_template", "--output_path", str(output), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    write_text(output / "lm_eval.log", done.stdout + done.stderr)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{program} failed ({last[:200]}). Its output is in {output / 'lm_eval.log'}.")
    return scores(output)


def scores(folder: Path) -> Scores:
    """The newest results that the harness wrote into a folder: its numbers, by task and metric."""
    files = sorted(folder.rglob("results*.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise UserError(f"{folder}: the harness wrote no results.")
    results = read_json(files[-1])["results"]
    return {
        task: {
            name: value for name, value in metrics.items() if isinstance(value, int | float) and "stderr" not in name
        }
        for task, metrics in results.items()
    }


def comparison_lines(before: Scores, after: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Both models side by side, a line for each task and metric."""
    lines = [f"{'task':<24}{'metric':<28}{'upstream':>10}{'+ Aligner':>11}"]
    for task, metrics in before.items():
        for name, value in metrics.items():
            lines.append(f"{task:<24}{name:<28}{value:>10.4f}{after.get(task, {}).get(name, float('nan')):>11.4f}")
    return lines


def main(arguments: list[str]) -> int:
    """Run both and print the table; unknown flags are passed to the harness."""
    parser = argparse.ArgumentParser(
        prog="python -m aligner.evaluation.harness", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add("--tasks", required=True, help="of the harness, with commas")
    add("--model", required=True, help="the upstream's name for itself")
    add("--upstream_url", required=True, metavar="URL", help="the upstream, http://HOST:PORT/v1")
    add("--layer_url", required=True, metavar="URL", help="`aligner serve` in front of it")
    add("--output", required=True, type=Path, metavar="DIR")
    add("--program", default="lm_eval", help="the harness (lm_eval)")
    args, more = parser.parse_known_args(arguments)
    try:
        before = run_harness(args.program, args.upstream_url, args.model, args.tasks, args.output / "upstream", more)
        after = run_harness(
            args.program, args.layer_url, args.model, args.tasks, args.output / "upstream+Aligner", more
        )
    except UserError as error:
        print_errors(f"error: {error}")
        return 2
    print_lines(*comparison_lines(before, after))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
