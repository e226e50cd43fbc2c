"""`aligner correct`: a file in, a file out; killed, refused, stacked and repeated without losing or redoing a row."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, environment, read_rows

from aligner.cli import main
from aligner.inference.correct_file import CorrectionJob, StackedAligner, correct_file
from aligner.inference.corrector import Corrected, CorrectionRequest
from aligner.inference.guard import Guard
from aligner.inference.journal import Journal
from aligner.jsonl import LineLog
from aligner.quality.edits import edits
from aligner.records import UserError

QUIET = lambda items, **_: items  # noqa: E731


class Rewriter:
    """An Aligner that changes text by a rule, notes what it was asked, and answers in reverse order."""

    def __init__(self, rule: Callable[[str], str], fail_after: int | None = None, endless: str = "") -> None:
        self.rule, self.fail_after, self.asked = rule, fail_after, list[CorrectionRequest]()
        self.endless = endless  # the answer whose correction does not end

    def stream(self, requests) -> Iterator[tuple[int, Any]]:
        for place in reversed(range(len(requests))):
            if self.fail_after == len(self.asked):
                raise KeyboardInterrupt
            self.asked.append(requests[place])
            answer = requests[place].answer
            if answer == "refused":
                yield place, UserError("it is refused.")
            else:
                text = self.rule(answer)
                yield place, Corrected(text, answer != self.endless, edits(answer, text))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def work(tmp_path: Path, rows: list[Any], *aligners: Rewriter, **more: Any) -> CorrectionJob:
    stack = [
        StackedAligner(f"aligner-{number}", lambda a=aligner: a, takes_feedback=True)
        for number, aligner in enumerate(aligners)
    ]
    return CorrectionJob(write(tmp_path / "in.jsonl", rows), str(tmp_path / "out.jsonl"), stack, **more)


ROWS = [{"id": n, "question": f"Q{n}", "answer": f"a{n}", "extra": {"kept": [n]}} for n in range(5)]


def test_empty_corrections_are_counted(tmp_path):
    report = correct_file(work(tmp_path, ROWS, Rewriter(lambda text: "" if text in ("a1", "a3") else text)), QUIET)
    assert (report.corrected, report.empty) == (5, 2)


def test_where_a_correction_does_not_end_the_answer_is_kept_and_the_row_says_so(tmp_path):
    report = correct_file(work(tmp_path, ROWS, Rewriter(str.upper, endless="a2")), QUIET)
    third = lines(tmp_path / "out.jsonl")[2]
    assert (third["corrected"], third["finished"], third["guard"], third["cut_off"]) == (
        "a2",
        False,
        "answer kept",
        "A2",
    )
    assert third["edits"]["identical"] and "guard" not in lines(tmp_path / "out.jsonl")[1] and report.unfinished == 1


def test_a_later_pass_goes_on_from_the_answer_that_was_kept(tmp_path):
    second = Rewriter(lambda text: text + "!")
    correct_file(work(tmp_path, ROWS[:3], Rewriter(str.upper, endless="a2"), second), QUIET)
    assert {request.answer for request in second.asked} == {"A0", "A1", "a2"}
    assert lines(tmp_path / "out.jsonl")[2]["passes"] == ["a2", "a2!"] and lines(tmp_path / "out.jsonl")[2]["finished"]


@pytest.mark.parametrize(("least", "corrected"), [(None, "A1"), (2.5, "A1"), (2.6, "a1")])
def test_an_answer_stays_unless_its_correction_is_so_much_likelier(least, corrected, tmp_path):
    class Weighing(Rewriter):
        def stream(self, requests):
            for place, outcome in super().stream(requests):
                yield place, replace(outcome, nats_ahead=2.5)

    report = correct_file(work(tmp_path, ROWS[:2], Weighing(str.upper), guard=Guard(nats_ahead=least)), QUIET)
    row = lines(tmp_path / "out.jsonl")[1]
    assert (row["corrected"], row["nats_ahead"], row["finished"]) == (corrected, 2.5, True)
    assert ("not 2.6 nats likelier" in row.get("guard_reason", "")) == (corrected == "a1") == (report.left_alone == 2)


def test_a_correction_that_was_cut_off_can_be_kept_all_the_same(tmp_path):
    correct_file(work(tmp_path, ROWS, Rewriter(str.upper, endless="a2"), guard=Guard(keep_unfinished=True)), QUIET)
    third = lines(tmp_path / "out.jsonl")[2]
    assert third["corrected"] == "A2" and not third["finished"] and "guard" not in third


def test_only_the_rows_that_failed_are_corrected_again(tmp_path):
    class Refuses(Rewriter):
        def stream(self, requests):
            for place, outcome in super().stream(requests):
                yield place, UserError("no.") if requests[place].answer in ("a1", "a3") else outcome

    correct_file(work(tmp_path, ROWS, Refuses(str.upper)), QUIET)
    again = Rewriter(lambda text: text + "!")
    report = correct_file(work(tmp_path, ROWS, again, retry_failed=True), QUIET)
    assert [row["corrected"] for row in lines(tmp_path / "out.jsonl")] == ["A0", "a1!", "A2", "a3!", "A4"]
    assert (len(again.asked), report.rows, report.faults) == (2, 2, [])
    with pytest.raises(UserError, match="has no row that failed"):
        correct_file(work(tmp_path, ROWS, again, retry_failed=True), QUIET)
    with pytest.raises(UserError, match="is not the output of"):
        correct_file(work(tmp_path, ROWS[:3], again, retry_failed=True), QUIET)


def test_rows_keep_their_order_and_their_fields(tmp_path):
    report = correct_file(work(tmp_path, ROWS, Rewriter(str.upper)), QUIET)
    assert [(row["id"], row["extra"], row["corrected"]) for row in lines(tmp_path / "out.jsonl")] == [
        (n, {"kept": [n]}, f"A{n}") for n in range(5)
    ]
    assert (report.rows, report.corrected, report.faults) == (5, 5, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"], "no journal and no lock is left"


def test_a_row_says_what_the_correction_did(tmp_path):
    correct_file(
        work(tmp_path, [{"question": "Q", "answer": "The moon is cheese."}], Rewriter(lambda _: "The moon is rock.")),
        QUIET,
    )
    [row] = lines(tmp_path / "out.jsonl")
    assert row["finished"] is True
    assert row["edits"] == {"identical": False, "copied": 0.7059, "similarity": 0.7778, "length_ratio": 0.8947}


def test_what_was_stopped_goes_on_without_redoing_a_row(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        correct_file(work(tmp_path, ROWS, first := Rewriter(str.upper, fail_after=3)), QUIET)
    assert not (tmp_path / "out.jsonl").exists()
    second = Rewriter(str.upper)
    correct_file(work(tmp_path, ROWS, second), QUIET)
    asked = [request.question for request in first.asked + second.asked]
    assert sorted(asked) == ["Q0", "Q1", "Q2", "Q3", "Q4"], "each once"
    assert [row["corrected"] for row in lines(tmp_path / "out.jsonl")] == ["A0", "A1", "A2", "A3", "A4"]


def test_a_line_that_a_kill_cut_off_is_done_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        correct_file(work(tmp_path, ROWS, Rewriter(str.upper, fail_after=3)), QUIET)
    journal = tmp_path / "out.jsonl.journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    with pytest.raises(KeyboardInterrupt):
        correct_file(work(tmp_path, ROWS, again := Rewriter(str.upper, fail_after=1)), QUIET)
    correct_file(work(tmp_path, ROWS, last := Rewriter(str.upper)), QUIET)
    assert [request.question for request in again.asked + last.asked] == ["Q2", "Q1", "Q0"]


def test_other_work_is_not_gone_on_with(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        correct_file(work(tmp_path, ROWS, Rewriter(str.upper, fail_after=3), about={"model": "a"}), QUIET)
    with pytest.raises(UserError, match="begun with other input, model"):
        correct_file(work(tmp_path, ROWS[:4], Rewriter(str.upper), about={"model": "b"}), QUIET)


@pytest.mark.parametrize("line", ["[]", '{"kind": "answer"}', "no JSON"])
def test_a_damaged_journal_is_named_and_lets_go(line, tmp_path):
    journal = tmp_path / "out.jsonl.journal"
    journal.write_text(f"{{}}\n{line}\n")
    for _ in range(2):
        with pytest.raises(UserError, match="is damaged"):
            Journal(journal, {})
    assert list(tmp_path.iterdir()) == [journal]


def test_a_run_that_had_done_nothing_stands_in_nobodys_way(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        correct_file(work(tmp_path, ROWS, Rewriter(str.upper, fail_after=0), about={"model": "wrong"}), QUIET)
    assert correct_file(work(tmp_path, ROWS, Rewriter(str.upper), about={"model": "right"}), QUIET).corrected == 5


def test_two_runs_do_not_write_one_output(tmp_path):
    journal = Journal(tmp_path / "out.jsonl.journal", {})
    with pytest.raises(UserError, match="another run is writing it"):
        Journal(tmp_path / "out.jsonl.journal", {})
    journal.close()


def test_rows_that_fail_are_named_and_do_not_stop_the_rest(tmp_path):
    rows = [
        ROWS[0],
        {"question": "Q"},
        ["no object"],
        {"question": "Q", "answer": "refused"},
        ROWS[4],
        {"question": "Q", "answer": 7},
    ]
    report = correct_file(work(tmp_path, rows, Rewriter(str.upper)), QUIET)
    said = [str(fault).removeprefix(str(tmp_path / "in.jsonl")) for fault in report.faults]
    remedy = "Write it, or let --upstream_url ask a model; where it has another name: --columns answer=NAME"
    assert said[0] == f" row 2: the field 'answer' is missing. {remedy}"
    assert said[1] == " row 3: holds a list where an object should be. Write question and answer"
    assert said[2] == " row 4: it is refused. The other rows went on"
    assert said[3] == " row 6: 'answer' is a number and not text. Write text in quotation marks"
    made = lines(tmp_path / "out.jsonl")
    assert [row["corrected"] for row in made] == ["A0", None, None, None, "A4", None]
    assert "it is refused" in made[3]["error"]


def test_a_finished_output_is_not_written_over(tmp_path):
    (tmp_path / "out.jsonl").write_text("dear\n")
    with pytest.raises(UserError, match=r"out\.jsonl: is already there\. Name another output, or remove it"):
        correct_file(work(tmp_path, ROWS, untouched := Rewriter(str.upper)), QUIET)
    assert not untouched.asked and (tmp_path / "out.jsonl").read_text() == "dear\n"


def test_a_full_disk_is_named_and_what_was_done_is_kept(tmp_path, monkeypatch):
    """The journal's third line does not reach the disk; with room again nothing is computed twice."""
    written = []
    whole = LineLog.append

    def full(log, line):
        written.append(line)
        if len(written) == 4:
            log._stream = Path("/dev/full").open("w")  # noqa: SIM115
        whole(log, line)

    monkeypatch.setattr(LineLog, "append", full)
    with pytest.raises(OSError) as caught:
        correct_file(work(tmp_path, ROWS, first := Rewriter(str.upper)), QUIET)
    assert caught.value.filename == str(tmp_path / "out.jsonl.journal")
    monkeypatch.setattr(LineLog, "append", whole)
    correct_file(work(tmp_path, ROWS, second := Rewriter(str.upper)), QUIET)
    assert len(first.asked) == 3 and len(second.asked) == 3
    assert [row["corrected"] for row in lines(tmp_path / "out.jsonl")] == ["A0", "A1", "A2", "A3", "A4"]


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"question": "Q", "answer": "a", "score": NaN}\n')
    stack = [StackedAligner("upper", lambda: Rewriter(str.upper))]
    correct_file(CorrectionJob(str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), stack), QUIET)
    assert '"score": null' in (tmp_path / "out.jsonl").read_text()


def test_a_field_that_this_program_writes_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="row 2: has a field 'corrected', which this program writes"):
        correct_file(work(tmp_path, [ROWS[0], {**ROWS[1], "corrected": "x"}], untouched := Rewriter(str.upper)), QUIET)
    assert not untouched.asked


def test_what_utf8_cannot_write_is_carried_along_all_the_same(tmp_path):
    half = "\ud83d"
    rows = [{**ROWS[0], "id": half}, {**ROWS[1], "answer": f"a{half}"}]
    report = correct_file(work(tmp_path, rows, Rewriter(str.upper)), QUIET)
    first, second = lines(tmp_path / "out.jsonl")
    assert (first["id"], first["corrected"]) == (half, "A0")
    assert (second["answer"], second["corrected"]) == (f"a{half}", None)
    assert "half a surrogate pair" in str(report.faults[0])


def test_a_refused_row_is_not_asked_for_again(tmp_path):
    rows = [*ROWS, {"question": "Q", "answer": "refused"}]
    with pytest.raises(KeyboardInterrupt):
        correct_file(work(tmp_path, rows, Rewriter(str.upper, fail_after=2)), QUIET)
    report = correct_file(work(tmp_path, rows, again := Rewriter(str.upper)), QUIET)
    assert len(again.asked) == 4 and len(report.faults) == 1


def test_a_stack_corrects_what_the_one_before_it_made(tmp_path):
    chain = work(tmp_path, ROWS[:1], Rewriter(lambda text: text + "b"), Rewriter(lambda text: text + "c"))
    report = correct_file(chain, QUIET)
    [row] = lines(tmp_path / "out.jsonl")
    assert (row["corrected"], row["passes"]) == ("a0bc", ["a0b", "a0bc"])
    assert [drift.name for drift in report.drift] == ["pass 1, aligner-0", "pass 2, aligner-1"]


def test_passes_feed_corrections_back_and_report_the_drift(tmp_path):
    """'aaaa' loses a sign a pass until two are left, a fixed point: what was corrected once is not computed again."""
    shorten = Rewriter(lambda text: text[:-1] if len(text) > 2 else text)
    report = correct_file(work(tmp_path, [{"question": "Q", "answer": "aaaa"}], shorten, passes=5), QUIET)
    assert lines(tmp_path / "out.jsonl")[0]["passes"] == ["aaa", "aa", "aa", "aa", "aa"]
    assert [drift.unchanged for drift in report.drift] == [0, 0, 1, 1, 1]
    assert [drift.length for drift in report.drift] == [0.75, 0.5, 0.5, 0.5, 0.5]
    assert [request.answer for request in shorten.asked] == ["aaaa", "aaa", "aa"]


def test_with_sampling_every_pass_is_computed(tmp_path):
    same = Rewriter(lambda text: text)
    correct_file(work(tmp_path, ROWS[:1], same, passes=3, about={"sampling": {"seed": 1}}), QUIET)
    assert len(same.asked) == 3


def test_feedback_is_the_rows_own_or_the_one_for_all(tmp_path):
    rows = [ROWS[0], {**ROWS[1], "feedback": "shorter"}]
    correct_file(work(tmp_path, rows, seen := Rewriter(str.upper), feedback="in verse"), QUIET)
    assert [request.feedback for request in reversed(seen.asked)] == ["in verse", "shorter"]


def test_feedback_that_no_prompt_takes_is_counted_and_not_read(tmp_path):
    chain = work(tmp_path, [ROWS[0], {**ROWS[1], "feedback": "shorter"}], seen := Rewriter(str.upper))
    report = correct_file(replace(chain, stack=[replace(chain.stack[0], takes_feedback=False)]), QUIET)
    assert report.unread == 1 and {request.feedback for request in seen.asked} == {""}


def test_a_correction_is_kept_to_its_last_space(tmp_path):
    correct_file(work(tmp_path, [{"question": "q", "answer": "a"}], Rewriter(lambda text: f" {text}\n\n")), QUIET)
    assert lines(tmp_path / "out.jsonl")[0]["corrected"] == " a\n\n"


def test_fields_of_other_names_are_named_once_and_stay_as_they_are(tiny_model, tmp_path, capsys):
    """`correct`, then `evaluate`, on rows that nobody renamed."""
    rows = [{"prompt": f"what is {n}?", "response": f"it is {n}"} for n in range(2)]
    given, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    flags = f"--model {tiny_model} --prompt_template correction --max_new_tokens 4 --keep_unfinished".split()
    command = ["correct", *flags, "--input", given, "--output", str(out)]
    assert main(command) == 2
    assert "--columns question=NAME" in capsys.readouterr().err
    columns = ["--columns", "question=prompt,answer=response"]
    assert main([*command, *columns]) == 0
    assert [{name: row[name] for name in ("prompt", "response")} for row in lines(out)] == rows
    assert all("question" not in row and row["corrected"] for row in lines(out))
    assert main(["evaluate", "--after", str(out), "--output", str(tmp_path / "evaluation")]) == 2
    assert "the field 'question' is missing" in capsys.readouterr().err
    assert main(["evaluate", "--after", str(out), "--output", str(tmp_path / "evaluation"), *columns]) == 0
    assert "of 2 identical" in capsys.readouterr().out


def test_parquet_is_read_too_and_its_dates_become_text(tmp_path):
    from datasets import Dataset

    Dataset.from_list([{"question": "Q", "answer": "a", "at": datetime(2026, 1, 2)}]).to_parquet(
        tmp_path / "in.parquet"
    )
    stack = [StackedAligner("upper", lambda: Rewriter(str.upper))]
    correct_file(CorrectionJob(str(tmp_path / "in.parquet"), str(tmp_path / "out.jsonl"), stack), QUIET)
    assert lines(tmp_path / "out.jsonl")[0]["corrected"] == "A"
    assert lines(tmp_path / "out.jsonl")[0]["at"].startswith("2026-01-02")


def flags(model: Path, out: Path, *more: object) -> list[str]:
    return ["correct", "--model", str(model), "--prompt_template", "correction", "--input", str(TEMPLATE), "--output", str(out),
            "--max_new_tokens", "16", *map(str, more)]  # fmt: skip


def test_a_killed_command_goes_on_and_ends_as_if_never_killed(tiny_model, tmp_path, capfd, monkeypatch):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    some = ("--input", write(tmp_path / "rows.jsonl", read_rows(TEMPLATE)[:40]))
    assert main(flags(tiny_model, whole, *some)) == 0
    command = [sys.executable, "-m", "aligner", *flags(tiny_model, killed, "--batch_size", 1, *some)]
    journal = Path(f"{killed}.journal")
    kept = 0
    for _ in range(5):  # on a busy machine it may be through before one looks again
        process = subprocess.Popen(command, env=environment(1), stderr=subprocess.DEVNULL)
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
            time.sleep(0.001)
        process.kill()
        process.wait()
        if journal.exists() and (kept := journal.read_bytes().count(b"\n") - 1) < 40:
            break
        killed.unlink(missing_ok=True)
        journal.unlink(missing_ok=True)
    assert 0 < kept < 40 and not killed.exists()
    monkeypatch.setattr("aligner.console.has_terminal", lambda: True)  # a bar is for a terminal alone
    capfd.readouterr()
    assert main(flags(tiny_model, killed, "--batch_size", 1, *some)) == 0
    assert killed.read_bytes() == whole.read_bytes()
    assert f"/{40 - kept} " in capfd.readouterr().err, "the bar counts what is left"
    assert not list(tmp_path.glob("*.journal*"))


def test_ctrl_c_says_how_to_go_on(tiny_model, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        yield 0, Corrected("x", True, edits("a", "x"))
        raise KeyboardInterrupt

    monkeypatch.setattr("aligner.inference.corrector.Corrector.stream", interrupted)
    assert main(flags(tiny_model, tmp_path / "out.jsonl")) == 130
    said = capsys.readouterr().err.splitlines()[-2:]
    assert said == [
        f"finished rows are kept in {tmp_path / 'out.jsonl.journal'}: the same command continues",
        "stopped",
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--passes", 0], "--passes is 0: it must be at least 1."),
        (["--upstream_url", "http://localhost:1/v1"], "--upstream_url needs --upstream_model."),
        (["--aligner_model", "x"], "--aligner_model needs --aligner_url."),
        (["--output", "folder/"], "folder/: is a folder. Name a file."),
        (["--feedback", "empathy"], "--feedback: the prompt 'correction' has no slot for it."),
        (
            ["--upstream_url", "host:1/v1", "--upstream_model", "m"],
            "'host:1/v1' is no address of a server. Write it as http://",
        ),
        (
            ["--upstream_url", "http://me:hidden@host/v1", "--upstream_model", "m"],
            "the address of host holds a secret.",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(more, said, tiny_model, tmp_path, capsys):
    assert main(flags(tiny_model, tmp_path / "out.jsonl", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {said}")


def test_a_file_none_of_whose_rows_can_be_used_opens_no_model(tmp_path, capsys):
    path = write(tmp_path / "in.jsonl", [{"question": "Q"}])
    command = ["correct", "--model", str(tmp_path), "--prompt_template", "correction", "--input", path]
    assert main([*command, "--output", str(tmp_path / "o")]) == 2
    assert "row 1: the field 'answer' is missing" in capsys.readouterr().err
