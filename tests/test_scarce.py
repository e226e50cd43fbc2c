"""Commands where something is scarce: a full disk, low limits of the process, files that this user may not read or write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TEMPLATE, read_rows
from disturbed import small_disk

pytestmark = pytest.mark.slow
SIZE = 1 << 20  # bytes of the disk
WRITERS = {  # what writes, and whether it needs a model
    "checked rows": "check TEMPLATE --output OUT/clean.jsonl",
    "token ids": "check TEMPLATE --model_name_or_path MODEL --dump OUT/dump.jsonl",
    "corrections": "correct --model RUN --input ROWS --output OUT/out.jsonl --max_new_tokens 4 --keep_unfinished",
    "a picture": "calibrate --model RUN --input ROWS --output OUT/gate.png --max_new_tokens 4",
    "a report": "evaluate --after ROWS --output OUT/report",
    "a measure": "evaluate --measure restoration --rows TEMPLATE --models RUN --limit 4 --control_limit 2 --output OUT/measure",
    "an export": "export STATE --output OUT/model",
}


@pytest.fixture
def words(trained, tiny_model, tmp_path):
    """A command line with this session's model, run, state and rows in it."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in read_rows(TEMPLATE, 24)))
    [state] = (trained[0] / "checkpoints").iterdir()
    places = {"TEMPLATE": TEMPLATE, "MODEL": tiny_model, "RUN": trained[0], "STATE": state, "ROWS": rows}

    def filled(line: str, out: Path) -> list[str]:
        for name, place in {**places, "OUT": out}.items():
            line = line.replace(name, str(place))
        return line.split()

    return filled


def aligner(words: list[str], before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run(
        [*before, sys.executable, "-m", "aligner", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def finding(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that ended as a user can mend it."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def fill(disk: Path, room: int) -> None:
    """Leave so many bytes."""
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - room))


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_named_and_nothing_half_written_is_left(what, words, tmp_path):
    with small_disk(tmp_path / "disk", str(SIZE)) as disk:
        fill(disk, 0)
        line = finding(aligner(words(WRITERS[what], disk)))
        assert str(disk) in line and "No space left on device" in line
        left = [p for p in disk.rglob("*") if p.is_file() and p.stat().st_size and p.name != "other"]
        assert not left and not list(disk.rglob("*.partial")), left


def test_a_correction_that_filled_the_disk_goes_on_where_it_was(words, tmp_path):
    command = WRITERS["corrections"]
    assert aligner(words(command, tmp_path)).returncode == 0
    with small_disk(tmp_path / "disk", str(SIZE)) as disk:
        fill(disk, 8192)
        assert "out.jsonl" in finding(aligner(words(command, disk)))
        assert (disk / "out.jsonl.journal").stat().st_size, "some rows were corrected"
        (disk / "other").unlink()
        done = aligner(words(command, disk))
        assert done.returncode == 0, done.stderr
        assert (disk / "out.jsonl").read_text() == (tmp_path / "out.jsonl").read_text()


LIMITS = {
    "memory": ("ulimit -v 300000", "gets no more memory (ulimit -v)"),
    "the size of a file": ("ulimit -f 1", "File too large"),
    "open files": ("ulimit -n 5", "pen files"),
}


@pytest.mark.parametrize("what", LIMITS)
def test_a_limit_of_the_process_is_named(what, words, tmp_path):
    limit, said = LIMITS[what]
    before = ("bash", "-c", f'{limit}; exec "$@"', "bash")
    line = finding(aligner(words(WRITERS["corrections"], tmp_path), before))
    assert said in line, line


def test_64_open_files_are_enough_for_a_correction(words, tmp_path):
    done = aligner(words(WRITERS["corrections"], tmp_path), ("bash", "-c", 'ulimit -n 64; exec "$@"', "bash"))
    assert done.returncode == 0, done.stderr


FORBIDDEN = {
    "rows": ("ROWS", "corrections"),
    "rows to check": ("ROWS", "a report"),
    "a model's weights": ("RUN/model.safetensors", "corrections"),
    "a model's configuration": ("RUN/config.json", "corrections"),
    "a card": ("RUN/aligner.json", "corrections"),
    "a tokenizer": ("RUN/tokenizer.json", "corrections"),
    "a model folder": ("RUN", "corrections"),
    "a state": ("STATE", "an export"),
    "an output folder": ("OUT", "corrections"),
    "an output folder of a report": ("OUT", "a report"),
    "an output folder of an export": ("OUT", "an export"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_file_of_another_users_is_named(what, words, tmp_path):
    """Of mode 0, to a user who is not almighty: what root may otherwise is given up."""
    powerless = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
    if not shutil.which("setpriv") or subprocess.run([*powerless, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs setpriv")
    place, command = FORBIDDEN[what]
    out = tmp_path / "out"
    out.mkdir()
    own = shutil.copytree(words("RUN", out)[0], tmp_path / "run")
    filled = [word.replace(words("RUN", out)[0], str(own)) for word in words(f"{place} {WRITERS[command]}", out)]
    closed, line = Path(filled[0]), filled[1:]
    mode = closed.stat().st_mode & 0o777
    closed.chmod(0)
    try:
        said = finding(aligner(line, powerless))
    finally:
        closed.chmod(mode)
    assert "ermission denied" in said and str(closed.name) in said, said
