"""Reading rows, naming data sets, mixing and splitting them."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner.questions import question_key
from aligner.readers.rows import read_rows
from aligner.records import Correction, DataError, Origin, UserError
from aligner.training.datasets import register
from aligner.training.datasets.mixture import identity, mix, sample, split
from aligner.training.datasets.read_records import records_of
from aligner.training.datasets.registry import REGISTERED, parse_spec, register_files
from aligner.training.datasets.run_prompts import check_identity, prompts_of

ROW = {"question": "q", "answer": "a", "correction": "c"}


def rows_of(count: int) -> list[dict[str, str]]:
    return [{"question": f"q{n}", "answer": f"a{n}", "correction": f"c{n}"} for n in range(1, count + 1)]


@pytest.fixture
def ten(tmp_path):
    file = tmp_path / "ten.json"
    file.write_text(json.dumps(rows_of(10)))
    return str(file)


def faults(path) -> list[str]:
    """What is wrong with the rows of a file, its path left out."""
    try:
        found = [row for row in records_of(parse_spec(f"correction-json::{path}")) if isinstance(row, DataError)]
    except DataError as error:
        found = [error]
    return [str(fault).replace(str(path), "F") for fault in found]


# --- files


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet", "folder"])
def test_the_same_rows_come_from_every_format(suffix, tmp_path):
    from datasets import Dataset

    path = tmp_path / f"rows.{suffix}"
    if suffix == "json":
        path.write_text("\ufeff" + json.dumps(rows_of(3)), encoding="utf-8")
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\r\n" for row in rows_of(3)))
    elif suffix == "parquet":
        Dataset.from_list(rows_of(3)).to_parquet(str(path))
    else:
        Dataset.from_list(rows_of(3)).save_to_disk(str(path))
    found = list(records_of(parse_spec(f"correction-json::{path}")))
    assert [(r.question, r.answer, r.correction, r.origin.row) for r in found] == [
        (f"q{n}", f"a{n}", f"c{n}", n) for n in (1, 2, 3)
    ]


@given(st.lists(st.fixed_dictionaries({k: st.text(st.characters(codec="utf-8"), min_size=1) for k in ROW}), min_size=1))
def test_text_comes_back_as_it_was_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("any")
    for name, text in (("a.json", json.dumps(rows)), ("a.jsonl", "\n".join(map(json.dumps, rows)))):
        (folder / name).write_text(text, encoding="utf-8")
        assert [row.value for row in read_rows(folder / name)] == rows


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps([ROW, {**ROW, "correction": ""}]), "F row 2: 'correction' is empty. Remove the row"),
        (json.dumps([{**ROW, "answer": " \n"}]), "F row 1: 'answer' is empty. Remove the row"),
        (
            json.dumps([{"question": "q", "answer": "a", "corection": "c"}]),
            "F row 1: the field 'correction' is missing. Rename 'corection' to 'correction', or give --columns "
            "correction=corection",
        ),
        (
            json.dumps([{"q": 1}]),
            "F row 1: the field 'question' is missing. It has the fields q: give --columns "
            "question=NAME,answer=NAME,correction=NAME",
        ),
        (json.dumps([{**ROW, "answer": 3}]), "F row 1: 'answer' is a number and not text. Write text in quotation marks"),
        (json.dumps([{**ROW, "answer": None}]), "F row 1: 'answer' is null and not text. Write text in quotation marks"),
        (json.dumps([["q", "a", "c"]]), "F row 1: holds a list where an object should be. Write an object with the fields"),
        (
            json.dumps([{**ROW, "answer": "\ud83d"}]),
            "F row 1: 'answer' holds half a surrogate pair, which is no text, at character 1. Remove the character",
        ),
        (
            '[{"question": "q", "more": [{"a": 1, "a": 2}], "answer": "a", "correction": "c"}]',
            "F row 1: the key 'a' stands in it twice. Remove one of the two",
        ),
        ('[{"question"}]', "F: broken JSON at line 1 column 13: Expecting ':' delimiter. Correct the file there"),
        (
            json.dumps(ROW) + "\n\n{broken\n",
            "F row 3: broken JSON at column 2: Expecting property name enclosed in double quotes. "
            "Write one whole JSON object a line",
        ),
        (json.dumps({"data": [ROW]}, indent=1), "F: it holds one JSON object where a list of rows should be. Wrap the rows in [ ]"),
    ],
)  # fmt: skip
def test_an_unusable_row_is_named_with_its_place_and_remedy(content, expected, tmp_path):
    file = tmp_path / "bad.json"
    file.write_text(content)
    assert faults(file) == [expected]


def test_a_file_that_is_not_utf8_is_named_with_the_line(tmp_path):
    file = tmp_path / "latin.jsonl"
    file.write_bytes(b'{"question": "x"}\n{"question": "caf\xe9"}\n')
    assert faults(file)[1:] == ["F row 2: is not UTF-8 at byte 18. Save the file as UTF-8"]


def test_a_missing_file_and_a_folder_of_something_else_are_errors(tmp_path):
    assert faults(tmp_path / "no.json") == ["F: there is no such file. Check the path"]
    assert "is not a folder written by datasets" in faults(tmp_path)[0]


# --- specs


@pytest.mark.parametrize(
    ("middle", "rows"),
    [
        ("", 10),
        (":", 10),
        (":0.5", 5),
        (":1/5", 2),
        (":3/-1", 3),
        (":25/-1", 25),
        (":1.5", 15),
        (":2", 20),
        (": 1 / 2 ", 5),
    ],
)
def test_proportions_take_a_share_a_count_or_more_than_there_is(middle, rows, ten):
    spec = f"correction-json{middle or ':'}:{ten}"
    assert len(mix([spec], seed=1).records) == rows


def test_a_bare_path_a_home_path_and_a_path_with_a_colon(tmp_path, monkeypatch):
    odd = tmp_path / "a:b.json"
    odd.write_text(json.dumps(rows_of(2)))
    monkeypatch.setenv("HOME", str(tmp_path))
    for spec in (str(odd), f"correction-json::{odd}", "correction-json::~/a:b.json"):
        assert len(mix([spec], seed=1).records) == 2


def test_one_name_may_stand_several_times_and_draws_anew(ten):
    both = mix([f"correction-json:0.5:{ten}", f"correction-json:0.5:{ten}"], seed=1).records
    assert len(both) == 10 and both[:5] != both[5:]


def test_sampling_is_seeded_and_keeps_order(ten):
    spec = f"correction-json:0.5:{ten}"
    first, again, other = (mix([spec], seed).records for seed in (1, 1, 2))
    assert first == again != other
    assert [r.origin.row for r in first] == sorted(r.origin.row for r in first)


def test_up_sampling_repeats_every_row_equally_often():
    records = [Correction(str(n), "a", "c") for n in range(4)]
    taken = [r.question for r in sample(records, 10, "k")]
    assert sorted(taken.count(str(n)) for n in range(4)) == [2, 2, 3, 3]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("correction-json", "needs a path. Write correction-json::PATH"),
        ("correction-json:0.5:", "the path behind the second colon is empty"),
        ("correction-json:x:TEN", "'x' is not a proportion"),
        ("correction-json:TEN", "is not a proportion.* For a path write correction-json::"),
        ("correction-json:0:TEN", "must be above 0"),
        ("correction-json:-1:TEN", "must be above 0"),
        ("correction-json:1/0:TEN", "is not a proportion"),
        ("correction-json:-5/-1:TEN", "is not a proportion"),
        ("corection-json::TEN", "Did you mean 'correction-json'"),
        ("nowhere.json", "there is no such file, nor a data set of that name"),
    ],
)
def test_a_bad_spec_says_what_is_wrong(spec, message, ten):
    with pytest.raises(UserError, match=message):
        mix([spec.replace("TEN", ten)], seed=1)


def test_a_fraction_is_exact(ten):
    assert parse_spec(f"correction-json:1/3:{ten}").proportion == Fraction(1, 3)


def test_training_stops_at_the_first_unusable_row_and_counts_the_rest(tmp_path):
    file = tmp_path / "bad.json"
    file.write_text(json.dumps([ROW, {**ROW, "correction": ""}, {**ROW, "answer": ""}]))
    with pytest.raises(
        DataError, match=r"row 2: 'correction' is empty. Remove the row; 'aligner check .*' lists all 2 such rows."
    ):
        mix([str(file)], seed=1)


# --- registering


def test_a_data_set_is_registered_in_a_short_file_outside_the_package(tmp_path):
    (tmp_path / "tickets.jsonl").write_text(json.dumps({"ticket": "t", "draft": "d", "sent": "s"}) + "\n")
    mine = tmp_path / "my_datasets.py"
    mine.write_text(
        "from aligner.training.datasets import Correction, register\n"
        f"@register('support-tickets', path={str(tmp_path / 'tickets.jsonl')!r}, template='edit-pair')\n"
        "def support_tickets(row):\n"
        "    return Correction(row['ticket'], row['draft'], row['sent'])\n"
    )
    register_files([str(mine)])
    register_files([str(mine)])  # twice is once
    mixture = mix(["support-tickets"], seed=1)
    assert [(r.question, r.answer, r.correction) for r in mixture.records] == [("t", "d", "s")]
    assert {record.prompt for record in mixture.records} == {"edit-pair"}


def test_a_name_is_registered_once_and_without_a_colon():
    with pytest.raises(UserError, match="already registered"):
        register("correction-json")(lambda row: Correction("q", "a", "c"))
    with pytest.raises(UserError, match="no colon"):
        register("a:b")


def test_a_fault_in_a_users_file_is_told_in_one_line(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("1/0")
    with pytest.raises(UserError, match=r"bad.py: fails with ZeroDivisionError: division by zero"):
        register_files([str(bad)])


# --- splitting


def test_no_question_is_on_both_sides_of_the_split_however_it_is_spelt():
    spelt = ["What is it?", "what is it", "WHAT  is it?!", "Who?", "Where?", "When?"]
    records = [Correction(q, "a", "c", Origin("f", n)) for n, q in enumerate(spelt)]
    train, held_out = split(records, 0.25, seed=3)
    assert len(train) + len(held_out) == 6
    assert not {question_key(r.question) for r in train} & {question_key(r.question) for r in held_out}
    assert split(records, 0.25, seed=3) == (train, held_out)


def test_a_split_that_leaves_nothing_is_an_error():
    with pytest.raises(UserError, match="leaves nothing to train on"):
        split([Correction("q", "a", "c")], 0.5, seed=1)


def test_the_warm_up_learns_the_answer_on_a_seeded_share():
    records = [Correction(f"q{n}", f"a{n}", f"c{n}", feedback="be kind") for n in range(10)]
    taken = identity(records, 0.2, seed=1)
    assert len(taken) == 2 and all(r.correction == r.answer and not r.feedback for r in taken)
    assert taken == identity(records, 0.2, seed=1) != identity(records, 0.2, seed=5)


def test_each_data_sets_records_take_its_own_prompt_and_that_of_most_rows_corrects(ten, tmp_path):
    """A mixture of three with three prompts; what a data set leaves open takes the default; a chosen prompt takes every place."""
    other = tmp_path / "other.yaml"
    other.write_text("name: other\ntemplate: 'Q {question} A {answer} C'")
    register("third", template=str(other))(lambda row: Correction(row["question"], row["answer"], row["correction"]))
    specs = [f"third:2/-1:{ten}", f"correction-json:4/-1:{ten}", f"empathy-json:3/-1:{ten}"]
    records = mix(specs, 1).records
    prompts = prompts_of(None, records)
    assert [prompts.of(record).name for record in records] == ["other"] * 2 + ["correction"] * 4 + ["empathy"] * 3
    assert [template.name for template in prompts.all()] == ["correction", "other", "empathy"]
    assert (
        prompts.line()
        == "correction, other, empathy, each for its data set's records; the Aligner corrects with correction"
    )
    chosen = prompts_of("edit-pair", records)
    assert {chosen.of(record).name for record in records} == {"edit-pair"} and chosen.line() == "edit-pair"
    assert prompts_of(None, records[:3]).correcting.name == "other", "two rows of it, one of the other"
    REGISTERED.pop("third")


def test_rows_need_the_fields_that_their_prompt_shows(ten, tmp_path):
    rows = [{"question": "What is 2 + 2?", "correction": "4."}, {"answer": "Its 5.", "correction": "It's 5."}]
    file = tmp_path / "rows.json"
    for row, text in zip(rows, ("USER: {question} ASSISTANT:", "Correct: {answer} ->"), strict=True):
        prompt = tmp_path / "prompt.yaml"
        prompt.write_text(json.dumps({"template": text}))
        file.write_text(json.dumps([row]))
        (record,) = mix([str(file)], 1, prompt=str(prompt)).records
        shown = prompts_of(str(prompt), [record]).of(record).render(record.question, record.answer)
        assert shown == text.format(**row) and record.correction == row["correction"]
        assert ("plain fine-tuning" in prompts_of(str(prompt), [record]).line()) == ("answer" not in row)
        with pytest.raises(DataError, match="is missing"):
            mix([str(file)], 1)
        if "answer" not in row:
            with pytest.raises(UserError, match=r"has no \{answer\} to copy"):
                check_identity(prompts_of(str(prompt), [record]))


def test_the_warm_up_draws_from_the_training_side(ten):
    from aligner.training.flags import parse
    from aligner.training.stages import stage_data

    flags = ["--train_datasets", ten, "--eval_split_ratio", "0.3", "--identity_proportion", "0.5"]
    main, warm_up = (stage_data(parse(flags), stage) for stage in ("correction", "identity"))
    held_out = {r.question for r in main.held_out}
    assert len(held_out) == 3 and held_out == {r.question for r in warm_up.held_out}
    assert not held_out & {r.question for r in (*warm_up.train, *main.train)}
    assert all(r.correction == r.answer for r in warm_up.train) and len(warm_up.train) == 4
    assert all(r.correction != r.answer for r in warm_up.held_out), "always evaluated on the correction"


def test_a_line_separator_inside_a_text_is_text(tmp_path):
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({**ROW, "answer": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert faults(file) == []


def test_a_saved_folder_of_several_splits_asks_for_one(tmp_path):
    from datasets import Dataset, DatasetDict

    part = Dataset.from_list(rows_of(2))
    DatasetDict({"train": part, "test": part}).save_to_disk(str(tmp_path / "both"))
    assert faults(tmp_path / "both")[0].startswith("F: it holds the splits train, test. Give one: F/train"[:40])
    assert faults(tmp_path / "both" / "train") == []


def test_a_formatter_that_returns_something_else_is_told_so_with_the_row(ten):
    register("forgetful")(lambda row: None)
    with pytest.raises(DataError, match="row 1: forgetful returns null and no Correction"):
        mix([f"forgetful::{ten}"], seed=1)


def test_a_file_of_the_package_may_register_with_the_public_names(tmp_path):
    import subprocess
    import sys

    from conftest import ROOT

    code = (
        "import sys, types; m = types.ModuleType('aligner.training.datasets.raw'); m.__path__ = []\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'aligner.training.datasets.raw':\n"
        "            from aligner.training.datasets import Correction, register\n"
        "            print('found', register.__name__)\n"
        "sys.meta_path.insert(0, Finder()); import aligner.training.datasets"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "found register" in done.stdout, done.stderr


def test_an_output_never_replaces_what_is_read_nor_a_device(ten, tmp_path, capsys):
    from pathlib import Path

    from aligner.cli import main
    from aligner.files import write_text

    before = Path(ten).read_text()
    assert main(["correct", "--model", "m", "--input", ten, "--output", ten]) == 2
    assert main(["check", ten, "--model_name_or_path", "m", "--dump", ten]) == 2
    assert main(["correct", "--model", "m", "--input", ten, "--output", str(tmp_path)]) == 2
    assert Path(ten).read_text() == before
    assert capsys.readouterr().err.count("Name another file") == 2
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "x"
    write_text("/dev/null", "x")
    assert Path("/dev/null").is_char_device()


def test_a_held_out_record_counts_once_however_often_its_rows_are_repeated():
    records = [Correction(f"Question {n}?", "a", "b") for n in range(10)]
    train, held_out = split(records * 3, 0.2, 0)
    assert len(held_out) == len(set(held_out)) == 2 and len(train) == 24
