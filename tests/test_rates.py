"""The statistics, against cases worked by hand and computations of another kind."""

from __future__ import annotations

import math
import random

import pytest

from aligner.evaluation.figures import verdict_figures
from aligner.evaluation.judging import Verdict
from aligner.evaluation.pairs import Pair
from aligner.evaluation.rates import agreement, elo, length_controlled, order_bias, rate
from aligner.records import Origin


def test_the_papers_rate():
    """GPT-4 with Aligner-7B on BeaverTails: good 284, same 259, bad 154 (paper, table 7 of its first version): 18.65 %."""
    found = rate([1] * 284 + [0] * 259 + [-1] * 154)
    assert (found.wins, found.ties, found.losses, found.judged) == (284, 259, 154, 697)
    assert round(100 * found.rate, 2) == 18.65


def test_the_interval_is_that_of_resampled_questions():
    """Against drawing questions one by one, and the normal approximation: 0.1865 +- 1.96 sqrt((438/697 - 0.1865^2) / 697)."""
    outcomes = [1] * 284 + [0] * 259 + [-1] * 154
    found = rate(outcomes)
    half = 1.96 * math.sqrt((438 / 697 - 0.1865**2) / 697)
    assert found.low == pytest.approx(0.1865 - half, abs=0.004) and found.high == pytest.approx(
        0.1865 + half, abs=0.004
    )
    draw = random.Random(1)
    means = sorted(sum(draw.choices(outcomes, k=697)) / 697 for _ in range(2000))
    assert found.low == pytest.approx(means[50], abs=0.006) and found.high == pytest.approx(means[1950], abs=0.006)


def test_answers_to_one_question_are_drawn_together():
    """Eight upstreams that answer 50 questions alike are 50 questions, not 400: the interval is that of one upstream."""
    outcomes, questions = [1] * 25 + [-1] * 15 + [0] * 10, [f"q{n}" for n in range(50)]
    alone, together = rate(outcomes), rate(outcomes * 8, questions * 8)
    assert (together.rate, together.judged) == (alone.rate, 400)
    assert (together.low, together.high) == (alone.low, alone.high)
    assert rate(outcomes * 8).low > alone.low + 0.1, "as if they were 400"


def test_a_report_draws_questions_and_not_the_answers_of_several_upstreams():
    outcomes = [1] * 12 + [-1] * 5 + [0] * 3

    def of(*upstreams: str) -> dict[str, float]:
        pairs = [Pair(Origin("f", n), f"q{n}", "a", "b", name) for name in upstreams for n in range(20)]
        found = verdict_figures([Verdict(p, "helpful", outcomes[p.origin.row], ("", ""), (0, 0)) for p in pairs])[
            "helpful"
        ]
        return {name: found[name] for name in ("rate", "low", "high")}

    assert of("one") == of("one", "other", "third")


def test_three_wins_of_three_are_no_certainty():
    """0.025^(1/3) = 0.292: with a share of wins as low as that, three in a row would still be seen in 1 of 40 tries."""
    found = rate([1, 1, 1])
    assert (found.rate, found.high) == (1, 1) and found.low == pytest.approx(2 * 0.292 - 1, abs=1e-3)
    twice = rate([1, 1, 1], ["q", "q", "another"])
    assert twice.low == pytest.approx(2 * 0.025**0.5 - 1), "two questions, whatever was said to each how often"
    tied = rate([0] * 3)
    assert (tied.low, tied.high) == (pytest.approx(-0.708, abs=1e-3), pytest.approx(0.708, abs=1e-3))


def test_nothing_judged_has_no_rate():
    assert rate([]) is None and length_controlled([1] * 9, [1] * 9, [2] * 9) is None


def test_a_rate_that_is_all_length_is_controlled_away():
    """Longer corrections win and shorter ones lose, as often: at equal length nothing is left. Without a difference of lengths
    the rate is the plain one, but for the two tied pairs: 30 wins of 40, (30 - 10) / (40 + 2)."""
    assert length_controlled([1, -1] * 20, [100] * 40, [150, 50] * 20) == pytest.approx(0, abs=1e-6)
    assert length_controlled([1] * 30 + [-1] * 10, [9] * 40, [9] * 40) == pytest.approx(20 / 42, abs=1e-6)


def test_what_corrections_of_equal_length_would_win_is_not_known_where_all_are_longer():
    outcomes, before = [1] * 80 + [-1] * 20, [1000] * 100
    assert length_controlled(outcomes, before, [1200 + n for n in range(100)]) is None
    assert length_controlled(outcomes, before, [*[1200 + n for n in range(97)], 900, 1000, 800]) is not None


def test_a_rate_that_is_no_length_stays():
    """Wins and losses of the same lengths: 60 of 80 won, whatever the length."""
    outcomes, after = [1, 1, 1, -1] * 20, [50] * 40 + [150] * 40
    assert length_controlled(outcomes, [100] * 80, after) == pytest.approx(0.5, abs=0.02)


def test_order_bias_by_hand():
    assert order_bias(30, 10) == 0.5 and order_bias(7, 7) == 0 and order_bias(0, 0) is None


def test_agreement_by_hand():
    """Eight of ten equal; chance: 0.6 x 0.6 + 0.4 x 0.4 = 0.52, kappa (0.8 - 0.52) / 0.48."""
    found = agreement([1, 1, 1, 1, 1, 1, -1, -1, -1, -1], [1, 1, 1, 1, 1, -1, 1, -1, -1, -1])
    assert (found.rows, found.share) == (10, 0.8)
    assert found.kappa == pytest.approx(0.28 / 0.48)
    assert agreement([1, 1], [1, 1]).kappa is None, "outcomes of one kind say nothing about agreement beyond chance"


def test_elo_of_two_systems_is_the_papers_formula():
    """Rate d = 0.2 over 100 pairs with ties: 50 wins, 30 losses, 20 ties are 60 points to 40."""
    found = elo({("aligned", "base"): (60, 40)}, "base")
    assert found == {"aligned": pytest.approx(1500 + 400 * math.log10(1.2 / 0.8), abs=1e-6), "base": 1500}


def test_elo_of_three_systems_satisfies_its_own_equations():
    """At the maximum every system's expected points are the ones it made."""
    results = {("a", "b"): (70, 30), ("b", "c"): (60, 40), ("a", "c"): (80, 20)}
    found = elo(results, "c")
    for name in "abc":
        made = sum(p[pair.index(name)] for pair, p in results.items() if name in pair)
        expected = sum(
            sum(p) / (1 + 10 ** ((found[pair[1 - pair.index(name)]] - found[name]) / 400))
            for pair, p in results.items()
            if name in pair
        )
        assert made == pytest.approx(expected, abs=1e-6)
    assert found["a"] > found["b"] > found["c"] == 1500


def test_elo_stays_finite_where_one_system_won_everything():
    assert elo({("a", "b"): (10, 0)}, "b")["a"] == pytest.approx(1500 + 400 * math.log10(10.5 / 0.5))
