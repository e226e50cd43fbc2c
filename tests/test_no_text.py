"""Text that is no text: what nobody can see is empty, and what a tokenizer cannot spell is counted with what was lost."""

from __future__ import annotations

import json

import pytest
from odd_files import CANNOT, KINDS, UNSEEN
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from aligner import cli
from aligner.encoder import Encoder, warn_of_lost_newlines
from aligner.prompts import CORRECTION
from aligner.records import Correction, DataError, Origin, UserError
from aligner.texts import is_blank, text_fault
from aligner.training.datasets.preference import correction_of_pair
from aligner.training.datasets.run_prompts import RunPrompts
from aligner.training.datasets.supervised import Tally, tokenise

SEEN = [
    "a",
    ".",
    "\u2014",
    "\U0001f600",
    "\u4f60",
    "\u0e01\u0e32",
    "\u2588",
    "\u200bx\u200b",
    "0",
    "\U000f0000",
    "\u1160\u1161x",
    "\u2610",
]


@pytest.mark.parametrize("name", UNSEEN)
def test_a_field_that_nobody_can_see_is_empty(name):
    text = UNSEEN[name]
    assert is_blank(text)
    fault = text_fault(Origin("f", 1), "answer", text)
    assert fault is not None and fault.problem.startswith("'answer' is empty")
    assert text.isspace() or f"U+{ord(text.strip()[0]):04X}" in fault.problem
    assert getattr(correction_of_pair("q", "a", text), "reason", "") == "the question or one of the answers is empty"


@pytest.mark.parametrize("text", SEEN)
def test_a_text_with_anything_to_see_is_text(text):
    assert not is_blank(text) and text_fault(Origin("f", 1), "answer", text) is None


def test_the_command_names_the_row_and_the_character(tmp_path, capsys):
    file = tmp_path / "rows.json"
    rows = [{"question": "q", "answer": "a", "correction": text} for text in ("c", "\u200b\ufeff")]
    file.write_text(json.dumps(rows))
    assert cli.main(["check", str(file)]) == 1
    said = capsys.readouterr().out
    assert "row 2: 'correction' is empty: it holds only U+200B, U+FEFF, which nobody can see. Remove the row" in said


# --- what a tokenizer cannot spell


def rows(*corrections: str) -> list[Correction]:
    return [Correction("q", "a", text, Origin("f", n)) for n, text in enumerate(corrections, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_correction_that_cannot_be_spelt_is_counted_with_what_was_lost(kind):
    encoder = Encoder(KINDS[kind]())
    _, tally = tokenise(rows("the quick brown fox", *CANNOT[kind]), RunPrompts(CORRECTION), encoder, 500)
    places = tally.places[Tally.UNSPELT]["f"]
    assert set(range(2, 2 + len(CANNOT[kind]))) <= set(places) and tally.kept == 1 + len(CANNOT[kind])
    assert kind in ("words", "WordPiece") or 1 not in places
    told = [line for line in tally.lines() if "what was lost" in line]
    assert len(told) == 1 and tally.lost


def test_what_was_lost_is_named():
    encoder = Encoder(KINDS["BPE without bytes"]())
    _, tally = tokenise(rows("the \U0001f600 fox\n\nquick \U0001f600", "ok"), RunPrompts(CORRECTION), encoder, 500)
    assert tally.lost == {"\U0001f600": 2, "\n": 2}
    assert "    what was lost: \U0001f600 x 2, newline x 2" in tally.lines()


def test_byte_level_and_byte_fallback_spell_everything(bpe_folder):
    from transformers import AutoTokenizer

    texts = [
        "\U0001f600\n\n\u4f60\u597d \t e\u0301",
        " begins with a space",
        '"quoted"',
        "<|end|>",
        "a  b   c",
        "\u00a0x",
        "1,5\r\n2",
    ]
    _, tally = tokenise(rows(*texts), RunPrompts(CORRECTION), Encoder(AutoTokenizer.from_pretrained(bpe_folder)), 500)
    assert Tally.UNSPELT not in tally.places and tally.lost == {}


@pytest.mark.parametrize("name", ["llama", "no_prefix"])
def test_sentencepiece_with_bytes_spells_everything_but_a_prefix_space(name, request):
    tokenizer = KINDS_OF_PIECES[name]()
    texts = ["\U0001f600\n\n\u4f60", "the fox", '"quoted" fox', "a  b"]
    _, tally = tokenise(rows(*texts), RunPrompts(CORRECTION), Encoder(tokenizer), 500)
    assert Tally.UNSPELT not in tally.places, tally.lines()


def pieces(prefix: str) -> PreTrainedTokenizerFast:
    """Llama-2's construction: BPE with byte fallback, the spaces replaced, one put in front and stripped again."""
    vocabulary = {"[UNK]": 0, "[EOS]": 1, **{f"<0x{n:02X}>": n + 2 for n in range(256)}}
    for sign in 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:#"?\u2581':
        vocabulary[sign] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="[UNK]", byte_fallback=True, fuse_unk=True))
    front = [normalizers.Prepend("\u2581")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", "\u2581")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]")


KINDS_OF_PIECES = {"llama": lambda: pieces("\u2581"), "no_prefix": lambda: pieces("")}


def test_such_rows_can_be_dropped_or_refused():
    encoder, texts = Encoder(KINDS["BPE without bytes"]()), rows("the fox", "the \U0001f600")
    kept, tally = tokenise(texts, RunPrompts(CORRECTION), encoder, 500, unspellable="drop")
    assert [row.origin.row for row in kept] == [1] and tally.places == {Tally.NOT_SPELT: {"f": [2]}}
    with pytest.raises(
        DataError, match=r"f row 2: 'correction' holds what the tokenizer cannot spell \(\U0001f600 x 1\)"
    ):
        tokenise(texts, RunPrompts(CORRECTION), encoder, 500, unspellable="error")
    with pytest.raises(
        UserError,
        match=r"no row is left: .*1 dropped: the tokenizer cannot spell.*Choose --unspellable keep",
    ):
        tokenise(texts[1:], RunPrompts(CORRECTION), encoder, 500, unspellable="drop")


def test_the_command_counts_them_and_can_fail_on_them(tmp_path, capsys):
    folder, file = tmp_path / "model", tmp_path / "rows.json"
    KINDS["BPE without bytes"]().save_pretrained(folder)
    file.write_text(
        json.dumps([{"question": "q", "answer": "a", "correction": text} for text in ("the fox", "\U0001f600")])
    )
    command = ["check", str(file), "--model_name_or_path", str(folder)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert (
        f"1 unspellable: the tokenizer cannot spell the correction ({file} row 2)" in said
        and "what was lost: \U0001f600 x 1" in said
    )
    assert cli.main([*command, "--fail_on", "unspellable"]) == 1


def test_a_tokenizer_without_newlines_is_said_once(caplog):
    for kind, expected in (("BPE without bytes", 1), ("llama", 0)):
        caplog.clear()
        encoder = Encoder({**KINDS, **KINDS_OF_PIECES}[kind]())
        encoder.tokenizer.name_or_path = f"tiny {kind}"
        for _ in range(3):
            warn_of_lost_newlines(encoder)
        lines = [record.getMessage() for record in caplog.records if "loses newlines" in record.getMessage()]
        assert len(lines) == expected


def test_another_choice_is_another_run_and_the_default_is_as_before():
    from aligner.training.config import fingerprint_fields
    from aligner.training.flags import parse

    flags = ["--output_dir", "x", "--unspellable"]
    assert "unspellable" not in fingerprint_fields(parse([*flags, "keep"]))
    assert fingerprint_fields(parse([*flags, "drop"]))["unspellable"] == "drop"


def test_what_was_lost_is_kept_with_the_tokens(tmp_path, monkeypatch):
    from aligner.training.datasets.cache import load_or_compute, name_of

    monkeypatch.setenv("ALIGNER_CACHE", str(tmp_path))
    what = rows("the \U0001f600"), RunPrompts(CORRECTION), Encoder(KINDS["BPE without bytes"]()), 500, "cut", "keep"
    for _ in range(2):
        assert load_or_compute(name_of(*what), lambda: tokenise(*what))[1].lost == {"\U0001f600": 1}
    assert name_of(*what) != name_of(*what[:-1], "drop")
