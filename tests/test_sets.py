"""Losses by set: what was learned, what was forgotten, and a route beside the better of its Aligners."""

from __future__ import annotations

import pytest

from aligner.cli import main
from aligner.evaluation.pairs import Pair
from aligner.evaluation.sets import RowLoss, difference, markdown_lines, set_figures
from aligner.records import Origin
from aligner.routing.config import NONE
from aligner.routing.router import Choice

PAIRS = [Pair(Origin("f", n), f"Q{n}", "a", "c") for n in range(20)]


def per_token(*losses):
    """Rows of ten tokens each, with these losses in turn."""
    return {n: RowLoss(10 * losses[n % len(losses)], 10) for n in range(20)}


def test_a_loss_is_of_all_tokens_and_its_change_is_against_the_first():
    before, after = {0: RowLoss(10.0, 10), 1: RowLoss(90.0, 30)}, {0: RowLoss(20.0, 10), 1: RowLoss(120.0, 30)}
    rows = set_figures(PAIRS[:2], {"before": before, "after": after}, {}, ())["systems"]
    assert [row["loss"] for row in rows] == [2.5, 3.5] and rows[0]["change"] is None
    assert rows[1]["change"]["value"] == 1.0


def test_the_interval_is_of_the_difference_row_by_row():
    """Rows that differ much from each other and always by a half between two Aligners leave no doubt about the half."""
    change = difference(per_token(1.5, 5.5), per_token(1.0, 5.0), range(20), [pair.question for pair in PAIRS])
    assert (change.value, change.low, change.high) == pytest.approx((0.5, 0.5, 0.5))


def test_rows_of_one_question_are_drawn_together():
    one, other = per_token(1.0, 3.0), per_token(2.0)
    apart = difference(one, other, range(20), [f"Q{n}" for n in range(20)])
    together = difference(one, other, range(20), [f"Q{n % 2}" for n in range(20)])
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_a_row_that_one_has_no_room_for_is_left_out_for_all():
    short = {n: loss for n, loss in per_token(9.0).items() if n > 3}
    figures = set_figures(PAIRS, {"long": per_token(1.0), "short": short}, {}, ())
    assert (figures["rows"], figures["left_out"]) == (16, 4)
    assert "16 rows of 16 questions, 4 left out: too long" in markdown_lines("s", figures)[0]


def test_a_routed_row_has_the_loss_of_its_aligner_and_one_left_alone_has_none():
    members = {"a": per_token(1.0, 4.0), "b": per_token(2.0, 3.0)}
    choices = [Choice(("a", "b", NONE, "b")[n % 4], "rule 1") for n in range(20)]  # rows 2, 6, ... are left alone
    figures = set_figures(PAIRS, {}, members, choices)
    routed = figures["routed"]
    assert routed["given"] == {"a": 5, "b": 10, NONE: 5}
    assert routed["loss"] == pytest.approx((5 * 1.0 + 10 * 3.0) / 15)
    assert routed["alone"] == pytest.approx({"a": (5 * 1.0 + 10 * 4.0) / 15, "b": (5 * 2.0 + 10 * 3.0) / 15})
    assert routed["better"] == "b" and routed["change"]["value"] == pytest.approx(-1 / 3)
    assert "| routed (5 a, 10 b, 5 none) | 2.333 | -0.333" in markdown_lines("s", figures)[-2]


def test_where_all_is_left_alone_there_is_no_loss():
    figures = set_figures(PAIRS, {"x": per_token(1.0)}, {"a": per_token(1.0)}, [Choice(NONE, "rule 1")] * 20)
    assert "loss" not in figures["routed"] and "all left alone" in markdown_lines("s", figures)[-2]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sets", "a.json", "--models", "m"], "--sets a.json: write NAME=FILE"),
        (["--sets", "a=x", "a=y", "--models", "m"], "--sets has two called 'a'"),
        (["--sets", "a=x"], "--sets needs --models, the first being the one before, or --route"),
        (["--sets", "a=x", "--models", "m", "--limit", "0"], "--limit"),
        (["--systems", "a=x", "b=y", "--route", "r.yaml"], "--systems does not go with"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(flags, said, tmp_path, capsys):
    assert main(["evaluate", *flags, "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
