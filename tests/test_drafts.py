"""Drafts: where in the answer a correction stands, and how many tokens are worth verifying."""

from __future__ import annotations

import numpy as np
import pytest

from aligner.inference.drafts import (
    ANSWER,
    LONGEST,
    TEXT,
    WHOLE,
    AcceptanceStats,
    Drafter,
    Guess,
    TokenIndex,
    draft_length,
)
from aligner.inference.greedy import Cost, accepted

EOS = 0
ANSWER_IDS = [11, 12, 13, 14, 15, 16, 17, 18, EOS]


def after(made: list[int], prompt: tuple[int, ...] = (1, 2)) -> dict[int, Guess]:
    drafter = Drafter(prompt, ANSWER_IDS)
    for token in made:
        drafter.guesses()
        drafter.extend([token])
    return {guess.source: guess for guess in drafter.guesses()}


def test_an_untouched_answer_is_drafted_to_its_end_with_end_of_text():
    assert after([])[WHOLE] == Guess(WHOLE, 0, ANSWER_IDS)
    assert after([11, 12])[WHOLE] == Guess(WHOLE, 2, [13, 14, 15, 16, 17, 18, EOS])


@pytest.mark.parametrize(
    ("what", "made", "goes_on_with"),
    [
        ("insertion", [11, 12, 91, 92, 13], [14, 15, 16, 17, 18, EOS]),
        ("deletion", [11, 12, 16], [17, 18, EOS]),
        ("replacement", [11, 12, 91, 14], [15, 16, 17, 18, EOS]),
        ("a new beginning", [91, 92, 93, 11], [12, 13, 14, 15, 16, 17, 18, EOS]),
        ("going back", [11, 12, 13, 14, 15, 11], [12, 13, 14, 15, 16, 17, 18, EOS]),
    ],
)
def test_the_place_in_the_answer_is_found_again(what, made, goes_on_with):
    assert after(made)[ANSWER] == Guess(ANSWER, 1, goes_on_with)


def test_behind_a_replacement_of_equal_length_it_is_no_longer_a_whole_copy():
    assert after([11, 91, 13, 14]) == {ANSWER: Guess(ANSWER, 2, [15, 16, 17, 18, EOS])}


def test_where_nothing_is_found_nothing_is_guessed():
    assert after([11, 99]) == {}


def test_the_prompt_and_what_was_made_are_the_second_source():
    assert after([70, 5, 6], prompt=(5, 6, 7, 8, 9))[TEXT] == Guess(TEXT, 2, [7, 8, 9, 70, 5, 6])
    assert after([70, 71, 72, 70])[TEXT] == Guess(TEXT, 1, [71, 72, 70])


def test_the_longest_run_wins_and_of_equal_ones_the_nearest():
    source = TokenIndex([1, 2, 3, 9, 1, 2, 4, 9, 5, 2, 6])
    assert source.find([1, 2], near=11) == (2, 6), "the later of the two runs of two tokens"
    assert source.find([1, 2], near=0) == (2, 2)
    assert source.find([5, 2], near=0) == (2, 10), "two tokens beat the nearer one"
    assert source.find([6], near=11) == (0, -1), "nothing follows the last token"


def flat(tokens):
    return np.ones_like(tokens, dtype=float)


def steep(tokens):
    return np.asarray(tokens, dtype=float)


def test_free_verification_drafts_everything_and_what_costs_as_much_as_it_brings_nothing():
    likely = [np.cumprod(np.full(40, 0.9))]
    assert draft_length(likely, 1, flat) == 40
    assert draft_length(likely, 1, steep) == 0


def test_a_draft_is_the_longer_the_likelier_it_is_right():
    """On an fp32 CPU: two tokens cost 1.6 times one, eight 1.9, sixteen 2.6."""
    cost = Cost((1, 2, 8, 16, 32, 64), (1, 1.61, 1.91, 2.63, 4.2, 7.6))
    lengths = [draft_length([np.cumprod(np.full(64, p))], 1, cost) for p in (0.2, 0.5, 0.8, 0.95, 0.99)]
    assert lengths == sorted(lengths) and lengths[0] == 0 and lengths[-1] > 20, lengths


def test_behind_a_prompt_a_draft_pays_for_its_tokens_alone():
    """A pass over 400 tokens costs as much per token as it costs more: a likely draft is read with the prompt."""
    cost = Cost((1, 8, 128), (1, 1, 4))
    assert draft_length([np.cumprod(np.full(64, 0.95))], 400, cost) > 10
    assert draft_length([np.cumprod(np.full(64, 0.02))], 400, cost) == 0


def test_rows_that_have_no_guess_cost_nothing():
    assert draft_length([np.ones(0), np.ones(0)], 1, flat) == 0


def test_a_habit_follows_what_is_seen():
    habits, guess = AcceptanceStats(), Guess(ANSWER, 1, [5, 6])
    before = habits.survival(guess)[0]
    for _ in range(200):
        habits.learn(guess, [5, 9])
    assert habits.survival(guess)[0] > max(before, 0.9), "the first token was right each time"
    assert habits.survival(guess)[1] < 0.1, "the second never"


def test_runs_and_drafts_of_any_length_have_a_habit():
    habits = AcceptanceStats()
    survival = habits.survival(Guess(WHOLE, 32, list(range(LONGEST))))
    assert len(survival) == LONGEST and (np.diff(survival) <= 0).all()


@pytest.mark.parametrize(
    ("draft", "said", "made"),
    [
        ([5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8]),  # all right, and one more
        ([5, 6, 7], [5, 9, 3, 4], [5, 9]),  # the model's own at the first difference; what it says behind that is void
        ([5, 6, 7], [9, 6, 7, 8], [9]),
        ([], [9], [9]),
        ([5, EOS], [5, EOS, 4], [5, EOS]),  # nothing behind end-of-text
        ([5, 6], [5, EOS, 4], [5, EOS]),
    ],
)
def test_a_row_keeps_the_models_tokens_and_no_others(draft, said, made):
    assert accepted(draft, said, EOS) == made
