"""`aligner evaluate`: from files to a report, with judges that behave and judges that do not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_correct_file import lines, write
from test_servers import Told

from aligner import cli

ROWS = [{"question": f"q{n}", "answer": f"bad {n}", "corrected": f"good {n}"} for n in range(12)]


def responses(prompt: str) -> tuple[str, str]:
    found = re.search(r"\[Response A\]\n(.*?)\n\n\[End.*\[Response B\]\n(.*?)\n\n\[End", prompt, re.DOTALL)
    assert found
    return found[1], found[2]


def fair(prompt: str) -> str:
    """Prefers what is good, and names the worse where that is asked."""
    a, b = responses(prompt)
    better = "A" if "good" in a and "good" not in b else "B" if "good" in b and "good" not in a else "Equal"
    worse = {"A": "B", "B": "A"}.get(better, "Equal")
    return f"I think so.\n[[{worse if 'MORE harmful' in prompt else better}]]"


def evaluate(told: Told, folder: Path, rows: list[Any], *more: object) -> tuple[int, dict[str, Any]]:
    after = write(folder / "after.jsonl", rows)
    status = cli.main(["evaluate", "--after", after, "--output", str(folder / "out"), "--judge", "served", "--judge_url", told.url,
                       "--judge_model", "m", *map(str, more)])  # fmt: skip
    assert status < 2
    return status, json.loads((folder / "out" / "report.json").read_text())["verdicts"]


def test_a_fair_judge_finds_the_corrections_better_in_both_directions(told, tmp_path, capsys):
    told.rule = fair
    status, found = evaluate(told, tmp_path, [*ROWS, {"question": "same", "answer": "x", "corrected": "x"}])
    assert status == 0 and len(told.asked) == 12 * 2 * 2, "two orders, two dimensions; what is the same is not asked"
    for name in ("helpful", "harmless"):
        assert (found[name]["wins"], found[name]["ties"], found[name]["losses"]) == (12, 1, 0)
        assert found[name]["rate"] == pytest.approx(12 / 13) and found[name]["changed"]["rate"] == 1
        assert found[name]["order_bias"] == 0
    said = capsys.readouterr().out
    assert "48 replies to request" in said and "+92.3 %" in said
    assert len(lines(tmp_path / "out" / "verdicts.jsonl")) == 26


def test_nothing_is_asked_twice(told, tmp_path, capsys):
    told.rule = fair
    evaluate(told, tmp_path, ROWS[:6])
    evaluate(told, tmp_path, ROWS)
    assert len(told.asked) == 48, "six were known"
    evaluate(told, tmp_path, ROWS)
    assert len(told.asked) == 48 and "every reply is known" in capsys.readouterr().out
    file = tmp_path / "out" / "replies.jsonl"
    kept = file.read_text().splitlines()
    file.write_text("\n".join([kept[0], kept[1].replace('"reply": "', '"reply": 7, "x": "'), *kept[2:], ""]))
    with pytest.raises(AssertionError):
        evaluate(told, tmp_path, ROWS)
    assert "replies.jsonl line 2: is damaged" in capsys.readouterr().err


def test_a_judge_that_always_takes_the_first_makes_ties_and_shows_its_bias(told, tmp_path, capsys):
    told.rule = lambda prompt: "[[A]]"
    _, found = evaluate(told, tmp_path, ROWS, "--dimensions", "helpful")
    assert (found["helpful"]["ties"], found["helpful"]["order_bias"], found["helpful"]["changed_minds"]) == (12, 1, 1)
    assert "mind changed with the order in 100.0%" in capsys.readouterr().out


def test_garbage_is_unreadable_and_never_a_tie(told, tmp_path):
    told.rule = lambda prompt: "As a language model ..." if "q3" in prompt else fair(prompt)
    status, found = evaluate(told, tmp_path, ROWS, "--dimensions", "helpful")
    assert (found["helpful"]["unreadable"], found["helpful"]["wins"], found["helpful"]["ties"], status) == (1, 11, 0, 0)


def test_a_judge_of_which_nothing_can_be_read_is_said_and_no_success(told, tmp_path, capsys):
    told.rule = lambda prompt: "As a language model ..."
    status, _ = evaluate(told, tmp_path, ROWS, "--dimensions", "helpful")
    assert status == 1 and "no verdict could be read of helpful" in capsys.readouterr().out


def test_labelled_pairs_that_were_not_read_are_counted_beside_the_agreement(told, tmp_path, capsys):
    told.rule = lambda prompt: "Hm." if "q3" in prompt or "q4" in prompt else fair(prompt)
    rows = [*ROWS, {"question": "same", "answer": "x", "corrected": "x"}]  # which the judge is not asked about
    labels = write(tmp_path / "l.jsonl", [{**row, "label": "after"} for row in rows])
    _, found = evaluate(told, tmp_path, rows, "--dimensions", "helpful", "--labels", labels)
    agreement = found["helpful"]["agreement"]
    assert (agreement["labelled"], agreement["rows"], agreement["share"]) == (12, 10, 1)
    assert (
        "in 100.0% of 10 pairs" in (said := capsys.readouterr().out) and "(2 more were labelled, and not read)" in said
    )
    told.rule = lambda prompt: "Hm."
    _, found = evaluate(told, tmp_path, ROWS, "--dimensions", "honest", "--labels", labels)
    assert "of 12 labelled pairs none was judged and read" in capsys.readouterr().out


def test_how_long_it_takes_is_said_after_the_first_replies(told, tmp_path, capsys):
    told.rule = fair
    evaluate(told, tmp_path, ROWS, "--dimensions", "helpful")
    assert "for the other" not in capsys.readouterr().out, "24 replies are soon there"
    evaluate(told, tmp_path, ROWS, "--dimensions", "harmless,honest")
    assert re.search(r"about \d s for the other 32, by the first 16", capsys.readouterr().out)


def test_replies_that_do_not_come_are_unanswered_and_asked_again_next_time(told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("aligner.inference.servers.RETRIES", 0)
    told.rule = fair
    rows = [*ROWS[:3], {"question": "this breaks it", "answer": "bad", "corrected": "good"}]
    status, found = evaluate(told, tmp_path, rows, "--dimensions", "helpful")
    assert (status, found["helpful"]["unanswered"], found["helpful"]["wins"]) == (1, 1, 3)
    assert "1 unanswered, the first: " in capsys.readouterr().out
    assert "fails on it" in lines(tmp_path / "out" / "verdicts.jsonl")[3]["error"]
    asked = len(told.asked)
    evaluate(told, tmp_path, rows, "--dimensions", "helpful")
    assert len(told.asked) == asked + 2


def test_a_judge_that_hangs_on_a_pair_leaves_it_unanswered(told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("aligner.inference.servers.RETRIES", 0)
    told.rule, told.delay = fair, 5
    rows = [*ROWS[:3], {"question": "slow", "answer": "bad", "corrected": "good"}]
    status, found = evaluate(told, tmp_path, rows, "--dimensions", "helpful", "--timeout", 1)
    assert (status, found["helpful"]["unanswered"], found["helpful"]["wins"]) == (1, 1, 3)
    assert "does not answer it within 1 seconds" in capsys.readouterr().out
    assert "does not answer it within 1 seconds" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("odd", ["usage", "choices", "html", "forbidden", "empty"])
def test_one_odd_reply_is_that_pairs_alone(odd, told, tmp_path, capsys):
    told.rule, told.odd = fair, odd
    rows = [*ROWS, {"question": "an odd one", "answer": "bad", "corrected": "good"}]
    status, found = evaluate(told, tmp_path, rows, "--dimensions", "helpful")
    helpful = found["helpful"]
    assert (helpful["wins"], helpful["unanswered"]) == ((13, 0) if odd == "usage" else (12, 1))
    assert status == (0 if odd == "usage" else 1)
    told.odd = ""
    status, found = evaluate(told, tmp_path, rows, "--dimensions", "helpful")
    assert (status, found["helpful"]["wins"]) == (0, 13), "what was odd was not kept"


def test_a_reply_that_was_cut_off_has_no_verdict(told, tmp_path):
    told.rule, told.odd = fair, "cut"
    rows = [*ROWS, {"question": "an odd one", "answer": "bad", "corrected": "good"}]
    status, found = evaluate(told, tmp_path, rows, "--dimensions", "helpful")
    assert (found["helpful"]["wins"], found["helpful"]["unreadable"], status) == (12, 1, 0)


def test_rows_behind_the_limit_are_not_counted_as_left_out(told, tmp_path):
    told.rule = fair
    status, found = evaluate(told, tmp_path, [*ROWS[:2], {"question": "no answer"}, *ROWS[2:]], "--limit", 2)
    assert (status, found["helpful"]["pairs"]) == (0, 2)


def test_a_row_that_calls_itself_what_cannot_be_printed_is_still_reported(told, tmp_path):
    told.rule = fair
    rows = [{**row, "upstream": "gpt", "category": "\ud83d" if n else "x"} for n, row in enumerate(ROWS)]
    _, found = evaluate(told, tmp_path, rows, "--dimensions", "helpful")
    assert list(found["helpful"]["by_category"]) == ["x", "?"]


def test_one_sign_in_thousands_is_a_change(tmp_path):
    after = write(tmp_path / "a.jsonl", [{"question": "q", "answer": "word " * 700, "corrected": "word " * 700 + "!"}])
    assert cli.main(["evaluate", "--after", after, "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    [row] = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])["rows"]
    assert row["similarity"] == 1 and not row["same"], "rounded it is the same; it is not counted so"


def test_a_judge_may_say_identical(told, tmp_path):
    """What was asked is known by the texts, not by what the reply says."""
    told.rule = lambda prompt: "identical"
    status, found = evaluate(told, tmp_path, ROWS, "--dimensions", "helpful")
    assert (found["helpful"]["changed"]["pairs"], status) == (12, 1)


def test_a_mind_that_changes_to_equal_is_a_changed_mind(told, tmp_path):
    told.rule = lambda prompt: "[[A]]" if responses(prompt)[0].startswith("good") else "[[Equal]]"
    _, found = evaluate(told, tmp_path, ROWS, "--dimensions", "helpful")
    assert (found["helpful"]["changed_minds"], found["helpful"]["ties"]) == (1, 12)


def test_an_upstream_called_all_is_not_taken_for_all(tmp_path):
    rows = [{**row, "upstream": "all" if n else "other"} for n, row in enumerate(ROWS)]
    cli.main(["evaluate", "--after", write(tmp_path / "a.jsonl", rows), "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "report.json").read_text())["copying"]
    assert {name: each["pairs"] for name, each in found.items()} == {"all": 12, "other": 1, "'all'": 11}


def test_what_it_costs_at_most_is_said_before(told, tmp_path, capsys):
    """24 replies of at most 100 tokens at 1,000,000 a million are 2,400; what goes in is free here."""
    told.rule = fair
    evaluate(told, tmp_path, ROWS, "--dimensions", "helpful", "--price", 0, 1_000_000, "--max_tokens", 100)
    assert "at most about 2,400.00" in capsys.readouterr().out


def test_a_busy_judge_is_waited_for(told, tmp_path):
    told.rule, told.failures = fair, [(429, {"Retry-After": "1"})] * 3
    status, found = evaluate(told, tmp_path, ROWS[:4], "--dimensions", "helpful")
    assert status == 0 and found["helpful"]["wins"] == 4


def test_an_objective_is_judged_by_its_sentence_in_both_orders(told, tmp_path):
    """Of twelve corrections four are longer than the answer: a judge of concision prefers the others."""
    told.rule = lambda prompt: "[[A]]" if len(responses(prompt)[0]) < len(responses(prompt)[1]) else "[[B]]"
    rows = [{**row, "answer": "a b c", "corrected": "a b c d" if n < 4 else "a"} for n, row in enumerate(ROWS)]
    _, found = evaluate(told, tmp_path, rows, "--dimensions", "concise")
    assert (found["concise"]["wins"], found["concise"]["losses"], len(told.asked)) == (8, 4, 24)
    assert all("Concise: say it in as few words as it takes" in asked for asked in map(str, told.asked))


def test_a_judge_that_points_the_wrong_way_disagrees_with_people(told, tmp_path, capsys):
    """It names the better one as more harmful: the labels show it."""
    told.rule = lambda prompt: fair(prompt.replace("MORE harmful", "better"))
    labels = [{**row, "label": "after" if n % 3 else "before"} for n, row in enumerate(ROWS)]
    _, found = evaluate(
        told, tmp_path, ROWS, "--dimensions", "harmless", "--labels", write(tmp_path / "l.jsonl", labels)
    )
    assert found["harmless"]["agreement"]["share"] == pytest.approx(4 / 12) and found["harmless"]["losses"] == 12
    assert "agrees with people in 33.3%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--dimensions", "nice"],
            "--dimensions: there is no dimension 'nice'. There are helpful, harmless, honest, empathy, and the objectives of",
        ),
        (["--judge", "served"], "--judge served needs --judge_url"),
        (["--judge", "human"], "--judge human needs --labels"),
        (["--labels", "l.jsonl"], "--labels needs --judge"),
        (["--concurrency", "0"], "--concurrency is 0"),
        (["--price", "nan", "1"], "--price takes two numbers"),
        (["--dimensions", ","], "--dimensions names 0"),
        (
            ["--judge", "reward", "--judge_model", "m", "--dimensions", "helpful,honest"],
            "name one that the score stands for",
        ),
        (["--judge", "reward", "--judge_model", "/no/where"], "/no/where: there is no such folder"),
        (["--run_folder", "/no/where"], "has no train_log.jsonl"),
    ],
)
def test_what_is_missing_is_said(flags, said, tmp_path, capsys):
    after = write(tmp_path / "a.jsonl", ROWS)
    assert cli.main(["evaluate", "--after", after, "--output", str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err
