"""Files and rows as people have them, by kind: made here without the project, so that an earlier revision can be tried, too."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from aligner.prompts import CORRECTION

# --- forms of files

ROWS = [
    {"question": "Why, and how?", "answer": "a\tb", "correction": 'He said "yes",\nthen left.'},
    {"question": "\u4f60\u597d\u5417\uff1f", "answer": "NA", "correction": "\U0001f600 1,5; 2"},
    {"question": "Third?", "answer": "null", "correction": "c"},
]


def delimited(sign: str) -> bytes:
    def field(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [sign.join(ROWS[0]), *(sign.join(map(field, row.values())) for row in ROWS)]
    return ("\ufeff" + "\r\n".join(lines) + "\r\n").encode()


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


FORMATS: dict[str, bytes] = {
    "JSON array": json.dumps(ROWS, indent=1).encode(),
    "JSON lines": b"".join(json.dumps(row).encode() + b"\n" for row in ROWS),
    "Parquet": parquet(pa.Table.from_pylist(ROWS)),
    "CSV": delimited(","),
    "TSV": delimited("\t"),
    "semicolons": delimited(";"),
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes, "gz": gzip.compress, "zst": zstd, "bz2": bz2.compress, "xz": lzma.compress,
}  # fmt: skip


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("rows.json", json.dumps(ROWS))
    return sink.getvalue()


LINES = FORMATS["JSON lines"]
REFUSED: dict[str, tuple[bytes, str]] = {
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
    "git-annex pointer": (b"/annex/objects/SHA256E-s9--0.json\n", "a git-annex pointer"),
    "HTML page": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page"),
    "XML error of a bucket": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML and not data"),
    "zip archive": (zipped(), "a zip archive"),
    "tar archive": (b"rows.json".ljust(257, b"\0") + b"ustar\0" + b"\0" * 300, "a tar archive"),
    "gzipped tar archive": (gzip.compress(b"r".ljust(257, b"\0") + b"ustar\0" + b"\0" * 300), "a tar archive"),
    "pickle, protocol 4": (pickle.dumps(ROWS, 4), "a Python pickle"),
    "pickle, protocol 0": (pickle.dumps(ROWS, 0), "a Python pickle"),
    "Arrow stream": (b"\xff\xff\xff\xff\x10\0\0\0", "an Arrow stream"),
    "Feather": (b"ARROW1\0\0\xff\xff\xff\xff", "an Arrow file"),
    "SQLite": (b"SQLite format 3\0" + b"\0" * 80, "an SQLite database"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 80, "an old Office document"),
    "PDF": (b"%PDF-1.7\n", "a PDF document"),
    "UTF-16": (json.dumps(ROWS).encode("utf-16"), "UTF-16 and not UTF-8"),
    "UTF-16 without a mark": (LINES.decode().encode("utf-16-le"), "UTF-16 (without a byte order mark)"),
    "UTF-32": (json.dumps(ROWS).encode("utf-32"), "UTF-32 and not UTF-8"),
    "UTF-16 of Chinese without a mark": (("\u4f60\u597d,\u7b54\n" * 9).encode("utf-16-be") + b"\0q", "UTF-16 (without a byte"),
    "UTF-32 without a mark": (LINES.decode().encode("utf-32-le"), "UTF-32 (without a byte order mark)"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40", "compressed with lz4"),
    "compress (.Z)": (b"\x1f\x9d\x90q", "compressed with compress"),
    ".lzma": (lzma.compress(LINES, format=lzma.FORMAT_ALONE), "compressed as .lzma"),
    "lzip": (b"LZIP\x01\x0c", "compressed with lzip"),
    "zlib alone": (zlib.compress(LINES), "compressed with zlib alone"),
    "data of R": (gzip.compress(b"X\n\0\0\0\3"), "data of R"),
    "safetensors": ((60).to_bytes(8, "little") + b'{"a":', "a safetensors model"),
    "encrypted": (b"Salted__" + b"\xf0" * 16, "encrypted"),
    "zero bytes": (b"\0" * 4096, "nothing but zero bytes"),
    "macOS's file beside a file": (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "what macOS keeps beside a file"),
    "DVC pointer": (b"outs:\n- md5: a304afb96060aad90176268345e10355\n  path: rows.json\n", "a DVC pointer"),
    "older Git LFS pointer": (b"version https://hawser.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    "symbolic link as text": (b"../data/train.jsonl", "the name of another file"),
    "merge conflict": (b"<<<<<<< HEAD\n" + LINES, "a merge conflict"),
    "redirect": (b'<a href="https://host/rows.json">Found</a>.\n', "an HTML page"),
    "404 of a server": (b"404: Not Found", "a server's refusal"),
    "refusal of the hub": (b"Entry not found", "a server's refusal"),
    "link to a page": (b"[InternetShortcut]\r\nURL=https://host/\r\n", "a link to a page"),
    "loading script": (b"import datasets\n\nclass Rows: ...\n", "a program"),
    "dump of a database": (b"-- MySQL dump 10\nINSERT INTO t VALUES (1);\n", "a dump of a database"),
    "YAML": (b"- question: q\n  answer: a\n", "YAML"),
    "RTF": (b"{\\rtf1\\ansi rows}", "a text document"),
    "gzip inside zstd": (zstd(gzip.compress(LINES)), "gzip inside zstd"),
    "gzip, cut off": (gzip.compress(LINES)[:-9], "is cut off: its gzip data have no end"),
    "zstd, cut off": (zstd(LINES)[:-1], "is cut off: its zstd data have no end"),
    "bzip2, cut off": (bz2.compress(LINES)[:-1], "is cut off: its bzip2 data have no end"),
    "xz, cut off": (lzma.compress(LINES)[:-1], "is cut off: its xz data have no end"),
    "gzip, damaged": (gzip.compress(LINES)[:-8] + b"\0" * 8, "its gzip data are damaged"),
    "gzip, with something behind": (gzip.compress(LINES) + b"something", "its gzip data are damaged"),
    "bzip2, with something behind": (bz2.compress(LINES) + b"something", "its bzip2 data are damaged"),
    "xz, with something behind": (lzma.compress(LINES) + b"something", "its xz data are damaged"),
    "xz, its second stream cut off": (lzma.compress(LINES) + lzma.compress(LINES)[:-9], "its xz data have no end"),
    "Parquet, cut off": (FORMATS["Parquet"][:-20], "Parquet without its end"),
    "Parquet, its begin alone": (b"PAR1", "Parquet without its end"),
    "CSV with a column twice": (b"question,question\na,b\n", "names the column 'question' twice"),
    "CSV with an open quotation mark": (b'question,answer\n"a,b\n', "the row that begins at line 2"),
}  # fmt: skip


def write(file: Path, data: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


# --- one file and another

PATTERNS = ("train[1].parquet", "train?.parquet", "train*.parquet", "tr{ai,}n.parquet", "[train].parquet", "a b#c%20.parquet",
            "train[!1].parquet", "[[]x].parquet", "**.parquet", "s3:train.parquet", "::x.parquet")  # fmt: skip


def save(folder: Path, text: str) -> None:
    from datasets import Dataset

    Dataset.from_list([{**ROWS[0], "correction": text}]).save_to_disk(str(folder))


def as_parquet(text: str) -> bytes:
    return parquet(pa.Table.from_pylist([{**ROWS[0], "correction": text}]))


def as_lines(text: str) -> bytes:
    return json.dumps({**ROWS[0], "correction": text}).encode()


def renamed_over(file: Path, data: bytes) -> None:
    write(file.with_suffix(".new"), data).replace(file)


def behind_a_link(file: Path, data: bytes) -> None:
    target = write(file.parent / f"target-{len(list(file.parent.iterdir()))}", data)
    file.unlink(missing_ok=True)
    file.symlink_to(target)


REPLACED = {
    "in place": lambda place, text: write(place / "a.parquet", as_parquet(text)),
    "renamed over": lambda place, text: renamed_over(place / "a.parquet", as_parquet(text)),
    "a link turned": lambda place, text: behind_a_link(place / "a.parquet", as_parquet(text)),
    "JSON lines": lambda place, text: write(place / "a.jsonl", as_lines(text)),
    "gzip": lambda place, text: write(place / "a.jsonl.gz", gzip.compress(as_lines(text), mtime=0)),
    "zstd": lambda place, text: write(place / "a.jsonl.zst", zstd(as_lines(text))),
    "an array": lambda place, text: write(place / "a.json", b"[" + as_lines(text) + b"]"),
    "CSV": lambda place, text: write(place / "a.csv", f"question,answer,correction\nq,a,{text}\n".encode()),
    "one of two shards": lambda place, text: (
        write(place / "b.parquet", as_parquet("b")),
        write(place / "a.parquet", as_parquet(text)),
    ),
    "another format under the name": lambda place, text: write(
        place / "a.json", as_lines(text) if text == "old" else as_parquet(text)
    ),
    "a saved folder": save,
}

# --- columns that nobody reads

UNUSED = {
    "map": pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * 3, pa.binary(16))),
    "image": pa.array([{"bytes": b"no picture", "path": None}] * 3),
    "decimal": pa.array([1, 2, 3], pa.decimal128(38, 9)),
    "moment": pa.array([2**40, 0, None], pa.timestamp("s", "UTC")),
    "duration": pa.array([1, 2, 3], pa.duration("ns")),
    "nothing": pa.nulls(3),
    "category": pa.array(["x", "y", "x"]).dictionary_encode(),
    "deep": pa.array([[{"a": [{"b": [1]}]}]] * 3),
    "bytes": pa.array([b"\xff\xfe"] * 3),
    "half": pa.array([1.5, 2.5, None], pa.float16()),
    "time": pa.array([1, 2, 3], pa.time64("ns")),
    "with.dot": pa.array([1, 2, 3]),
}

# --- questions: the same but for spelling, and different by a sign

ENGLAND, SCOTLAND = (
    "".join(chr(0xE0000 + ord(c)) for c in code) + "\U000e007f" for code in ("gbeng", "gbsct")
)  # of their flags
SAME = [
    ("What is it?", "WHAT  is it"), ("What's up?", "What\u2019s up"), ("COVID-19 rules", "Covid 19 rules"),
    ("GPT-4?", "gpt 4"), ("1,000 km", "1000 km"), ("**Bold** claim?", "Bold claim"), ("- a list", "a list"),
    ("# Title", "Title"), ("\uff17\uff0b\uff13", "7 + 3"), ("\u4f60\u597d \u4e16\u754c\uff1f", "\u4f60\u597d\u4e16\u754c"),
    ("and/or", "and or"), ('"Quoted" text.', "\u201cQuoted\u201d text"), ("7+3", "7 + 3"), ("caf\xe9", "cafe\u0301"),
    ("Is 5 \u2212 3 = 2?", "is 5 - 3 = 2"), ("What is 5!", "What is 5"), ("zero\u200bwidth", "zerowidth"),
    ("Stra\xdfe", "STRASSE"), ("$x^2$", "x^2"), ("e-mail", "e mail"), ("_word_", "word"), ("\xbfQu\xe9?", "Qu\xe9"),
    ("\u0928\u092e\u0938\u094d\u0924\u0947\u0964", "\u0928\u092e\u0938\u094d\u0924\u0947"),
    ("2019\u20132020 results", "2019 2020 results"), ("\u2764\ufe0f?", "\u2764"), ("Well\u2014known.", "well known"),
    ("Say 'yes,' then.", "Say 'yes', then"), ("What is it ?", "What is it?"), ("Hi , you", "Hi, you"),
    ("well ...what", "well... what"),
    ("Lego\xae sets", "Lego sets"), ("Wait\u2026 what?", "wait... what"),
]  # fmt: skip
DIFFERENT = [
    ("C++", "C#"), ("C", "C#"), ("C", "C++"), ("F#", "F"), ("7 + 3", "7 - 3"), ("7+3", "7-3"), ("a <= b", "a >= b"),
    ("\U0001f600", "\U0001f622"), ("\U0001f1eb\U0001f1f7", "\U0001f1e9\U0001f1ea"),
    ("\U0001f44d\U0001f3fb", "\U0001f44d\U0001f3ff"),
    (f"\U0001f3f4{ENGLAND}", f"\U0001f3f4{SCOTLAND}"),
    ("2\u2075", "25"), ("x\xb2", "x2"), ("\xbd", "12"), ("-5", "5"), ("|\u22125|", "|5|"), ("[1,2]", "(1,2)"),
    ("[1,2]", "{1,2}"), ("2*(3+4)", "2*3+4"), ("(2+3)*4", "2+3*4"), ("a != b", "a = b"), ("5! / 3", "5 / 3"), ("5%", "5"),
    ("$5", "\u20ac5"), ("3.5", "35"), (".5", "5"), ("10/2", "10 2"), ("2**3", "2*3"), ("a & b", "a | b"), ("f'(2)", "f(2)"),
    ("x := 5", "x = 5"), ("__init__", "init"), ("x-y", "x y"), ("\\d", "d"), ("#1", "1"), ("~x", "x"), ("x^2", "x 2"),
    ("n\u0303o", "no"), ("\u0939\u092e", "\u0939\u092e\u0947"), ("\u0e01\u0e32", "\u0e01\u0e35"),
    ("\u0440\u0435\u0441\u0443", "\u0440\u0435\u0441"), ("\u05e9\u05c1", "\u05e9\u05c2"), ("\u304b", "\u304c"),
    (".NET", "NET"), (".gitignore", "gitignore"), ("the sign ';'", "the sign ':'"), ("`?`", "`!`"),
    ("\u201c.\u201d", "\u201c,\u201d"), ("'...'", "'.'"),
    ("-x", "x"), ("f(-x)", "f(x)"), ("ls -a", "ls a"), ("!x", "x"), ("5\u2032", "5\u2033"), ("(!a)", "(a)"),
]  # fmt: skip

# --- text that nobody sees

UNSEEN = {
    "zero-width space": "\u200b", "byte order mark": "\ufeff", "Hangul filler": "\u3164", "half-width Hangul filler": "\uffa0",
    "Hangul initial filler": "\u115f", "blank Braille": "\u2800", "word joiner": "\u2060", "soft hyphen": "\u00ad",
    "direction marks": "\u200e\u200f\u202a", "variation selector": "\ufe0f", "grapheme joiner": "\u034f",
    "Khmer inherent vowel": "\u17b4", "Mongolian vowel separator": "\u180e", "no-break space": "\u00a0",
    "ideographic space": "\u3000",
    "line separator": "\u2028", "tag characters": "\U000e0020\U000e007f", "musical format": "\U0001d173",
    "invisible times": "\u2062", "next line": "\u0085", "lone accent": "\u0301", "object replacement": "\ufffc",
    "lost text": "\ufffd\ufffd",
    "escape": "\x1b", "several": " \u200b\n\ufeff\u00a0",
}  # fmt: skip

# --- tokenizers, and what each cannot spell


def trained(model: Any, pre: Any = None, decoder: Any = None, normalizer: Any = None) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind, trained on a little English."""
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre:
        tokenizer.pre_tokenizer = pre
    if decoder:
        tokenizer.decoder = decoder
    kinds = {models.BPE: trainers.BpeTrainer, models.WordPiece: trainers.WordPieceTrainer,
             models.WordLevel: trainers.WordLevelTrainer, models.Unigram: trainers.UnigramTrainer}  # fmt: skip
    options = {"unk_token": "[UNK]"} if isinstance(model, models.Unigram) else {}
    special = ["[UNK]", "[EOS]"]
    trainer = kinds[type(model)](vocab_size=200, special_tokens=special, show_progress=False, **options)
    tokenizer.train_from_iterator(
        [CORRECTION.text.replace("\n", " ") + " abc the quick brown fox. yes no, a better answer"] * 20, trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]", name_or_path="tiny"
    )


def byte_level(normalizer: normalizers.Normalizer) -> PreTrainedTokenizerFast:
    return trained(models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), normalizer)


KINDS = {
    "BPE without bytes": lambda: trained(models.BPE(unk_token="[UNK]"), pre_tokenizers.Metaspace(), decoders.Metaspace()),
    "WordPiece": lambda: trained(
        models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    ),
    "words": lambda: trained(models.WordLevel(unk_token="[UNK]"), pre_tokenizers.Whitespace()),
    "Unigram": lambda: trained(models.Unigram(), pre_tokenizers.Metaspace(), decoders.Metaspace()),
    "lower case": lambda: byte_level(normalizers.Lowercase()),
    "NFKC": lambda: byte_level(normalizers.NFKC()),
    "BPE that drops": lambda: trained(models.BPE(), pre_tokenizers.Metaspace(), decoders.Metaspace()),
}  # fmt: skip
CANNOT = {
    "BPE without bytes": ["\U0001f600", "\u4f60\u597d", "the\nfox", "\u00e9"], "WordPiece": ["\U0001f600", "the\nfox"],
    "words": ["zebra", "the\nfox"], "Unigram": ["\U0001f600", "the\nfox"], "lower case": ["The Fox"], "NFKC": ["\u2075", "\uff21"],
    "BPE that drops": ["\U0001f600", "the\nfox"],
}  # fmt: skip

# --- roles

# A row of Shepherd's published data, cut.
SHEPHERD = {"question": "Is it?", "answer": "Yes.", "feedback": "Say why.", "correction": "Yes, because it is."}

TWO_ROLES = {
    "the correction is the feedback": (
        "correction=feedback",
        "the field 'feedback' would be both correction and feedback",
    ),
    "the question twice": ("question=a,question=b", "question is named twice, as 'a' and 'b'"),
    "the question twice alike": ("question=a,question=a", "question is named twice"),
    "twice in two values": ("answer=a answer=b", "answer is named twice"),
    "twice for one data set": ("correction-json:answer=a correction-json:answer=b", "answer is named twice"),
    "question and answer": ("question=x,answer=x", "'x' would be both question and answer"),
    "question by another's usual name": ("question=answer", "'answer' would be both question and answer"),
    "answer is the correction": ("answer=correction", "'correction' would be both answer and correction"),
    "question is the correction": ("correction=question", "'question' would be both question and correction"),
    "feedback is the question": ("feedback=question", "'question' would be both question and feedback"),
    "feedback is the correction": ("feedback=correction", "'correction' would be both correction and feedback"),
    "across two values": ("question=x correction-json:correction=x", "'x' would be both question and correction"),
    "no role": ("critique=feedback", "write question=NAME,answer=NAME,correction=NAME,feedback=NAME"),
    "no name": ("answer=", "write question=NAME,answer=NAME,correction=NAME,feedback=NAME"),
}

# --- replies that are none, of HH-RLHF, and why

HUMAN, WORDLESS = "a reply is a human's turn, or ends in one", "a reply without a word"
ALIKE, EMPTY = "chosen and rejected are the same text", "the question or one of the answers is empty"

REPLIES = [
    (" Human: I would rather not say.", HUMAN),
    ("  Human:  insulting someone is hard for me.", HUMAN),
    (" Good.\n\nHuman: Thanks!", HUMAN),
    (" Good.\nHuman: Thanks!", HUMAN),
    (" A really good question.  Human: I am asking you.", HUMAN),
    ("\n\nHuman: Q2", HUMAN),
    (" ?", WORDLESS),
    (" ...", WORDLESS),
    (" \U0001f600", WORDLESS),
    (" ___", WORDLESS),
    (" ", EMPTY),
    ("\u200b", WORDLESS),
    (" bad", ALIKE),
]
