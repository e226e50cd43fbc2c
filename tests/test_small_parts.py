"""Diffs, atomic files, the template data set, the embedded model."""

from __future__ import annotations

import difflib
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import TEMPLATE, read_rows
from hypothesis import given
from hypothesis import strategies as st

from aligner.files import remove_folder, whole_file, whole_folder
from aligner.jsonl import LineLog, alone
from aligner.launch.report import examples
from aligner.quality.edits import copied_share, diff, show
from aligner.questions import question_key
from aligner.records import Origin
from aligner.training.datasets.mixture import Source
from aligner.training.datasets.supervised import Tokens


def test_a_diff_by_eye():
    segments = diff("The moon is cheese.", "The moon is rock.")
    assert [tuple(s) for s in segments] == [("=", "The moon is"), ("-", " cheese"), ("+", " rock"), ("=", ".")]
    assert show(segments, colour=False).plain == "The moon is[- cheese-]{+ rock+}."
    assert copied_share("The moon is cheese.", "The moon is rock.") == pytest.approx(12 / 17)


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_diff_holds_both_texts(answer, corrected):
    segments = diff(answer, corrected)
    assert "".join(s.text for s in segments if s.kind != "+") == answer
    assert "".join(s.text for s in segments if s.kind != "-") == corrected
    assert 0 <= copied_share(answer, corrected) <= 1


def test_texts_too_long_for_a_table_are_compared_from_both_ends(monkeypatch):
    monkeypatch.setattr("aligner.quality.edits.TABLE", 10)
    assert copied_share("one two three four", "one two three four") == 1
    assert copied_share("one two three four", "one two 3 four") == pytest.approx(12 / 14)
    assert copied_share("a b c", "a b b c") == pytest.approx(5 / 7), "an end is not counted twice"


def test_a_file_is_whole_or_not_there(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail():
        with whole_file(target) as stream:
            stream.write("half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_removing_a_folder_leaves_nothing_with_its_name(tmp_path):
    (tmp_path / "state" / "deep").mkdir(parents=True)
    remove_folder(tmp_path / "state")
    remove_folder(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_a_kill_tore_holds_its_whole_lines_and_goes_on_behind_them(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"row": 1}\n{"row": 2}\n{"ro')
    log = LineLog(file)
    assert log.lines == [b'{"row": 1}', b'{"row": 2}'] and log.torn == b'{"ro'
    assert file.read_bytes().endswith(b'{"ro'), "reading changes nothing"
    log.start()
    log.append({"row": 3})
    log.close()
    assert file.read_text() == '{"row": 1}\n{"row": 2}\n{"row": 3}\n'


def test_a_folder_is_in_its_place_only_when_all_of_it_is_written(tmp_path):
    place = tmp_path / "model"
    with whole_folder(place) as folder:
        (folder / "weights").write_text("first")
        assert not place.exists()
    with pytest.raises(KeyError), whole_folder(place) as folder:
        (folder / "weights").write_text("second, half written")
        raise KeyError
    assert (place / "weights").read_text() == "first" and list(tmp_path.iterdir()) == [place]


def test_the_template_data_set_is_fit_to_be_shown():
    rows = read_rows(TEMPLATE)
    assert 110 <= len(rows) <= 130
    assert all(
        set(row) == {"question", "answer", "correction"} and all(v.strip() for v in row.values()) for row in rows
    )
    equal = sum(row["answer"] == row["correction"] for row in rows)
    assert 12 <= equal <= 18  # about one in eight
    assert len({question_key(row["question"]) for row in rows}) == len(rows)
    for field in ("question", "correction"):
        texts = [row[field] for row in rows]
        for index, text in enumerate(texts):
            matcher = difflib.SequenceMatcher(b=text, autojunk=False)
            for other in texts[index + 1 :]:
                matcher.set_seq1(other)
                assert matcher.quick_ratio() < 0.99 and (matcher.quick_ratio() < 0.8 or matcher.ratio() < 0.6)
    json.dumps(rows).encode()


def test_the_embedded_model_answers_and_is_fetched_once(capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aligner.demo import embedded_model

    folder = embedded_model()
    stamp = (folder / "COMPLETED").stat().st_mtime_ns
    assert (embedded_model() / "COMPLETED").stat().st_mtime_ns == stamp
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer("2026")["input_ids"]) == 4  # one token a digit
    model = AutoModelForCausalLM.from_pretrained(folder)
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")
    assert "Paris" in tokenizer.decode(model.generate(**ids, max_new_tokens=12, do_sample=False)[0])


@pytest.mark.parametrize("times", [3, 3000])
def test_a_diff_of_texts_that_repeat_themselves_is_whole_and_quick(times):
    """A small model that loops writes such texts; difflib alone would take minutes for them."""
    before, after = "so it goes on here " * times, "so it goes on there " * times
    began = time.monotonic()
    segments = diff(before, after)
    assert time.monotonic() - began < 5
    assert "".join(s.text for s in segments if s.kind != "+") == before
    assert "".join(s.text for s in segments if s.kind != "-") == after
    assert sum(len(s.text) for s in segments if s.kind == "=") == len("so it goes on ") * times, (
        "and only one word differs"
    )


def test_a_dry_run_shows_a_row_of_each_data_set():
    rows = [Tokens(np.zeros(2), 1, Origin(file, row), False, False) for file in ("one", "two") for row in range(9)]
    sources = [Source("spec", "set", "", "", 9, 0, 9, {file: "sha256"}) for file in ("one", "two")]
    assert [row.origin for row in examples(rows, sources)] == [("one", 0), ("two", 0), ("one", 1)]
    assert [row.origin for row in examples(rows, sources[:1])] == [("one", 0), ("one", 1), ("one", 2)]


def test_a_file_that_several_processes_write_to_is_written_by_one_at_a_time(tmp_path):
    """A lock is an opened file's, so two of them in one process are as two processes."""
    file = tmp_path / "rows.jsonl"
    first, second = LineLog(file), LineLog(file)
    first.start(shared=True)
    second.start(shared=True)
    assert first._stream
    with ThreadPoolExecutor(1) as pool:
        with alone(first._stream):
            late = pool.submit(second.append, {"n": 2})
            with pytest.raises(TimeoutError):
                late.result(0.2)
        late.result(10)
    first.append({"n": 1})
    assert file.read_text() == '{"n": 2}\n{"n": 1}\n'
