"""Law 2 and law 4: ids and labels are the original's, but for two kinds of rows, and every row is accounted for."""

from __future__ import annotations

import numpy as np
import pytest
from plain_loop import PROMPT, original_tokens
from transformers import AutoTokenizer

from aligner.demo import embedded_model
from aligner.encoder import Encoder
from aligner.models import load_tokenizer
from aligner.prompts import CORRECTION, PromptTemplate
from aligner.records import Correction, DataError, Origin, UserError
from aligner.training.datasets.run_prompts import RunPrompts
from aligner.training.datasets.supervised import Tally, tokenise


@pytest.fixture(scope="session", params=["embedded", "sentencepiece"])
def tokenizer(request, sentencepiece_folder):
    return load_tokenizer(str(embedded_model() if request.param == "embedded" else sentencepiece_folder))


def record(question="Who?", answer="You.", correction="Me.", row=1) -> Correction:
    return Correction(question, answer, correction, Origin("rows.json", row))


def only(records, tokenizer, **options):
    kept, tally = tokenise(
        records, RunPrompts(CORRECTION), Encoder(tokenizer), options.pop("max_length", 2048), **options
    )
    return kept, tally


def test_ids_and_labels_of_500_rows_equal_the_originals_but_for_the_two_counted_kinds(real_rows, tokenizer, capsys):
    odd = record(question=f"What does {tokenizer.eos_token} mean?"), record(correction='"Quoted."')
    real_rows = [*real_rows, *({k: getattr(r, k) for k in ("question", "answer", "correction")} for r in odd)]
    records = [record(**row, row=n) for n, row in enumerate(real_rows, 1)]
    kept, tally = only(records, tokenizer)
    strings = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    special = {n for n, row in enumerate(real_rows, 1) if any(s in v for s in strings for v in row.values())}
    assert len(special) == 1
    different = set()
    for tokens in kept:
        ids, prompt_length = original_tokens(tokenizer, real_rows[tokens.origin.row - 1])
        labels = [-100] * prompt_length + ids[prompt_length:]
        if ids != tokens.ids.tolist() or labels != tokens.labels():
            different.add(tokens.origin.row)
    merged = set()
    for n, row in enumerate(real_rows, 1):
        prompt = tokenizer(PROMPT.format(row["question"], row["answer"]), split_special_tokens=True)["input_ids"]
        both = tokenizer(PROMPT.format(row["question"], row["answer"]) + row["correction"], split_special_tokens=True)
        if both["input_ids"][: len(prompt)] != prompt:
            merged.add(n)
    assert merged == {tokens.origin.row for tokens in kept if tokens.merged}
    assert different <= merged | special
    assert tally.count(Tally.MERGED) == len(merged)
    assert tally.count(Tally.SPECIAL) == len(special)
    assert len(kept) - len(different) > 0.9 * len(real_rows)
    with capsys.disabled():
        print(
            f"\n{len(kept)} rows: {len(different)} differ; {len(merged)} merge at the border, {len(special)} hold specials"
        )


@pytest.mark.parametrize(
    "text", ['"Quoted', "(aside", "plain", " spaced", "\nline", "\n\nlines", "：wide", "1. one", "::"]
)
def test_the_model_sees_the_same_prompt_ids_in_training_and_inference(text, tokenizer):
    encoder = Encoder(tokenizer)
    kept, _ = only([record(correction=text)], tokenizer)
    ids, prompt = kept[0].ids.tolist(), encoder.prompts([CORRECTION.render("Who?", "You.")])[0]
    assert ids[: len(prompt)] == prompt
    assert ids[-1] == tokenizer.eos_token_id
    spoken = tokenizer.decode(ids, skip_special_tokens=True)
    assert spoken == PROMPT.format("Who?", "You.") + text


def test_a_border_that_merges_is_found_and_mended(sentencepiece_folder):
    tokenizer = load_tokenizer(str(sentencepiece_folder))
    kept, tally = only([record(correction='"Yes," he said.')], tokenizer)
    prompt = Encoder(tokenizer).prompts([CORRECTION.render("Who?", "You.")])[0]
    joint = tokenizer(PROMPT.format("Who?", "You.") + '"Yes," he said.')["input_ids"]
    assert tokenizer.convert_ids_to_tokens(joint)[1].startswith("▁")  # the dummy prefix
    assert joint[: len(prompt)] != prompt  # the original would mask the first sign of the correction
    assert kept[0].merged and tally.count(Tally.MERGED) == 1
    assert tokenizer.decode(kept[0].ids[len(prompt) : -1].tolist()) == '"Yes," he said.'
    assert kept[0].ids[0] == tokenizer.bos_token_id and kept[0].ids.tolist().count(tokenizer.bos_token_id) == 1


def test_special_token_strings_in_fields_are_text(tokenizer):
    eos = tokenizer.eos_token
    kept, tally = only([record(question=f"What is {eos}?", correction=f"{eos} ends a text.")], tokenizer)
    ids = kept[0].ids.tolist()
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tally.places[Tally.SPECIAL] == {"rows.json": [1]}
    assert f"{eos} ends a text." in tokenizer.decode(ids[:-1])


def test_labels_come_from_lengths_so_that_pad_equal_to_eos_still_learns_to_stop(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    kept, _ = only([record()], tokenizer)
    assert kept[0].labels()[-1] == tokenizer.eos_token_id
    assert kept[0].labels().count(-100) == kept[0].prompt_length


def test_a_row_without_room_for_a_target_is_dropped_and_named(tokenizer):
    """In the original such a row is trained on with every label masked: its loss is NaN."""
    rows = [record(), record(answer="word " * 300, row=2)]
    kept, tally = only(rows, tokenizer, max_length=200)
    assert [tokens.origin.row for tokens in kept] == [1]
    assert tally.places == {Tally.NO_ROOM: {"rows.json": [2]}}
    assert (tally.rows, tally.kept) == (2, 1)


def test_a_cut_correction_has_no_end_of_text_and_is_counted(tokenizer):
    kept, tally = only([record(correction="word " * 300)], tokenizer, max_length=100)
    assert len(kept[0].ids) == 100 and kept[0].cut and kept[0].ids[-1] != tokenizer.eos_token_id
    assert tally.count(Tally.CUT) == 1


def test_overlength_can_drop_or_stop(tokenizer):
    rows = [record(), record(correction="word " * 300, row=7)]
    kept, tally = only(rows, tokenizer, max_length=100, overlength="drop")
    assert len(kept) == 1 and tally.places == {Tally.TOO_LONG: {"rows.json": [7]}}
    with pytest.raises(DataError, match=r"rows.json row 7: has \d+ tokens and max_length is 100"):
        only(rows, tokenizer, max_length=100, overlength="error")


def test_nothing_left_is_an_error_that_says_why(tokenizer):
    with pytest.raises(UserError, match=r"no row is left.*leaves no room.*Raise --max_length"):
        only([record(answer="word " * 300)], tokenizer, max_length=50)


def test_special_tokens_in_the_templates_own_text_are_special_and_in_fields_text(tokenizer):
    eos = tokenizer.eos_token
    template = PromptTemplate("mine", f"{eos}user\n{{question}} | {{answer}}{eos}\nassistant\n")
    [plain], _ = tokenise([record()], RunPrompts(template), Encoder(tokenizer), 100)
    whole = tokenizer(f"{eos}user\nWho? | You.{eos}\nassistant\nMe.", add_special_tokens=False)["input_ids"]
    assert plain.ids.tolist() == [*whole, tokenizer.eos_token_id], "nothing is added before a template that is complete"
    [odd], _ = tokenise([record(question=f"Is {eos} text?")], RunPrompts(template), Encoder(tokenizer), 100)
    assert odd.ids.tolist().count(tokenizer.eos_token_id) == 3, "two of the template, one at the end"
    assert f"Is {eos} text?" in tokenizer.decode(odd.ids.tolist())


def test_a_tokenizer_gets_end_of_text_and_padding_only_if_it_lacks_them(bpe_folder, tmp_path):
    plain = AutoTokenizer.from_pretrained(bpe_folder)
    assert plain.pad_token is None
    assert load_tokenizer(str(bpe_folder)).pad_token == plain.eos_token
    assert len(load_tokenizer(str(bpe_folder))) == len(plain)  # nothing was added
    plain._special_tokens_map["eos_token"] = None
    plain.eos_token = None
    plain.save_pretrained(tmp_path)
    bare = load_tokenizer(str(tmp_path))
    assert bare.eos_token == "</s>" and bare.pad_token == "</s>" and len(bare) == len(plain) + 1


def test_tokens_hold_ids_as_small_integers(tokenizer):
    kept, _ = only([record()], tokenizer)
    assert kept[0].ids.dtype == np.int32 and kept[0].target_length == len(kept[0].ids) - kept[0].prompt_length
