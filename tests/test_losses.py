"""Loss by kind of token: what is copied, what is edited, and the end."""

from __future__ import annotations

import pytest
import torch
from conftest import save_llama

from aligner.encoder import Encoder
from aligner.evaluation.losses import COPIED, EDITED, END, kinds_of, losses, means
from aligner.evaluation.pairs import Pair
from aligner.models import load_model, load_tokenizer
from aligner.prompts import CORRECTION
from aligner.records import Origin

SAID = [("Is it far?", "It is very far.", "It is not far.", "one"), ("Who?", "Me.", "Me.", "two"),
        ("Why not?", "No.", "Because it would take a long time, and nobody asked for it.", "one")]  # fmt: skip
PAIRS = [Pair(Origin("f", n), *texts) for n, texts in enumerate(SAID, 1)]


def test_kinds_by_hand():
    """Ids 1 2 3 4 become 1 9 3 4 8; 0 is end-of-text."""
    assert kinds_of([1, 2, 3, 4, 0], [1, 9, 3, 4, 8, 0]) == [COPIED, EDITED, COPIED, COPIED, EDITED, END]
    assert kinds_of([1, 2, 0], [1, 2, 0]) == [COPIED, COPIED, END], "an identity row is copied to its end"
    assert kinds_of([5, 0], [0]) == [END], "nothing left of the answer"


@pytest.fixture(scope="module")
def parts(tiny_model):
    return load_model(str(tiny_model), torch.float32).eval(), Encoder(load_tokenizer(str(tiny_model)))


def test_the_losses_are_those_of_transformers(parts):
    """Their weighted mean over kinds is the mean that transformers gives for the same labels, row by row."""
    model, encoder = parts
    found = losses(model, encoder, CORRECTION, PAIRS)
    for place, pair in enumerate(PAIRS):
        [(prompt, target, _)] = encoder.pairs([CORRECTION.render(pair.question, pair.before)], [pair.after])
        labels = torch.tensor([[-100] * len(prompt) + target])
        expected = model(input_ids=torch.tensor([prompt + target]), labels=labels).loss.item()
        shares = found[place].values()
        assert sum(share.tokens for share in shares) == len(target)
        assert sum(share.nll for share in shares) / len(target) == pytest.approx(expected, rel=1e-5)
    assert found[1][EDITED].tokens == 0 and found[1][END].tokens == 1


def test_means_are_by_upstream_and_over_tokens(parts):
    found = losses(*parts, CORRECTION, PAIRS)
    made = means(found, PAIRS)
    assert list(made) == ["all", "one", "two"]
    one = [found[0][EDITED], found[2][EDITED]]
    assert made["one"][EDITED]["loss"] == pytest.approx(sum(s.nll for s in one) / sum(s.tokens for s in one))
    assert made["two"][EDITED] == {"tokens": 0, "loss": None}
    assert sum(made["all"][kind]["tokens"] for kind in (COPIED, EDITED)) == sum(
        made[name][kind]["tokens"] for name in ("one", "two") for kind in (COPIED, EDITED)
    )


def test_a_pair_that_is_too_long_for_the_model_is_left_out(bpe_folder, tmp_path):
    folder = str(save_llama(bpe_folder, tmp_path))
    model, encoder = load_model(folder, torch.float32).eval(), Encoder(load_tokenizer(folder))
    model.config.max_position_embeddings = 120
    long = Pair(Origin("f", 4), "why " * 60, "so", "so", "one")
    assert sorted(losses(model, encoder, CORRECTION, [*PAIRS[:2], long])) == [0, 1]
