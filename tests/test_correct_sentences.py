"""`aligner correct --sentences`: upstream and Aligner in turns, on real servers that answer by a rule."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import environment
from scripted import scripted_upstream
from test_correct_file import lines, write
from two_writers import CHANGES, CORRECTED, aligner_rule, streamed, upstream_rule

from aligner.cli import main

pytest.importorskip("sentencex")
QUESTION = {"question": "What is the capital of France?"}


@pytest.fixture
def servers():
    with scripted_upstream() as upstream, scripted_upstream() as aligner:
        upstream.rule, aligner.rule = upstream_rule, aligner_rule()
        yield upstream, aligner


def command(tiny_model: Path, servers, folder: Path, rows, *more: str) -> list[str]:
    upstream, aligner = servers
    files = ["--input", str(write(folder / "in.jsonl", rows)), "--output", str(folder / "out.jsonl")]
    served = ["--aligner_url", aligner.url, "--upstream_url", upstream.url, "--upstream_model", "m"]
    model = ["--model", str(tiny_model), "--prompt_template", "sentence", "--max_new_tokens", "64"]
    return ["correct", "--sentences", *model, *files, *served, *more]


def test_the_upstream_goes_on_from_what_was_corrected(tiny_model, servers, tmp_path):
    assert main(command(tiny_model, servers, tmp_path, [QUESTION])) == 0
    [row] = lines(tmp_path / "out.jsonl")
    assert row["corrected"] == CORRECTED
    assert row["answer"] == "You fool! The capital is Rome, e.g. of old. It is on the Seine. Bye."
    assert row["finished"]
    assert [turn["corrected"].strip() for turn in row["by_sentence"]] == ["Hello.", "The capital is Paris.",
                                                                          "It is on the Seine.", "Bye."]  # fmt: skip
    asked = [body["messages"][1:] for _, body in servers[0].asked]
    assert [each[0]["content"] if each else "" for each in asked] == ["", "Hello.", "Hello. The capital is Paris."], (
        "after sentences that stay as they are nothing is asked for anew"
    )


@pytest.mark.slow
def test_completions_are_asked_for_with_the_models_own_chat_template(tiny_model, servers, tmp_path):
    import shutil

    folder = tmp_path / "chatting"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text("Q: {% for m in messages %}{{ m['content'] }}{% endfor %} A:")
    assert main(command(tiny_model, servers, tmp_path, [QUESTION], "--upstream_folder", str(folder))) == 0
    assert lines(tmp_path / "out.jsonl")[0]["corrected"] == CORRECTED
    prompts = [body["prompt"] for path, body in servers[0].asked]
    assert prompts[-1] == f"Q: {QUESTION['question']} A:Hello. The capital is Paris."


@pytest.mark.slow
def test_an_answer_that_is_there_is_corrected_and_nothing_is_asked_for(tiny_model, servers, tmp_path):
    row = {**QUESTION, "answer": "You fool! Hello. The capital is Rome, e.g. of old.\n\n- It is big."}
    assert main(command(tiny_model, servers, tmp_path, [row])) == 0
    [done] = lines(tmp_path / "out.jsonl")
    assert done["corrected"] == "Hello. The capital is Paris.\n\n- It is big.", (
        "the next sentence, said already, is not repeated"
    )
    assert done["answer"] == row["answer"] and not servers[0].asked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "corrected"),
    [
        ({**CHANGES, "It is on the Seine.": ""}, "Hello. The capital is Paris."),
        ({"You fool!": ""}, "You fool! The capital is Rome, e.g. of old. It is on the Tiber. Ask again."),
    ],
    ids=["the Aligner says the end", "the first sentence is not the end"],
)
def test_an_empty_correction_is_the_end_of_the_answer(tiny_model, servers, tmp_path, changes, corrected):
    servers[1].rule = aligner_rule(changes)
    assert main(command(tiny_model, servers, tmp_path, [QUESTION])) == 0
    assert lines(tmp_path / "out.jsonl")[0]["corrected"] == corrected


@pytest.mark.slow
def test_an_answer_that_never_ends_stops_at_its_bound(tiny_model, servers, tmp_path):
    servers[0].rule = lambda path, body: (
        200,
        {"content-type": "text/event-stream"},
        streamed("On and on. " * 200, "delta"),
    )
    assert main(command(tiny_model, servers, tmp_path, [QUESTION], "--upstream_max_tokens", "20")) == 0
    [row] = lines(tmp_path / "out.jsonl")
    assert row["answer_finished"] is False and row["finished"] is False
    assert 3 < row["corrected"].count("On and on.") < 15


@pytest.mark.slow
def test_a_job_that_stopped_goes_on_behind_the_last_corrected_sentence(tiny_model, servers, tmp_path):
    upstream, aligner = servers
    whole = aligner_rule()
    aligner.rule = lambda path, body: (
        (401, {}, b'{"error": {"message": "key"}}') if "Seine" in body["prompt"] else whole(path, body)
    )
    assert main(command(tiny_model, servers, tmp_path, [QUESTION])) == 2
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "out.jsonl.journal").read_text().splitlines()[1:]]
    assert kinds == ["turn 1", "turn 2"]
    aligner.rule, before = whole, len(aligner.asked)
    assert main(command(tiny_model, servers, tmp_path, [QUESTION])) == 0
    assert lines(tmp_path / "out.jsonl")[0]["corrected"] == CORRECTED
    assert (
        len(aligner.asked) == before + 2
        and upstream.asked[-1][1]["messages"][1]["content"] == "Hello. The capital is Paris."
    )


@pytest.mark.slow
def test_a_job_that_was_killed_ends_as_if_never_killed(tiny_model, servers, tmp_path):
    """Killed amid its answers, the same command writes the same bytes and corrects no sentence twice but those under way."""
    rows, at_once = [{**QUESTION, "id": n} for n in range(24)], 2
    job = command(tiny_model, servers, tmp_path, rows, "--batch_size", "1", "--concurrency", str(at_once))
    whole, output, journal = (tmp_path / name for name in ("whole.jsonl", "out.jsonl", "out.jsonl.journal"))
    assert main([*job, "--output", str(whole)]) == 0
    aligner, corrected = servers[1], aligner_rule()
    aligner.rule, asked = lambda *sent: time.sleep(0.02) or corrected(*sent), len(aligner.asked)
    process = subprocess.Popen([sys.executable, "-m", "aligner", *job], env=environment(1))
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 20):
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kinds = [json.loads(line)["kind"] for line in journal.read_text().splitlines()[1:-1]]
    assert len(kinds) < 4 * len(rows) and {"turn 1", "turn 3"} < set(kinds) and not output.exists()
    assert main(job) == 0
    assert output.read_bytes() == whole.read_bytes() and not list(tmp_path.glob("*.journal*"))
    assert asked <= len(aligner.asked) - asked <= asked + at_once


@pytest.mark.slow
def test_a_server_that_begins_anew_or_refuses_to_go_on_is_named_with_the_remedy(tiny_model, servers, tmp_path, capsys):
    servers[0].rule = lambda path, body: (
        200,
        {"content-type": "text/event-stream"},
        streamed("You fool! Bye.", "delta"),
    )
    servers[1].rule = aligner_rule({"You fool!": "Hello."})
    assert main(command(tiny_model, servers, tmp_path, [QUESTION])) == 2
    assert "begins its answer anew" in (said := capsys.readouterr().err) and "--upstream_folder" in said
    refusal = {"error": {"message": "continue_final_message: Extra inputs are not permitted"}}
    servers[0].rule = lambda path, body: (
        (400, {}, json.dumps(refusal).encode()) if "continue_final_message" in body else upstream_rule(path, body)
    )
    servers[1].rule = aligner_rule()
    (tmp_path / "out.jsonl.journal").unlink()
    assert main(command(tiny_model, servers, tmp_path, [QUESTION])) == 2
    assert "takes no 'continue_final_message'" in (said := capsys.readouterr().err) and "--upstream_folder" in said


@pytest.mark.slow
def test_an_upstream_on_this_machine_needs_no_server(tiny_model, servers, tmp_path):
    aligner = servers[1]
    files = ["--input", str(write(tmp_path / "in.jsonl", [QUESTION])), "--output", str(tmp_path / "out.jsonl")]
    model = ["--model", str(tiny_model), "--prompt_template", "sentence", "--aligner_url", aligner.url]
    here = ["--upstream_folder", str(tiny_model), "--upstream_max_tokens", "12"]
    assert main(["correct", "--sentences", *model, *files, *here]) == 0
    [row] = lines(tmp_path / "out.jsonl")
    assert row["corrected"].strip() and row["answer"].split() == row["corrected"].split(), "this Aligner copies"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sentences", "--prompt_template", "correction"], "has no {prefix}"),
        (["--prompt_template", "sentence"], "add --sentences"),
        (["--sentences", "--prompt_template", "sentence", "--passes", "2"], "--passes is for whole answers"),
        (["--prompt_template", "correction", "--upstream_folder", "x"], "--upstream_folder needs --sentences"),
    ],
)
def test_flags_and_prompts_that_do_not_go_together_are_refused(tiny_model, tmp_path, capsys, flags, said):
    row = write(tmp_path / "in.jsonl", [{**QUESTION, "answer": "A."}])
    files = ["--input", str(row), "--output", str(tmp_path / "out.jsonl")]
    assert main(["correct", "--model", str(tiny_model), *files, *flags]) == 2
    assert said in capsys.readouterr().err
