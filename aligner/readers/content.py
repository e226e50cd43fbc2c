"""What the bytes of a file are, whatever its name says: decompressed in blocks, the format seen, what is not data named."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import lzma
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from aligner.records import DataError

BLOCK = 1 << 20  # bytes read at once
HEAD = 4096  # bytes that a format is told from
LONGEST_LINE = 64 << 20  # bytes of a line, or of one row of a JSON array
SMALLEST_LIMIT = 1 << 30  # bytes that any compressed file may become
LARGEST_RATIO = 100  # times its size that a larger one may become

COMPRESSIONS = {  # each by what its files begin with
    "gzip": re.compile(rb"\x1f\x8b"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
}
UNPACK, SAVE, NO_DATA = (
    "Unpack it and give the file inside",
    "Save the rows as JSON lines, Parquet or CSV",
    "Give a file of rows",
)
BINARIES = (  # what the bytes begin with, what they are, what to do
    (rb"PK(?:\x03\x04|\x05\x06)", "a zip archive (Excel's xlsx is one too)", UNPACK),
    (rb".{257}ustar", "a tar archive", UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (rb"Rar!\x1a\x07", "a rar archive", UNPACK),
    (rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18", "compressed with lz4", UNPACK),
    (rb"\x1f[\x9d\xa0]", "compressed with compress (.Z)", UNPACK),
    (rb"LZIP\x01", "compressed with lzip", UNPACK),
    (rb"\x5d\0\0.{2}[\0\xff]", "compressed as .lzma, the form before xz", UNPACK),
    (rb"x[\x01\x9c\xda]", "compressed with zlib alone", UNPACK),
    (rb"\xff\x06\0\0sNaPpY", "compressed with snappy", UNPACK),
    (
        rb"\x80[\x02-\x05]|\((?:[ld]p\d)|c(?:copy_reg|__builtin__|builtins|collections|numpy[\w.]*|pandas[\w.]*)\n",
        "a Python pickle, which can run code and is not opened",
        SAVE,
    ),
    (rb"ARROW1\0\0", "an Arrow file (Feather)", "Save the rows as Parquet"),
    (rb"\xff\xff\xff\xff", "an Arrow stream", "Give the folder that datasets saved, or save the rows as Parquet"),
    (rb"PARE[^ -~]", "an encrypted Parquet file", "Decrypt it"),
    (rb"ORC[^ -~]", "an ORC file", SAVE),
    (rb"Obj\x01", "an Avro file", SAVE),
    (rb"SQLite format 3\0", "an SQLite database", SAVE),
    (rb"\x89HDF\r\n", "an HDF5 file", SAVE),
    (rb"\x93NUMPY", "a NumPy array", SAVE),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (xls, doc)", SAVE),
    (rb"%PDF-", "a PDF document", SAVE),
    (rb"GGUF[^ -~]", "a GGUF model", NO_DATA),
    (rb"(?:RD[AX]3\n)?[XA]\n\0\0\0[\x02\x03]", "data of R (rds, RData)", SAVE),
    (rb".{8}DUCK", "a DuckDB database", SAVE),
    (rb".{3}\0{5}\{", "a safetensors model", NO_DATA),
    (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8", "a picture", NO_DATA),
    (rb"RIFF.{4}(?:WAVE|WEBP|AVI )|ID3[\x02-\x04]|OggS\0|fLaC", "sound, a picture or a film", NO_DATA),
    (rb"Salted__|age-encryption\.org/", "encrypted", "Decrypt it"),
    (rb"\0\x05\x16[\0\x07]", "what macOS keeps beside a file (._NAME)", "Give the file itself"),
    (rb"\0{16}|\0+$", "nothing but zero bytes where data should begin", "Fetch it anew"),
    (rb"\x7fELF", "a program", NO_DATA),
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32 and not UTF-8", "Save the file as UTF-8"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 and not UTF-8", "Save the file as UTF-8"),
)
TEXTS = (
    (
        r"version https?://(?:git-lfs|hawser|git-media)\.[a-z.]+/",
        "a Git LFS pointer and not the file",
        "Fetch it with 'git lfs pull'",
    ),
    (
        r"(?:\.\./)*(?:\.git/annex/objects|/annex/objects)/",
        "a git-annex pointer and not the file",
        "Fetch it with 'git annex get'",
    ),
    (
        r"(?:\w+: .*\n)*outs:\s*\n\s*- (?:md5|etag|hash|path|size):",
        "a DVC pointer and not the file",
        "Fetch it with 'dvc pull'",
    ),
    (
        r"[\w./~-]{1,200}\.(?:jsonl?|ndjson|parquet|pq|csv|tsv)(?:\.gz|\.zst|\.bz2|\.xz)?\s*\Z",
        "the name of another file: a symbolic link, checked out as text",
        "Give the file that it names",
    ),
    (
        r"<{7} |(?:diff --git|Index:) ",
        "a merge conflict or a patch",
        "Give the file itself, with the conflict resolved",
    ),
    (
        r"<(?:!doctype\s+html|html|head|body|!--|a\s|title|script|meta|div|p)\b|<!--",
        "an HTML page and not data",
        "Download the file itself (its raw address)",
    ),
    (r"<[?!/]?[a-z]", "XML and not data", "A failed download often is: fetch it anew"),
    (
        r"(?:error\W*)?(?:[45]\d\d\W+)?(?:(?:entry|file|page|repository|object)\s+)?(?:not found|forbidden|unauthorized|"
        r"access denied|invalid username or password|access to (?:this )?\w+ \S+ is restricted|too many requests|bad gateway|"
        r"internal server error|service unavailable|gateway time-?out)\b[^\n]*\s*\Z",
        "a server's refusal and not data",
        "Fetch it anew: its address, or the token for it, is wrong",
    ),
    (r"\[InternetShortcut\]", "a link to a page and not the file", "Download what it points at"),
    (r"-----BEGIN PGP MESSAGE", "encrypted", "Decrypt it"),
    (r"-----BEGIN ", "a key or certificate", "Give data"),
    (r"\{\\rtf", "a text document (RTF)", SAVE),
    (r"#!|(?:import|from) [\w.]+(?:\s+(?:import|as)\b|\r?\n)", "a program", "Give the file of rows that it reads"),
    (r"--\s.*(?:SQL|dump)|(?:CREATE TABLE|INSERT INTO|BEGIN TRANSACTION|PRAGMA )\b", "a dump of a database", SAVE),
    (r"\[\[?[a-z_][\w.-]*\]?\]\s*\n\s*[\w-]+ *=", "TOML", SAVE),
    (r"%YAML|---\r?\n|- [\w-]+:(?:\s|\Z)", "YAML", SAVE),
)


def blocks_of(file: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed, in blocks. DataError where it is cut off, damaged or becomes far too large."""
    with file.open("rb") as raw:
        head = raw.read(16)
        raw.seek(0)
        compression = compression_of(head)
        if compression is None:
            while block := raw.read(BLOCK):
                yield block
            return
        limit, size = limit_of(file.stat().st_size), 0
        for block in _decompressed(file, raw, compression):
            size += len(block)
            if size > limit:
                problem = f"becomes more than {limit >> 20:,} MiB when decompressed, from {file.stat().st_size:,} bytes"
                raise DataError(str(file), None, problem, "Decompress it yourself if that is what it should be")
            yield block


def limit_of(size: int) -> int:
    """How many bytes a compressed file of this size may become."""
    return max(SMALLEST_LIMIT, LARGEST_RATIO * size)


def compression_of(head: bytes) -> str | None:
    """How a file is compressed, by its first bytes."""
    return next((name for name, magic in COMPRESSIONS.items() if magic.match(head)), None)


def _decompressed(file: Path, raw: IO[bytes], compression: str) -> Iterator[bytes]:
    try:
        stream = _open_compressed(raw, compression)
        first = next(stream, b"")
        if inner := compression_of(first[:16]):
            raise DataError(str(file), None, f"is {inner} inside {compression}", "Decompress it once")
        yield first
        yield from stream
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the archive's
            raise
        if isinstance(error, EOFError) or "Truncated" in str(error):
            raise DataError(
                str(file), None, f"is cut off: its {compression} data have no end", "Fetch it anew"
            ) from None
        problem = f"its {compression} data are damaged ({' '.join(str(error).split())})"
        raise DataError(str(file), None, problem, "Fetch it anew") from None


def _open_compressed(raw: IO[bytes], compression: str) -> Iterator[bytes]:
    if compression in ("bzip2", "xz"):
        return _streams(raw, {"bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}[compression])
    if compression == "gzip":
        return _read(gzip.open(raw))
    import pyarrow

    return _read(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd"))


def _read(stream: Any) -> Iterator[bytes]:
    while block := stream.read(BLOCK):
        yield block


def _streams(raw: IO[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    """The data of streams that stand one after the other, or with zeros between them.

    Python's own files of bz2 and xz end in silence where what follows is no stream: rows would be lost.
    """
    rest = b""
    while rest := _past_zeros(raw, rest):
        stream = new()
        while not stream.eof:
            if stream.needs_input and not (rest := rest or raw.read(BLOCK)):
                raise EOFError
            block, rest = stream.decompress(rest, BLOCK), b""
            if block:
                yield block
        rest = stream.unused_data


def _past_zeros(raw: IO[bytes], rest: bytes) -> bytes:
    while not (rest := rest.lstrip(b"\0")):
        if not (rest := raw.read(BLOCK)):
            return b""
    return rest


def format_of(file: Path) -> tuple[str, Iterator[bytes]]:
    """What a file holds ("array", "lines", "parquet", or the delimiter of a table), and its blocks from the start.

    The content decides; the name is a hint for tables of one column. DataError names what is not data.
    """
    blocks = blocks_of(file)
    first = b""
    while len(first) < HEAD and (block := next(blocks, b"")):
        first += block
    if (name := _other_kind(first)) is not None:
        raise DataError(str(file), None, f"is {name[0]}", name[1])
    whole = chain((first,), blocks)
    if re.match(rb"PAR1(?:[^ -~]|$)", first):
        return "parquet", whole
    text = first.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    if text[:1] in ("[", "{"):
        return {"[": "array", "{": "lines"}[text[0]], whole
    return delimiter_of(text, file.name.lower()) or "lines", whole


def _other_kind(head: bytes) -> tuple[str, str] | None:
    """What the first bytes say a file is, and the remedy, where it is not data."""
    for magic, name, remedy in BINARIES:
        if re.match(magic, head, re.DOTALL):
            return name, remedy
    if encoding := _wide_encoding(head[:HEAD]):
        return f"{encoding} (without a byte order mark) and not UTF-8", "Save the file as UTF-8"
    text = head[:HEAD].decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    for pattern, name, remedy in TEXTS:
        if re.match(pattern, text, re.IGNORECASE):
            return name, remedy
    return None


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32 where the bytes are text in it: they hold a zero byte, which no text in UTF-8 does."""
    if 0 not in head:
        return None
    for name in ("UTF-32-LE", "UTF-32-BE", "UTF-16-LE", "UTF-16-BE"):
        try:
            text = codecs.getincrementaldecoder(name)().decode(head)
        except UnicodeDecodeError:
            continue
        if text and all(c in "\t\r\n" or unicodedata.category(c) not in ("Cc", "Cn", "Co", "Cs") for c in text):
            return name[:6]
    return None


def delimiter_of(text: str, name: str) -> str | None:
    """What separates the fields of a table with a header, seen in its first line; None where it is no table."""
    if excel := re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE):
        return excel[1]
    stem = re.sub(r"\.(?:gz|zst|bz2|xz)$", "", name)
    hint = {".csv": ",", ".tsv": "\t"}.get(stem[-4:])
    header = re.split(r"[\r\n]", text, maxsplit=1)[0]
    counted = [(len(_header_names(header, sign)), sign) for sign in ("\t", ",", ";")]
    columns, sign = max(counted, key=lambda pair: (pair[0], pair[1] == hint))
    return sign if columns > 1 else hint


def _header_names(header: str, sign: str) -> list[str]:
    """The names of a header line, where they look like names; else none."""
    try:
        names = next(csv.reader([header], delimiter=sign, strict=True), [])
    except csv.Error:
        return []
    good = all(re.fullmatch(r"[\w .()/#?&%'+*-]{0,64}", name) for name in names) and any(map(str.strip, names))
    return names if good else []


def lines_of(blocks: Iterator[bytes]) -> Iterator[bytes | None]:
    """The lines of a file without their line feed; None in place of one that is longer than any row can be."""
    rest, skipping = b"", False
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield None if skipping or len(line) > LONGEST_LINE else line
            skipping = False
        if len(rest) > LONGEST_LINE:
            rest, skipping = b"", True
    if skipping or rest:
        yield None if skipping else rest
