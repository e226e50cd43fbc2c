"""The figures of 1,316 published corrections, against countings of another kind."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence

import pytest
from conftest import SHARED
from test_correct_file import write

from aligner import cli
from aligner.quality.edits import words

ALPACA = SHARED / "qac_aligner2b_alpacaeval.json"
pytestmark = pytest.mark.skipif(not ALPACA.exists(), reason="needs shared/data")


def test_the_figures_of_published_corrections_are_an_independent_countings(tmp_path):
    """1,316 corrections of Aligner-2B: 33 and 85 of 658 identical, characters 1,766 to 1,353 and 1,529 to 1,792, as the data's
    README says."""
    assert cli.main(["evaluate", "--after", str(ALPACA), "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "report.json").read_text())["copying"]
    rows = json.loads(ALPACA.read_text())
    for upstream, identical, before, after in (
        ("gpt-4-turbo-2024-04-09", 33, 1766, 1353),
        ("Qwen1.5-72B-Chat", 85, 1529, 1792),
    ):
        mine = [row for row in rows if row["upstream"] == upstream]
        group = found[upstream]
        assert group["identical"] == identical == sum(row["answer"] == row["correction"] for row in mine)
        assert round(group["characters_before"]) == before == round(sum(len(row["answer"]) for row in mine) / 658)
        assert round(group["characters_after"]) == after == round(sum(len(row["correction"]) for row in mine) / 658)
        assert group["copied"] == pytest.approx(sum(kept(row) for row in mine[:60]) / 60, abs=0.12), (
            "sixty of them, by difflib"
        )


def test_copied_share_and_similarity_are_those_of_a_plain_longest_common_subsequence(tmp_path):
    """Of the twenty shortest published corrections. Several longest ones may weigh differently: the copied share is between the
    lightest and the heaviest."""
    rows = sorted(json.loads(ALPACA.read_text()), key=lambda row: len(row["answer"] + row["correction"]))[:20]
    assert cli.main(["evaluate", "--after", write(tmp_path / "a.jsonl", rows), "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())["copying"]["all"]
    similarity, light, heavy = [], [], []
    for row in rows:
        a, c = row["answer"], row["correction"]
        similarity.append(2 * common(a, c, 0)[0] / (len(a) + len(c)))
        light.append(-common(words(a), words(c), -1)[1] / len(c))
        heavy.append(common(words(a), words(c), 1)[1] / len(c))
    assert found["similarity"] == pytest.approx(sum(similarity) / 20, abs=1e-9)
    assert sum(light) / 20 - 1e-9 <= found["copied"] <= sum(heavy) / 20 + 1e-9
    assert sum(heavy) - sum(light) < 0.4, "the two are close, so this says something"


def common(a: Sequence[str], b: Sequence[str], sign: int) -> tuple[int, int]:
    """The length of a longest common subsequence, and sign x its characters, as large as can be."""
    best = [(0, 0)] * (len(b) + 1)
    for x in a:
        row = [(0, 0)]
        for j, y in enumerate(b):
            met = (best[j][0] + 1, best[j][1] + sign * len(x)) if x == y else (0, 0)
            row.append(max(met, best[j + 1], row[j]))
        best = row
    return best[-1]


def kept(row: dict[str, str]) -> float:
    answer, correction = row["answer"], row["correction"]
    matcher = difflib.SequenceMatcher(None, words(answer), words(correction), autojunk=False)
    after = words(correction)
    blocks = matcher.get_matching_blocks()
    return sum(len(word) for b in blocks for word in after[b.b : b.b + b.size]) / len(correction)
