"""Data files as people have them: read from the bytes that are there, or called by their name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from odd_files import (
    COMPRESSIONS,
    FORMATS,
    LINES,
    PATTERNS,
    REFUSED,
    REPLACED,
    ROWS,
    UNUSED,
    parquet,
    save,
    write,
    zstd,
)

from aligner import cli
from aligner.files import sha256_of
from aligner.quality.check import examine
from aligner.readers import content
from aligner.readers.paths import data_files
from aligner.readers.rows import read_rows
from aligner.records import Correction, DataError, UserError
from aligner.training.datasets.mixture import mix
from aligner.training.datasets.read_records import records_of
from aligner.training.datasets.registry import parse_spec

README = ROOT / "aligner" / "readers" / "README.md"


def records(path: object, options: tuple[str, ...] = ()) -> list[Correction]:
    """The records of a path, all of them usable."""
    rows = list(records_of(parse_spec(f"correction-json::{path}")))
    assert all(isinstance(row, Correction) for row in rows), rows
    return rows  # type: ignore[return-value]


def fault(path: object) -> DataError:
    with pytest.raises(DataError) as error:
        list(read_rows(str(path)))
    return error.value


# --- formats


def outcome(file: Path) -> str:
    """What became of a file, for the table: how many rows were read, or how it was refused."""
    try:
        rows = list(read_rows(file))
    except DataError as error:
        return f"{error.problem}. {error.remedy}"
    assert [row.value for row in rows] == ROWS
    return f"{len(rows)} rows"


def table(folder: Path) -> str:
    """The table of formats x what was read x what was refused, as it stands in the README."""
    lines = [f"| | {' | '.join(COMPRESSIONS)} |", "|---" * (1 + len(COMPRESSIONS)) + "|"]
    for name, data in FORMATS.items():
        cells = [outcome(write(folder / "rows.data", pack(data))) for pack in COMPRESSIONS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| a file that is | is refused as |", "|---|---|"]
    for name, (data, _) in REFUSED.items():
        lines.append(f"| {name} | {outcome(write(folder / 'rows.json', data))} |")
    return "\n".join(lines)


def test_the_table_of_formats_is_what_the_reader_does(tmp_path):
    assert table(tmp_path) in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [".json", ".jsonl.gz", ".parquet", ".csv", ".zst", ".txt", ""])
def test_a_name_decides_nothing_that_the_bytes_decide(name, tmp_path):
    for data in FORMATS.values():
        for pack in COMPRESSIONS.values():
            rows = [row.value for row in read_rows(write(tmp_path / f"rows{name}", pack(data)))]
            assert rows == ROWS, (name, data[:20])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_is_called_by_its_name(name, tmp_path):
    data, words = REFUSED[name]
    for suffix in ("json", "csv", "parquet"):
        problem = fault(write(tmp_path / f"rows.{suffix}", data))
        assert words in str(problem) and problem.row is None and problem.remedy and "\n" not in str(problem)


def test_the_command_tells_it_in_one_line(tmp_path, capsys):
    file = write(tmp_path / "train.parquet", REFUSED["Git LFS pointer"][0])
    assert cli.main(["check", str(file)]) == 2
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{file}: is a Git LFS pointer and not the file. Fetch it with 'git lfs pull'"


def test_two_archives_one_after_the_other_are_one(tmp_path):
    for pack in (gzip.compress, bz2.compress, lzma.compress, zstd):
        assert len(list(read_rows(write(tmp_path / "rows", pack(LINES) + pack(LINES))))) == 2 * len(ROWS)
    for pack in (gzip.compress, bz2.compress, lzma.compress):  # padded, as tapes do
        assert len(list(read_rows(write(tmp_path / "rows", pack(LINES) + b"\0" * 512)))) == len(ROWS)


def test_a_bomb_ends_at_the_stated_limit(tmp_path, monkeypatch):
    """The limit is lowered here, so that the test is quick: it is 1 GiB, or a hundred times the file's size."""
    monkeypatch.setattr(content, "SMALLEST_LIMIT", 1 << 20)
    rows = LINES * 40_000
    for pack in (gzip.compress, bz2.compress, lzma.compress, zstd):
        file = write(tmp_path / "rows.gz", pack(rows))
        assert file.stat().st_size * 100 < len(rows)
        assert f"when decompressed, from {file.stat().st_size:,} bytes" in str(fault(file))
    pq.write_table(
        pa.table({"question": ["0" * 4_000_000] * 2}), tmp_path / "b.parquet", compression="zstd", use_dictionary=False
    )
    assert "its column 'question' becomes 7 MiB when decompressed, from" in str(fault(tmp_path / "b.parquet"))


# --- JSON


def test_memory_does_not_grow_with_an_array(tmp_path):
    row = json.dumps({"question": "q", "answer": "a", "correction": "c" * 3000})
    file = write(tmp_path / "rows.json", f"[{', '.join([row] * 10_000)}]".encode())
    tracemalloc.start()
    assert sum(1 for _ in read_rows(file)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.stat().st_size > 30e6 and peak < 10e6, peak


@pytest.mark.parametrize("size", range(1, 12))
def test_an_array_is_the_same_wherever_its_blocks_end(size, tmp_path, monkeypatch):
    monkeypatch.setattr(content, "BLOCK", size)
    values = [{"a": '\u00e9\U0001f600\\"', "b": [1, 12, -3.5e7, True, None]}, 123, "x", [], {}, 45]
    for text in (
        json.dumps(values),
        json.dumps(values, indent=2, ensure_ascii=False),
        f" \n[{json.dumps(values[0])}\n,123]\n ",
    ):
        file = write(tmp_path / "rows.json", text.encode())
        assert [row.value for row in read_rows(file)] == json.loads(text)
    cut = json.dumps(values)[:-5]
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(cut)
    found = fault(write(tmp_path / "cut.json", cut.encode()))
    assert f"line {expected.value.lineno} column {expected.value.colno}: {expected.value.msg}" in str(found)


def test_rows_before_a_break_in_an_array_are_read_and_the_place_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "BLOCK", 16)
    file = write(tmp_path / "rows.json", ("[\n" + ",\n".join(map(json.dumps, ROWS)) + ",\n  {oops}]").encode())
    report = examine([str(file)])
    assert report.usable == 3
    assert str(report.faults[0]).startswith(f"{file}: broken JSON at line 5 column 4: Expecting property name")


def test_byte_order_marks_inside_joined_files_are_no_text(tmp_path):
    marked = b"\xef\xbb\xbf" + LINES
    assert [row.value for row in read_rows(write(tmp_path / "rows.jsonl", marked + marked))] == ROWS * 2


def test_a_line_without_end_is_a_fault_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "LONGEST_LINE", 100)
    monkeypatch.setattr(content, "BLOCK", 64)
    short = json.dumps({"question": "q", "answer": "a", "correction": "c"}).encode()
    rows = list(read_rows(write(tmp_path / "rows.jsonl", short + b"\n" + b"x" * 1000 + b"\n" + short)))
    assert [getattr(row, "problem", "") for row in rows] == ["", "is longer than 64 MiB", ""]


# --- tables as text


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("question\nq1\nq2\n", [{"question": "q1"}, {"question": "q2"}]),
        ("question,answer\n\n q , \n", [{"question": " q ", "answer": " "}]),
        ("question,answer\n\"a\nb\",c\r\n", [{"question": "a\nb", "answer": "c"}]),
        ("question,answer\nNaN,\n", [{"question": "NaN", "answer": ""}]),
        ("question\tanswer\na,b\tc\n", [{"question": "a,b", "answer": "c"}]),
        (",question\n0,q\n", [{"": "0", "question": "q"}]),
        ("question,answer\nq,a", [{"question": "q", "answer": "a"}]),
        ("sep=;\nquestion;answer\na,b;c\n", [{"question": "a,b", "answer": "c"}]),
        ("question,answer\ra,b\rc,d\r", [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]),
        ('question,answer\n"a\rb",c\n', [{"question": "a\rb", "answer": "c"}]),
        ("question,answer,,\na,b,,\n", [{"question": "a", "answer": "b", "": ""}]),
        ("Question?,answer\na,b\n", [{"Question?": "a", "answer": "b"}]),
    ],
)  # fmt: skip
def test_a_table_is_read_by_the_rules_of_csv(text, rows, tmp_path):
    assert [row.value for row in read_rows(write(tmp_path / "rows.csv", text.encode()))] == rows


def test_a_row_with_another_number_of_fields_is_a_fault_of_that_row(tmp_path):
    found = list(read_rows(write(tmp_path / "rows.csv", b"question,answer\na,b\nwhy, really,b\nc,d\n")))
    assert isinstance(found[1], DataError) and found[1].row == 2
    assert "has 3 fields where the header has 2" in str(found[1]) and found[2].value["question"] == "c"


def test_a_table_that_is_not_utf8_names_the_line(tmp_path):
    file = write(tmp_path / "rows.csv", "question,answer\na,b\nd\xe9j\xe0,b\n".encode("latin-1"))
    assert "line 3 is not UTF-8" in str(fault(file))


def test_a_first_line_that_is_broken_json_is_no_header(tmp_path):
    rows = list(read_rows(write(tmp_path / "rows.json", b'"question": "q", "answer": "a"}\n')))
    assert "broken JSON" in str(rows[0])


# --- Parquet


def test_a_path_is_the_file_of_that_name_and_no_pattern(tmp_path):
    one, other = pa.Table.from_pylist(ROWS), pa.Table.from_pylist([{**ROWS[0], "correction": "the other file's"}])
    for name in ("train1.parquet", "trainx.parquet", "train.parquet", "t.parquet", "x].parquet"):
        write(tmp_path / name, parquet(other))
    for name in PATTERNS:
        file = write(tmp_path / name, parquet(one))
        assert [r.correction for r in records(file)] == [row["correction"] for row in ROWS], name
        assert {r.origin.file for r in records(file)} == {str(file)}
        file.unlink()


def test_a_file_replaced_with_equal_time_and_size_is_read_anew(tmp_path):
    file = tmp_path / "rows.parquet"
    for text in ("old", "new"):
        write(file, parquet(pa.Table.from_pylist([{**ROWS[0], "correction": text}])))
        os.utime(file, (1_700_000_000, 1_700_000_000))
        mixture = mix([str(file)], seed=1)
        assert mixture.records[0].correction == text
        assert mixture.sources[0].files == {str(file): mixture.sources[0].sha256}
    assert mixture.sources[0].sha256 == sha256_of(file)


@pytest.mark.parametrize("how", REPLACED)
def test_what_is_read_and_digested_is_what_is_there_now(how, tmp_path):
    place, digests = tmp_path / "place", []
    place.mkdir()
    for text in ("old", "new"):
        REPLACED[how](place, text)
        for file in place.rglob("*"):
            os.utime(file, (1_700_000_000, 1_700_000_000))
        mixture = mix([f"correction-json::{place}"], seed=1)
        assert mixture.records[0].correction == text
        digests.append(mixture.sources[0].sha256)
    assert digests[0] != digests[1]


@pytest.mark.parametrize("name", UNUSED)
def test_a_column_that_nobody_reads_is_no_hindrance(name, tmp_path):
    features = {"info": {"features": {name: {"_type": "Image"}}}}  # what datasets would decode it as
    table = pa.Table.from_pylist(ROWS).append_column(name, UNUSED[name])
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    assert [r.correction for r in records(write(tmp_path / "rows.parquet", parquet(table)))] == [
        r["correction"] for r in ROWS
    ]


def test_the_bytes_of_a_column_that_nobody_reads_may_even_be_broken(tmp_path):
    table = pa.Table.from_pylist(ROWS).append_column("picture", pa.array([os.urandom(4000)] * 3))
    data = bytearray(parquet(table))
    place = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(0).column(3)
    assert place.path_in_schema == "picture"
    start = place.dictionary_page_offset or place.data_page_offset
    data[start : start + place.total_compressed_size] = b"\xff" * place.total_compressed_size
    file = write(tmp_path / "rows.parquet", bytes(data))
    assert len(records(file)) == 3
    assert "cannot be read as Parquet" in str(fault(file)), "who reads all columns is told"


def test_columns_are_the_same_however_they_are_cut_into_groups_and_read(tmp_path):
    rows = [{"question": f"q{n}", "answer": f"a{n}", "correction": "c" * (n % 50 + 1)} for n in range(2000)]
    for groups in (1, 7, 255, 256, 257, 1000, 5000):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=groups)
        assert [row.value for row in read_rows(tmp_path / "rows.parquet")] == rows
    from aligner.readers.rows import read_rows_lazily

    lazily = list(read_rows_lazily(tmp_path / "rows.parquet"))  # a column touched late, and out of order
    sink = [row.value["answer"] for row in lazily[1500:]] + [row.value["answer"] for row in reversed(lazily)]
    assert sink == [f"a{n}" for n in [*range(1500, 2000), *reversed(range(2000))]]


def test_text_of_a_column_that_is_not_utf8_is_a_fault_of_its_row(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"\xff\xfe", b"ok"]).buffers())
    file = write(tmp_path / "rows.parquet", parquet(table.set_column(1, "answer", broken)))
    rows = list(records_of(parse_spec(str(file))))
    assert [isinstance(row, DataError) for row in rows] == [False, True, False]
    assert rows[1].row == 2 and "'answer' is bytes and not text" in str(rows[1])


def test_the_fields_of_a_lazy_row_are_a_mapping(tmp_path):
    from aligner.readers.rows import read_rows_lazily

    row = next(iter(read_rows_lazily(write(tmp_path / "r.parquet", parquet(pa.Table.from_pylist(ROWS)))))).value
    assert dict(row) == {**row} == ROWS[0] and row.get("no") is None and "answer" in row and "no" not in row
    with pytest.raises(KeyError, match="no"):
        row["no"]


def test_pictures_of_a_saved_folder_are_not_decoded(tmp_path):
    from datasets import Dataset, Features, Image, Value

    features = Features({**{name: Value("string") for name in ROWS[0]}, "picture": Image(decode=True)})
    pictures = [{**row, "picture": {"bytes": b"no picture", "path": None}} for row in ROWS]
    Dataset.from_list(pictures, features=features).save_to_disk(str(tmp_path / "saved"))
    assert [r.correction for r in records(tmp_path / "saved")] == [row["correction"] for row in ROWS]


def test_a_saved_folder_is_read_whatever_feature_it_has_that_nobody_reads(tmp_path):
    """As one of a later version of datasets has, whose kind this one does not know."""
    from datasets import Dataset

    from aligner.readers.rows import read_rows_lazily

    folder = tmp_path / "saved"
    rows = [{**ROWS[0], "correction": str(n), "hologram": "x"} for n in range(700)]
    Dataset.from_list(rows).save_to_disk(str(folder), num_shards=2)
    for file in (folder / "dataset_info.json", *folder.glob("*.arrow")):
        data = file.read_bytes()
        start = data.index(b'"hologram": {')
        place = data.index(b'"Value"', start)
        file.write_bytes(data[:place] + b'"Novel"' + data[place + 7 :])
    assert [r.correction for r in records(folder)] == [str(n) for n in range(700)]
    lazily = list(read_rows_lazily(folder))
    assert [row.value["correction"] for row in reversed(lazily)] == [str(n) for n in reversed(range(700))]
    assert [row.origin.row for row in lazily] == list(range(1, 701))
    shard = sorted(folder.glob("*.arrow"))[1]
    shard.write_bytes(shard.read_bytes()[:-300])
    assert f"{shard}: cannot be read as Arrow" in str(fault(folder)), "cut off"


# --- folders and globs


@pytest.fixture
def shards(tmp_path) -> Path:
    folder = tmp_path / "shards"
    write(folder / "b-2.jsonl.gz", gzip.compress(json.dumps(ROWS[1]).encode()))
    write(folder / "b-1.csv", b'question,answer,correction\n"Why, and how?",x,y\n')
    write(folder / "c.parquet", parquet(pa.Table.from_pylist(ROWS[2:])))
    write(folder / "README.md", b"# not data")
    write(folder / ".hidden.json", b"[")
    return folder


def test_a_folder_is_its_files_in_order_of_name(shards, caplog):
    found = records(shards)
    assert [(Path(r.origin.file).name, r.origin.row) for r in found] == [
        ("b-1.csv", 1),
        ("b-2.jsonl.gz", 1),
        ("c.parquet", 1),
    ]
    assert "not read, by their names: README.md" in caplog.text
    source = mix([f"correction-json::{shards}"], seed=1).sources[0]
    assert source.files == {
        str(shards / name): sha256_of(shards / name) for name in ("b-1.csv", "b-2.jsonl.gz", "c.parquet")
    }
    write(shards / "c.parquet", parquet(pa.Table.from_pylist(ROWS[:1])))
    assert mix([str(shards)], seed=1).sources[0].sha256 != source.sha256


def test_a_glob_is_what_it_matches_in_order_of_name(shards):
    assert [Path(r.origin.file).name for r in records(f"{shards}/b-*")] == ["b-1.csv", "b-2.jsonl.gz"]
    assert [Path(r.origin.file).name for r in records(f"{shards}/[bc]*.[cp]*")] == ["b-1.csv", "c.parquet"]
    assert [file.name for file in data_files(f"{shards.parent}/**/*.gz")] == ["b-2.jsonl.gz"]
    assert len(mix([f"{shards}/b-*"], seed=1).records) == 2, "also as a bare path"
    assert sha256_of(f"{shards}/b-1*") == sha256_of(shards / "b-1.csv")
    assert "there is no such file, and nothing that matches" in str(fault(f"{shards}/x*"))


def test_a_folder_without_data_says_where_some_are(shards, tmp_path):
    assert f"holds no data files itself. Give one of {shards}" in str(fault(tmp_path))
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "part-00000", LINES)
    assert "Name files (part-00000) or a pattern" in str(fault(tmp_path / "other"))
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    assert "a symbolic link to nothing" in str(fault(tmp_path / "link.json"))


@pytest.mark.parametrize(
    "name", ["a[1]", "a*", "a?", "[ab]", "a::b", "hub:x", "s3:b", "a{1,2}", "\xfc b", "#", "a[!b]"]
)
def test_a_folder_is_the_one_of_that_name_and_what_matches_is_looked_for_in_it(name, tmp_path):
    write(tmp_path / "a1" / "t.json", b"[]")
    for path in (tmp_path / name, f"{tmp_path / name}/*.json", tmp_path / name / "t.json"):
        write(tmp_path / name / "t.json", json.dumps(ROWS).encode())
        assert {r.origin.file for r in records(path)} == {str(tmp_path / name / "t.json")}
    save(tmp_path / "saved", "c")
    (tmp_path / "saved").rename(tmp_path / f"{name} saved")
    assert [r.correction for r in records(tmp_path / f"{name} saved")] == ["c"]


def test_the_card_has_the_sha256_of_each_file(shards, tiny_model):
    from aligner.training.flags import parse
    from aligner.training.stages import make_card, stage_data, stages

    flags = ["--train_datasets", str(shards), "--output_dir", "x", "--model_name_or_path", str(tiny_model)]
    config = parse(flags)
    card = make_card(config, stages(config)[0], stage_data(config, "correction"), 8, {})
    assert list(card.data["train"][0]["files"]) == [str(file) for file in data_files(shards)]
    assert card.data["train"][0]["files"][str(shards / "c.parquet")] == sha256_of(shards / "c.parquet")


def test_an_output_is_never_one_of_the_files_that_are_read(shards):
    for data, output in ((shards, shards / "new.jsonl"), (f"{shards}/b-*", shards / "b-1.csv")):
        before = sorted(shards.iterdir())
        assert cli.main(["check", str(data), "--output", str(output)]) == 2
        assert sorted(shards.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("Anthropic/hh-rlhf", "For the hub's Anthropic/hh-rlhf write hh-rlhf."),
        ("hub:aligner/aligner-20K", "write aligner-20k."),
        ("some-org/some.set", "write correction-json::hub:some-org/some.set."),
    ],
)
def test_a_name_of_the_hub_is_answered_with_how_to_write_it(text, hint):
    with pytest.raises(UserError, match=hint.replace(".", r"\.")):
        parse_spec(text)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        print(table(Path(scratch)))
