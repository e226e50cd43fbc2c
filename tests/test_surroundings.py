"""Whole commands in surroundings of clusters and containers: file systems that refuse calls, other users, readers that leave."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TEMPLATE, sft
from test_environment_script import in_read_only, silent_port


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


# --- one folder, several users


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


# --- a run's words in a file


@pytest.mark.slow
@pytest.mark.kind("log files")
def test_words_in_a_file_are_lines(tiny_model, tmp_path):
    done = sft(*flags(tiny_model, tmp_path / "out", "--gpus", 1))
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout + done.stderr and max(map(len, (done.stdout + done.stderr).splitlines())) < 2000
    lines = [line for line in done.stderr.splitlines() if "of 4 updates" in line]
    assert len(lines) == 2 and "correction: 4 of 4 updates, 100%" in lines[1] and "loss" in lines[1], done.stderr


# --- no network


@pytest.mark.slow
@pytest.mark.kind("waits without a word")
@pytest.mark.parametrize("what", ["wandb", "hub data"])
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
            more = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
            command = [sys.executable, "-m", "aligner", "check", "correction-json::hub:nobody/nothing"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200,
                              env={**os.environ, "PYTHONPATH": str(ROOT), **more})  # fmt: skip
    words = done.stdout + done.stderr
    assert time.monotonic() - began < 30, words
    assert "cannot be" in words and "Traceback" not in words, words


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
