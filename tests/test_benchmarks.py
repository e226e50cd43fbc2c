"""The benchmarks that the README's figures come from still run, and still find both sides equal."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, TEMPLATE, environment

from tests.benchmarks.load import load

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


def test_the_time_that_is_added_is_taken_by_load_of_every_side(tiny_model, tmp_path):
    flags = ("--prompt_template", "correction", "--max_new_tokens", 8, "--picture", tmp_path / "load.png")
    *table, last = printed(
        "tests.benchmarks.load", tiny_model, TEMPLATE, "--rates", 2, 6, "--seconds", 4, *flags
    ).splitlines()
    rows = {
        (cells[0], cells[1]): list(map(float, cells[2:5]))
        for line in table[2:]
        if (cells := line.strip("| ").split(" | "))
    }
    sides = {"upstream alone", "in process", "in process, gate", "behind a server", "behind a server, gate"}
    assert set(rows) == {(side, rate) for side in sides for rate in ("2", "6")}
    assert all(p50 <= p95 <= p99 for p50, p95, p99 in rows.values())
    assert 0 <= rows["upstream alone", "6"][0] < rows["in process", "6"][0]
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG") and "load average" in last


def test_a_load_waits_for_no_reply_and_counts_from_when_a_request_was_due(told):
    """A server that replies to one request at a time: half a second each, three due in half a second. It says that none of it is
    its own."""
    one_at_a_time = threading.Lock()

    def slow(text: str) -> str:
        with one_at_a_time:
            time.sleep(0.5)
        return text

    told.rule = slow
    side = asyncio.run(load(told.url, ["q"], [0.0, 0.1, 0.5]))
    assert side.failed == 0 and side.late < 0.2
    assert sorted(side.seconds) == pytest.approx([0.5, 0.9, 1.0], abs=0.25), "the second and third waited for the first"


def test_real_answers_are_counted_by_kind_and_their_code_comes_back(tiny_model, tmp_path):
    rows = [
        {"question": f"q{n}", "answer": f"See:\n```\n{n}\n```" if n < 4 else f"Only prose, {n}."} for n in range(20)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = ("--prompt_template", "correction", "--max_new_tokens", 40, "--answers", 20)
    lines = printed("tests.benchmarks.real_answers", tiny_model, tmp_path / "rows.json", *flags).splitlines()
    table = {
        cells[0]: [int(cell) for cell in cells[1:]] for line in lines[2:9] if (cells := line.strip("| ").split(" | "))
    }
    assert table["code"][:2] == [2, 0] and table["JSON"] == [1, 1, 0, 0, 1, 0, 0, 0, 0], "left alone"
    assert all(row[0] == sum(row[2:]) for row in table.values()) and table["all"][0] == 20
    assert table["prose"][5] == table["prose"][0], "a random model never ends"
    assert lines[-1] == "fenced code: 2 of 2 blocks come back byte for byte (100 %)"


def test_the_added_time_is_taken_of_two_checkouts(tiny_model, tmp_path):
    rows = [{"question": f"q{n}", "answer": f"Only prose, {n}."} for n in range(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = ("--prompt_template", "correction", "--max_new_tokens", 8, "--answers", 2, "--delay", 1.5, "--before", ROOT)
    *lines, last = printed("tests.benchmarks.added_time", tiny_model, tmp_path / "rows.json", *flags).splitlines()
    table = {
        cells[0]: [float(cell) for cell in cells[1:]] for line in lines[2:] if (cells := line.strip("| ").split(" | "))
    }
    assert last.startswith("CPU seconds of an answer: before ")
    assert list(table) == ["whole, before", "whole, now", "streamed, before", "streamed, now"]
    assert table["whole, now"][2] >= 1.5 > table["streamed, now"][2] >= 1, (
        "a stream's first byte is sent after a second"
    )


def test_answers_are_printed_in_sentences_and_those_that_growing_cuts_otherwise_are_named(tmp_path):
    pytest.importorskip("sentencex")
    rows = [{"answer": f"This is the {n}th answer of all, e.g. one. It has two sentences."} for n in range(3)]
    rows += [{"answer": 'He said "This is not the end. It goes on for quite a while yet." and left.'}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    *lines, last = printed("tests.benchmarks.splitting", tmp_path / "rows.json", "--each", 4).splitlines()
    assert sorted(line.count("‖") for line in lines) == [0, 1, 1, 1]
    assert last.startswith("4 answers, 7 sentences; cut otherwise while they grow: [")
