"""Whole commands in surroundings of clusters and containers: file systems that refuse calls, other users, readers that leave."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TEMPLATE, sft
from test_environment_script import in_read_only, silent_port

from aligner import cli, console
from aligner.records import Origin


def flags(model: Path, folder: Path, *more: object) -> list[str]:
    """Four updates of a tiny model with a state after the second."""
    return [
        "--train_datasets", f"correction-json:32/-1:{TEMPLATE}", "--model_name_or_path", str(model), "--output_dir", str(folder),
        "--epochs", "2", "--records_per_update", "16", "--max_length", "512", "--bf16", "False", "--log_type", "none",
        "--save_interval", "2", "--show_corrections", "0", *map(str, more),
    ]  # fmt: skip


@pytest.fixture(scope="session")
def refusing(tmp_path_factory) -> Path:
    """A library to preload that lets a file system refuse calls."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    library = tmp_path_factory.mktemp("refuse") / "refuse.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", library, ROOT / "tests/programs/refuse.c", "-ldl"], check=True
    )
    return library


def whole_folder(folder: Path) -> bool:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder)
    return (folder / "COMPLETED").is_file() and not list(folder.glob("**/*.partial"))


KINDNESS = {
    "chmod is not permitted": f"chmod={errno.EPERM}",
    "chmod is not implemented": f"chmod={errno.ENOSYS}",
    "chmod is not supported": f"chmod={errno.EOPNOTSUPP}",
    "fsync is not supported": f"fsync={errno.EINVAL}",
    "fsync is not implemented": f"fsync={errno.ENOSYS}",
    "a folder cannot be renamed": f"rename_dir={errno.ENOSYS}",
    "a folder may not be renamed": f"rename_dir={errno.EPERM}",
    "a folder is across devices": f"rename_dir={errno.EXDEV}",
    "a folder has too many files to be renamed": f"rename_dir={errno.EMFILE}",
    "there are no locks": f"flock={errno.ENOLCK}",
    "locks are not implemented": f"flock={errno.ENOSYS}",
    "times cannot be set": f"utime={errno.EPERM}",
    "there are no links": f"link={errno.EPERM} symlink={errno.EPERM}",
    "all of these": f"chmod={errno.EPERM} fsync={errno.EINVAL} rename_dir={errno.EMFILE} flock={errno.ENOLCK} utime={errno.EPERM}",
}


@pytest.mark.slow
@pytest.mark.kind("a file system that refuses kindness")
@pytest.mark.parametrize("how", KINDNESS)
def test_a_run_ends_well_on_a_file_system_that_refuses(how, refusing, tiny_model, tmp_path):
    out = tmp_path / "mount" / "out"
    refuse = {"LD_PRELOAD": str(refusing), "REFUSE": KINDNESS[how], "REFUSE_UNDER": str(tmp_path / "mount")}
    done = sft(*flags(tiny_model, out, "--gpus", 1), **refuse)
    assert done.returncode == 0, done.stdout + done.stderr
    assert whole_folder(out)
    states = [state.name for state in (out / "checkpoints").iterdir()]
    assert states == ["update-4"] and (out / "checkpoints/update-4/COMPLETED").is_file()


NEEDED = {
    "a file cannot be renamed": f"rename_file={errno.ENOSYS}",
    "a file may not be renamed": f"rename_file={errno.EPERM}",
    "a file may not be replaced": f"rename_file={errno.EACCES}",
    "a file is across devices": f"rename_file={errno.EXDEV}",
    "the call is not valid": f"rename_file={errno.EINVAL}",
    "the mount became read-only": f"rename_file={errno.EROFS}",
    "the mount is damaged": f"rename_file={errno.EIO}",
    "the file is busy": f"rename_file={errno.EBUSY}",
    "the server's handle is stale": f"rename_file={errno.ESTALE}",
    "the quota is used up": f"rename_file={errno.EDQUOT}",
    "the names are used up": f"rename_file={errno.EMFILE}",
    "the call is not for this": f"rename_file={errno.ENOTTY}",
    "renaming is not supported": f"rename_file={errno.EOPNOTSUPP} rename_dir={errno.EOPNOTSUPP}",
}


@pytest.mark.slow
@pytest.mark.kind("a file system that refuses what is needed")
@pytest.mark.parametrize("how", NEEDED)
def test_what_a_run_needs_of_a_file_system_is_tried_before_it(how, refusing, tiny_model, tmp_path):
    refuse = {"LD_PRELOAD": str(refusing), "REFUSE": NEEDED[how], "REFUSE_UNDER": str(tmp_path / "mount")}
    done = sft(*flags(tiny_model, tmp_path / "mount/out", "--gpus", 1), **refuse)
    assert done.returncode == 2, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "cannot rename a file" in said[0] and "--output_dir" in said[0]
    assert "update" not in done.stdout


@pytest.mark.slow
@pytest.mark.kind("a read-only checkout")
def test_an_output_that_cannot_be_written_names_the_flag(tiny_model, tmp_path):
    (tmp_path / "image").mkdir()
    command = [
        *in_read_only(tmp_path / "image"),
        sys.executable,
        "-m",
        "aligner.launch",
        *flags(tiny_model, tmp_path / "image/out"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2 and "--output_dir" in done.stderr and "Read-only file system" in done.stderr, (
        done.stderr
    )


IN_IMAGE = {
    "rows are checked": (0, "-m", "aligner", "check", TEMPLATE),
    "rows are checked with a tokenizer": (0, "-m", "aligner", "check", TEMPLATE, "--model_name_or_path", "MODEL"),
    "a run is tried": (0, "-m", "aligner.launch", "--train_datasets", TEMPLATE, "--model_name_or_path", "MODEL", "--output_dir",
                       "ELSEWHERE", "--dry_run"),
    "the help is read": (0, "-m", "aligner.launch", "--help"),
    "the doctor is asked": (0, "-m", "aligner", "doctor", "--output_dir", "ELSEWHERE"),
    "the linter runs": (0, "-m", "ruff", "check", "--no-cache", "aligner/readers"),
    "a test runs": (0, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_columns.py"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.kind("a read-only checkout")
@pytest.mark.parametrize("how", IN_IMAGE)
def test_what_a_read_only_checkout_can_do(how, tiny_model, tmp_path):
    places = {"MODEL": tiny_model, "ELSEWHERE": tmp_path / "out"}
    status, *words = IN_IMAGE[how]
    command = [*in_read_only(ROOT), sys.executable, *(str(places.get(str(word), word)) for word in words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=env)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stdout + done.stderr


# --- one folder, several users


def check_output(folder: Path) -> None:
    assert cli.main(["check", str(TEMPLATE), "--output", str(folder / "rows.jsonl")]) == 0


def cached_tokens(folder: Path) -> None:
    from aligner.training.datasets import cache
    from aligner.training.datasets.supervised import Tally, Tokens

    row = Tokens(np.array([1, 2]), 1, Origin("f", 1), False, False)
    cache._write(folder / "tokens.npz", [row], Tally())


def lines_one_by_one(folder: Path) -> None:
    from aligner.files import line_writer

    with line_writer(folder / "lines.jsonl") as write:
        write({"a": 1})


def moved_folder(folder: Path) -> None:
    from aligner.files import whole_folder as whole

    with whole(folder / "model") as place:
        (place / "weights").write_bytes(b"w")


def written(name: str, *values: object):
    """A function of aligner.files that writes a file."""

    def act(folder: Path) -> None:
        from aligner import files

        getattr(files, name)(folder / "file", *values)

    return act


WRITERS = {
    "text": written("write_text", "text"),
    "JSON": written("write_json", {"a": 1}),
    "lines": written("write_lines", [{"a": 1}]),
    "lines one by one": lines_one_by_one,
    "a folder": moved_folder,
    "checked rows": check_output,
    "cached tokens": cached_tokens,
}


@pytest.mark.kind("files for several users")
@pytest.mark.parametrize("mask", (0o000, 0o002, 0o027, 0o077), ids=oct)
@pytest.mark.parametrize("what", WRITERS)
def test_a_file_has_the_mode_of_the_umask(what, mask, tmp_path):
    (tmp_path / "shared").mkdir()
    before = os.umask(mask)
    try:
        WRITERS[what](tmp_path / "shared")
    finally:
        os.umask(before)
    files = [file for file in (tmp_path / "shared").rglob("*") if file.is_file() and not file.name.endswith(".lock")]
    assert files and {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~mask}


@pytest.mark.slow
@pytest.mark.kind("files for several users")
@pytest.mark.parametrize("umask", (0o022, 0o002, 0o077), ids=oct)
def test_what_a_run_writes_has_the_mode_of_the_umask(umask, tiny_model, tmp_path):
    script = f'umask {umask:o}; exec "$@"'
    command = [
        "sh",
        "-c",
        script,
        "sh",
        sys.executable,
        "-m",
        "aligner.launch",
        *flags(tiny_model, tmp_path / "out", "--gpus", 1),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    modes = {
        stat.S_IMODE(file.stat().st_mode)
        for file in (tmp_path / "out").rglob("*")
        if file.is_file() and file.name != ".lock"
    }
    assert modes <= {0o666 & ~umask, 0o777 & ~umask}, {oct(mode) for mode in modes}


# --- readers that go away


READERS = {
    "head -1": "head -1",
    "head -c 1": "head -c 1",
    "nobody": "true",
    "one that ends later": "(sleep 5)",
    "both outputs": None,
}


@pytest.mark.slow
@pytest.mark.kind("a reader that goes away")
@pytest.mark.parametrize("how", READERS)
def test_a_run_outlives_its_reader(how, tiny_model, tmp_path):
    words = [sys.executable, "-m", "aligner.launch", *flags(tiny_model, tmp_path / "out", "--gpus", 1)]
    reader = f"| {READERS[how]}" if READERS[how] else "2>&1 | true"
    done = subprocess.run(
        ["bash", "-c", f'"$@" {reader}; exit "${{PIPESTATUS[0]}}"', "bash", *words], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "out/COMPLETED").is_file()


CLOSED = {
    "head -1": ("| head -1", 0),
    "sed q": ("| sed q", 0),
    "grep -m1": ("| grep -m1 .", 0),
    "nobody": ("| true", 0),
    "nobody, of both": ("2>&1 | true", 0),
    "one of both": ("2> >(true) | true", 0),
    "no output": (">&-", 0),
    "no errors": ("2>&-", 0),
    "neither": (">&- 2>&-", 0),
    "no input": ("<&-", 0),
    "a full disk": (">/dev/full", None),  # whatever the status: no traceback
}


@pytest.mark.slow
@pytest.mark.kind("a reader that goes away")
@pytest.mark.parametrize("how", CLOSED)
def test_a_command_outlives_its_reader(how, tiny_model, tmp_path):
    reader, status = CLOSED[how]
    words = [sys.executable, "-m", "aligner.launch", *flags(tiny_model, tmp_path / "out", "--gpus", 1, "--dry_run")]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {reader}; exit "${{PIPESTATUS[0]}}"', "bash", *words], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr and (status is None or done.returncode == status), done.stderr


# --- no home


@pytest.mark.slow
@pytest.mark.kind("no home and no name")
def test_a_user_id_without_a_home_keeps_its_caches_beside_the_output(tiny_model, tmp_path):
    nobody = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if subprocess.run([*nobody, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nobody can be another user here")
    clean = {
        k: v for k, v in os.environ.items() if k not in ("HOME", "ALIGNER_CACHE", "XDG_CACHE_HOME", "USER", "LOGNAME")
    }
    done = subprocess.run(
        [*nobody, sys.executable, "-m", "aligner.launch", *flags(tiny_model, tmp_path / "out", "--gpus", 1)], capture_output=True,
        text=True, check=False, cwd="/", env={**clean, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"caches are kept in {tmp_path / 'aligner-home'}" in done.stderr
    assert whole_folder(tmp_path / "out") and not Path("/~").exists()


AT_HOME = {
    "the rows checked": ("aligner", "check", TEMPLATE),
    "with a tokenizer": ("aligner", "check", TEMPLATE, "--model_name_or_path", "MODEL"),
    "as JSON": ("aligner", "check", TEMPLATE, "--json"),
    "a run tried": ("aligner.launch", "--train_datasets", TEMPLATE, "--model_name_or_path", "MODEL", "--dry_run"),
    "a run tried by the command": (
        "aligner",
        "train",
        "--train_datasets",
        TEMPLATE,
        "--model_name_or_path",
        "MODEL",
        "--dry_run",
    ),
    "a plan": ("aligner", "plan", "--model_name_or_path", "MODEL", "--gpus", "8", "--gpu_memory", "80"),
    "the help of training": ("aligner.launch", "--help"),
    "the help": ("aligner", "--help"),
    "the version": ("aligner", "--version"),
    "the doctor": ("aligner", "doctor"),
}


@pytest.mark.slow
@pytest.mark.kind("no home and no name")
@pytest.mark.parametrize("how", AT_HOME)
def test_a_command_of_a_user_id_without_a_home(how, tiny_model, tmp_path):
    nobody = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if subprocess.run([*nobody, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nobody can be another user here")
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    words = [str(tiny_model) if word == "MODEL" else str(word) for word in AT_HOME[how]]
    place = [] if how in ("the rows checked", "with a tokenizer", "as JSON", "the help", "the version") or "help" in how else [
        "--output_dir", str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run(
        [*nobody, sys.executable, "-m", *words, *place],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=kept,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert not (tmp_path / "~").exists() and not Path("/~").exists()


# --- a run's words in a file


@pytest.mark.slow
@pytest.mark.kind("log files")
def test_words_in_a_file_are_lines(tiny_model, tmp_path):
    done = sft(*flags(tiny_model, tmp_path / "out", "--gpus", 1))
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout + done.stderr and max(map(len, (done.stdout + done.stderr).splitlines())) < 2000
    lines = [line for line in done.stderr.splitlines() if "of 4 updates" in line]
    assert len(lines) == 2 and "correction: 4 of 4 updates, 100%" in lines[1] and "loss" in lines[1], done.stderr


class Log(io.StringIO):
    """What a file would hold; `broken`: the disk is full."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken

    def write(self, text: str) -> int:
        if self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


PROGRESS = {  # items, arguments, lines
    "a list": (range(3), {"desc": "reading", "unit": " rows"}, ["reading: 1 of 3 rows, 33%", "reading: 2 of 3", "reading: 3 of 3"]),
    "a generator": ((n for n in range(2)), {"desc": "reading", "unit": " rows"}, ["reading: 1 rows", "reading: 2 rows"]),
    "a generator of known length": ((n for n in range(2)), {"total": 2, "desc": "x"}, ["x: 1 of 2 items, 50%", "x: 2 of 2"]),
    "more than there should be": (range(2), {"total": 1, "desc": "x"}, ["x: 1 of 1 items, 100%", "x: 2 of 1"]),
    "nothing": ([], {"desc": "x"}, []),
    "one": ([1], {"desc": "x"}, ["x: 1 of 1 items, 100%"]),
    "no name": ([1], {}, ["1 of 1 items"]),
    "a delay": ([1], {"desc": "x", "delay": 2}, ["x: 1 of 1"]),
    "what tqdm takes too": ([1], {"desc": "x", "leave": False, "ncols": 80, "mininterval": 0}, ["x: 1 of 1"]),
    "many": (range(1_234_567, 1_234_570), {"desc": "x", "total": 2_000_000}, ["x: 1 of 2,000,000 items, 0%"] * 1),
}  # fmt: skip


@pytest.mark.kind("log files")
@pytest.mark.parametrize("broken", [False, True], ids=["", "full"])
@pytest.mark.parametrize("what", PROGRESS)
def test_progress_in_a_file_is_plain_lines(what, broken, monkeypatch):
    items, arguments, expected = PROGRESS[what]
    items = list(items)
    log = Log(broken)
    monkeypatch.setattr(console, "NOW_AND_THEN", 0)
    monkeypatch.setattr(sys, "stderr", log)
    given = (each for each in items) if what.startswith("a generator") else items
    assert list(console.progress(given, **arguments)) == items, "a full disk does not end what is counted"
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue() and (broken or len(lines) == len(items))
    assert broken or all(line.startswith(start) for line, start in zip(lines, expected, strict=False)), lines


@pytest.mark.slow
@pytest.mark.kind("log files")
def test_bars_are_drawn_where_it_is_known_that_there_is_a_terminal():
    """`tqdm(` stands in the two files that ask for one, and the hub's libraries are told in every other case."""
    calls = [
        file for file in (ROOT / "aligner").rglob("*.py") if re.search(r"\btqdm\(", file.read_text(encoding="utf-8"))
    ]
    assert sorted(str(file.relative_to(ROOT / "aligner")) for file in calls) == [
        "console.py",
        "training/finetune/metrics.py",
    ]
    program = "from aligner.surroundings import prepare_process as p; p([]); import datasets, huggingface_hub.utils as u; " \
              "print(datasets.are_progress_bars_disabled(), u.are_progress_bars_disabled())"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.stdout.split() == ["True", "True"]


# --- no network


ASKING = {
    "hub data": ("aligner", "check", "correction-json::hub:nobody/nothing"),
    "hub model": ("aligner", "correct", "--model", "nobody/nothing", "--question", "q", "--answer", "a"),
    "hub model of a run": ("aligner.launch", "--train_datasets", TEMPLATE, "--model_name_or_path", "nobody/nothing", "--dry_run"),
    "hub tokenizer": ("aligner", "check", str(TEMPLATE), "--model_name_or_path", "nobody/nothing"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.kind("waits without a word")
@pytest.mark.parametrize("what", ["wandb", "hub data", "hub model", "hub model of a run", "hub tokenizer"])
def test_a_service_that_cannot_be_reached_is_said_within_seconds(what, tiny_model, tmp_path):
    with silent_port() as port:
        address = f"http://127.0.0.1:{port}"
        began = time.monotonic()
        if what == "wandb":
            program = (
                "import sys; from pathlib import Path; from aligner.console import setup_logging\n"
                "from aligner.training.config import OutputConfig\n"
                "from aligner.training.finetune import metrics; setup_logging(); out = Path(sys.argv[1])\n"
                "config = OutputConfig(output_dir=str(out), log_type='wandb')\n"
                "m = metrics.Metrics(config, out, 'correction', 1, 0, {}); print('began', flush=True); m.close()"
            )
            more = {"WANDB_MODE": "", "WANDB_BASE_URL": address, "WANDB_API_KEY": "a" * 40}
            (tmp_path / "out").mkdir()
            command = [sys.executable, "-c", program, str(tmp_path / "out")]
        else:
            more = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": ""}
            command = [
                sys.executable,
                "-m",
                *ASKING[what],
                *(["--output_dir", str(tmp_path / "o")] if "run" in what else []),
            ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200,
                              env={**os.environ, "PYTHONPATH": str(ROOT), **more})  # fmt: skip
    words = done.stdout + done.stderr
    assert time.monotonic() - began < 30, words
    assert "cannot be" in words and "Traceback" not in words, words


@pytest.mark.slow
@pytest.mark.kind("waits without a word")
def test_a_network_namespace_without_a_loopback_is_said_at_once(tiny_model, tmp_path):
    alone = ["unshare", *(() if os.geteuid() == 0 else ("-r",)), "-n"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    began = time.monotonic()
    command = [*alone, sys.executable, "-m", "aligner.launch", *flags(tiny_model, tmp_path / "out", "--gpus", 1)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 2 and "ip link set lo up" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert time.monotonic() - began < 120


def test_the_hub_and_the_index_are_left_alone_by_choice(tmp_path):
    """With ALIGNER_OFFLINE nothing is asked of the network: there is none, in a namespace of its own."""
    folder = tmp_path / "prepared"
    (folder / "packages").mkdir(parents=True)
    program = (
        "from aligner.surroundings import prepare_process; prepare_process([]); import os, huggingface_hub.constants as c; "
        "print(c.HF_HUB_OFFLINE, c.HF_HOME, os.environ['WANDB_MODE'])"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "WANDB_"))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env={**clean, "PYTHONPATH": str(ROOT), "ALIGNER_OFFLINE": str(folder)})  # fmt: skip
    assert done.stdout.split() == ["True", str(folder / "hub"), "offline"]
