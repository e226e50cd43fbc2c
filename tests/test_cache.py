"""Each record is tokenised once: entries are named by all that decides them, and a broken one is made anew."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer
from warm import forks

from aligner.encoder import Encoder
from aligner.files import cache_folder
from aligner.known_prompts import EDIT_PAIR
from aligner.prompts import CORRECTION
from aligner.records import Correction, Origin, UserError
from aligner.training.datasets.cache import UNUSED, load_or_compute, name_of
from aligner.training.datasets.run_prompts import RunPrompts
from aligner.training.datasets.supervised import Tally, Tokens, tokenise
from aligner.training.datasets.token_table import TokenTable, lengths_of, target_lengths_of

RECORDS = [
    Correction("Is the moon cheese?", "Yes.", "No, it is rock.", Origin("a.json", 1)),
    Correction("Why?", "Because.", '"Because" is no reason.', Origin("a.json", 2)),
    Correction("word " * 90, "long", "lost", Origin("b.json", 7)),
    Correction("Is <|end|> text?", "Yes.", "Yes, here it is.", Origin("b.json", 9)),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def encoder(bpe_folder) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(bpe_folder))


def entries() -> list[Path]:
    return sorted(cache_folder().glob("tokens/*.safetensors"))


def as_values(tokens: list[Tokens]) -> list[tuple]:
    return [(t.ids.tolist(), t.ids.dtype, t.prompt_length, t.origin, t.cut, t.merged) for t in tokens]


def refuse():
    raise AssertionError("tokenised a second time")


def test_what_is_kept_is_what_was_made(encoder):
    what = RECORDS, RunPrompts(CORRECTION), encoder, 100, "cut"
    plain, tally = tokenise(*what)
    assert tally.kept == 3 and len(tally.places) == 2  # one dropped, one with a special string
    load_or_compute(name_of(*what), lambda: tokenise(*what))
    found, counted = load_or_compute(name_of(*what), refuse)
    assert as_values(found) == as_values(plain)
    assert (counted.rows, counted.kept, counted.places) == (tally.rows, tally.kept, tally.places)


def test_processes_share_the_memory_of_an_entry_which_is_mapped_and_not_copied(encoder):
    """A record costs a process no object: of a million ids nothing is copied when they are read."""
    row = Tokens(np.arange(1000, dtype=np.int32), 400, Origin("a.json", 1), False, True)
    computed = [replace(row, origin=Origin(f"{number % 3}.json", number)) for number in range(1000)]
    for found in (
        load_or_compute("large", lambda: (computed, Tally(rows=1000)))[0],
        load_or_compute("large", refuse)[0],
    ):
        assert isinstance(found, TokenTable) and as_values(found) == as_values(computed)
        assert as_values(found[-2:]) == as_values(computed[-2:]) and found[-1].origin == Origin("0.json", 999)
        assert lengths_of(found).tolist() == [1000] * 1000 and target_lengths_of(found).tolist() == [600] * 1000
        with pytest.raises(IndexError):
            found[1000]
        address = found[7].ids.__array_interface__["data"][0]
        assert str(entries()[0]) in mapping_at(address) and " r" in mapping_at(address)
        assert not found[7].ids.flags.writeable


def mapping_at(address: int) -> str:
    """The line of this process's memory map that an address lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= address < last:
            return line
    return ""


def test_the_name_changes_with_everything_that_decides_the_tokens(encoder, bpe_folder, monkeypatch):
    other = AutoTokenizer.from_pretrained(bpe_folder)
    other.add_tokens(["moon"])
    first, *rest = RECORDS
    names = [
        name_of(RECORDS, RunPrompts(CORRECTION), encoder, 100, "cut"),
        name_of([replace(first, question="Is the moon cheese"), *rest], RunPrompts(CORRECTION), encoder, 100, "cut"),
        name_of(
            [replace(first, question="Is the moon cheese?Yes", answer="."), *rest],
            RunPrompts(CORRECTION),
            encoder,
            100,
            "cut",
        ),
        name_of([replace(first, origin=Origin("a.json", 3)), *rest], RunPrompts(CORRECTION), encoder, 100, "cut"),
        name_of(RECORDS[::-1], RunPrompts(CORRECTION), encoder, 100, "cut"),
        name_of(RECORDS, RunPrompts(EDIT_PAIR), encoder, 100, "cut"),
        name_of(RECORDS, RunPrompts(CORRECTION), Encoder(other), 100, "cut"),
        name_of(RECORDS, RunPrompts(CORRECTION), encoder, 101, "cut"),
        name_of(RECORDS, RunPrompts(CORRECTION), encoder, 100, "drop"),
    ]
    monkeypatch.setattr("aligner.training.datasets.cache.CODE", "another version")
    names.append(name_of(RECORDS, RunPrompts(CORRECTION), encoder, 100, "cut"))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("harm", ["empty", "cut", "byte", "other"])
def test_an_entry_that_is_not_what_was_written_is_made_anew(encoder, harm):
    what = RECORDS, RunPrompts(CORRECTION), encoder, 100, "cut"
    name = name_of(*what)
    plain = as_values(load_or_compute(name, lambda: tokenise(*what))[0])
    (file,) = entries()
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "byte": whole, "other": b"no tensors here"}[harm])
    again, _ = load_or_compute(name, lambda: tokenise(*what))
    assert as_values(again) == plain
    assert as_values(load_or_compute(name, refuse)[0]) == plain


def test_nothing_is_kept_of_what_fails(encoder):
    what = [replace(RECORDS[2])], RunPrompts(CORRECTION), encoder, 100, "cut"
    for _ in range(2):
        with pytest.raises(UserError, match="no row is left"):
            load_or_compute(name_of(*what), lambda: tokenise(*what))
    assert not entries()


def test_a_cache_that_cannot_be_written_costs_no_run(monkeypatch, tmp_path, encoder):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGNER_CACHE", str(tmp_path / "file"))
    assert load_or_compute("name", lambda: tokenise(RECORDS, RunPrompts(CORRECTION), encoder, 100))[1].kept == 3


def test_entries_that_nobody_reads_are_removed(encoder):
    made = ([Tokens(np.arange(5, dtype=np.int32), 2, Origin("f", 1), False, False)], Tally(1, 1))
    load_or_compute("old", lambda: made)
    load_or_compute("read", lambda: made)
    for file in entries():
        os.utime(file, (0, file.stat().st_mtime - UNUSED - 10))
    load_or_compute("read", refuse)  # counts as a use
    load_or_compute("new", lambda: made)
    assert [file.stem for file in entries()] == ["new", "read"]


def slow_tokens(marks: Path):
    with marks.open("a") as stream:
        stream.write("made\n")
    time.sleep(0.5)  # the others come meanwhile
    return [Tokens(np.arange(100_000, dtype=np.int32), 2, Origin("f", 1), False, False)], Tally(1, 1)


def use(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def take(marks: Path) -> int:
    return int(load_or_compute("one", lambda: slow_tokens(marks))[0][0].ids.sum())


def test_of_several_jobs_one_tokenises_and_all_see_the_same(tmp_path):
    marks = tmp_path / "marks"
    cache = {"ALIGNER_CACHE": os.environ["ALIGNER_CACHE"]}
    with forks().Pool(4, initializer=use, initargs=[cache]) as pool:
        sums = pool.map(take, [marks] * 12, chunksize=1)
    assert set(sums) == {sum(range(100_000))}
    assert marks.read_text() == "made\n"
