"""The benchmarks that the README's figures come from still run, and still find both sides equal."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT, TEMPLATE, environment

pytestmark = pytest.mark.slow


def printed(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], env=environment(2), cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_step_has_the_originals_gradient_and_a_ratio():
    lines = printed("tests.benchmarks.step", "--rows", 4, "--rounds", 1, "--only", "12k, short").splitlines()
    assert lines[0].startswith("vocabulary, rows original     ours")
    figures = lines[1].removeprefix("12k, short").split()
    assert float(figures[1]) > 1, "four short rows are padded by the original, and its head runs at every place"
    assert float(figures[7]) < 1e-6, "the gradient's relative difference"


def test_a_whole_run_has_the_originals_losses():
    """Twelve rows are one update, most of it the optimiser's: its time says nothing of either side, so none is asked for."""
    *sides, last = printed("tests.benchmarks.whole_run", TEMPLATE, "--rows", 12, "--ranks", 1).splitlines()
    assert [side.split()[0] for side in sides] == ["original", "ours"]
    assert float(re.search(r"losses differ by (\S+);", last)[1]) < 1e-5
    assert float(re.search(r"ours: (\S+) in CPU seconds", last)[1]) > 0


def test_decoding_is_compared_and_equal(tiny_model):
    lines = printed(
        "tests.benchmarks.decoding",
        tiny_model,
        TEMPLATE,
        "--rows",
        6,
        "--max_new_tokens",
        24,
        "--prompt_template",
        "correction",
    ).splitlines()
    assert lines[0].split()[:3] == ["copied", "rows", "tokens"]
    everything = lines[1].split()
    assert everything[:4] == ["all", "6", "144", "144"], "rows, tokens, passes of plain decoding"
    assert int(everything[5]) < 144, "ours"
    assert [line for line in lines if "6 of 6 rows are plain greedy decoding's" in line] == lines[-2:]


def test_serving_is_timed_beside_its_upstream(tiny_model):
    flags = ("--prompt_template", "correction", "--max_new_tokens", 8)
    lines = printed(
        "tests.benchmarks.serving", tiny_model, TEMPLATE, "--requests", 8, "--delay", 0.2, *flags
    ).splitlines()
    table = [line for line in lines if line.startswith(("the upstream alone", "aligner serve, batch"))]
    assert len(table) == 9, "three numbers of clients: the upstream alone, with and without batching"
    assert all(float(line.split()[-1]) > 0 for line in table[3:]), "what is added"
