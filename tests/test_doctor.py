"""`aligner doctor`: its screen here and in broken surroundings, its JSON without secrets, and the files for containers.

`python tests/test_doctor.py` prints the screen of this machine, and what is not good in four broken surroundings.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from test_environment_script import closed_port, in_read_only
from test_surroundings import refusing  # noqa: F401

OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PIP_INDEX_URL": "file:///packages/simple"}


def doctor(*arguments: object, prefix: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "aligner", "doctor", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )


def line_of(done: subprocess.CompletedProcess[str], name: str) -> str:
    found = [line for line in done.stdout.splitlines() if line[10:].startswith(name)]
    assert len(found) == 1, done.stdout + done.stderr
    return found[0].strip()


@pytest.mark.slow
def test_one_screen_says_what_is_good_and_how_to_mend_the_rest(tmp_path):
    done = doctor("--output_dir", tmp_path / "out", **OFFLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert 14 <= len(lines) <= 24 and not (tmp_path / "out").exists()
    for line in lines[1:]:
        assert line.startswith("  good") or line.rstrip().endswith("."), line  # a remedy
    for name in ("hub", "wandb"):
        assert line_of(done, name).endswith("offline by choice")


@pytest.mark.slow
def test_json_for_a_bug_report_holds_no_secret(tmp_path):
    planted = {
        "HF_TOKEN": "planted-1",
        "WANDB_API_KEY": "planted-2",
        "PIP_INDEX_URL": "http://me:planted-3@127.0.0.1:1/simple",
    }
    done = doctor("--json", "--output_dir", tmp_path / "out", **{**OFFLINE, **planted})
    (report,) = json.loads(done.stdout)
    assert {"host", "time", "aligner", "checks"} == set(report) and "planted" not in done.stdout
    assert {"name", "state", "finding", "remedy"} == set(report["checks"][0])


def without_network(folder: Path) -> subprocess.CompletedProcess[str]:
    nowhere = f"http://127.0.0.1:{closed_port()}"
    broken = {
        "HF_ENDPOINT": nowhere,
        "WANDB_BASE_URL": nowhere,
        "PIP_INDEX_URL": nowhere,
        "WANDB_MODE": "",
        "HF_HUB_OFFLINE": "",
    }
    return doctor("--output_dir", folder / "out", **broken)


def read_only_output(folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "image").mkdir()
    return doctor("--output_dir", folder / "image/out", prefix=in_read_only(folder / "image"), **OFFLINE)


def few_open_files(folder: Path) -> subprocess.CompletedProcess[str]:
    return doctor("--output_dir", folder / "out", prefix=("sh", "-c", 'ulimit -n 256; exec "$@"', "sh"), **OFFLINE)


def host_out_of_reach(folder: Path) -> subprocess.CompletedProcess[str]:
    """A host that ssh does not reach, as pdsh tells it."""
    (folder / "hosts").write_text("192.0.2.1 slots=2\n")
    (folder / "pdsh").write_text(
        "#!/bin/sh\necho 'ssh: connect to host 192.0.2.1 port 22: No route to host' >&2; exit 255\n"
    )
    (folder / "pdsh").chmod(0o755)
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    return doctor("--hostfile", folder / "hosts", "--output_dir", folder / "out", **OFFLINE, **path)


BROKEN = {
    "without a network": without_network,
    "with an output that cannot be written": read_only_output,
    "with few open files": few_open_files,
    "with a host out of reach": host_out_of_reach,
}


@pytest.mark.slow
def test_a_network_that_is_gone_is_said_with_the_ways_without(tmp_path):
    done = without_network(tmp_path)
    assert "HF_HUB_OFFLINE=1" in line_of(done, "hub") and "WANDB_MODE=offline" in line_of(done, "wandb")
    assert "prepare-offline.sh" in line_of(done, "index")


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_bad(tmp_path):
    done = read_only_output(tmp_path)
    assert (
        done.returncode == 1 and line_of(done, "output").startswith("bad") and "--output_dir" in line_of(done, "output")
    )


@pytest.mark.slow
def test_a_file_system_that_refuses_calls_is_described(refusing, tmp_path):  # noqa: F811
    refuse = {
        "LD_PRELOAD": str(refusing),
        "REFUSE": "chmod=1 rename_dir=38 rename_file=95",
        "REFUSE_UNDER": str(tmp_path / "m"),
    }
    done = doctor("--output_dir", tmp_path / "m/out", **OFFLINE, **refuse)
    words = line_of(done, "output")
    assert done.returncode == 1 and "refuses rename a file over another, rename a folder, chmod" in words, words


@pytest.mark.slow
def test_few_open_files_and_no_gpu_by_name_are_said(tmp_path):
    done = few_open_files(tmp_path)
    assert line_of(done, "ulimits").startswith("warning") and "ulimit -n 4096" in line_of(done, "ulimits")


@pytest.mark.slow
def test_each_host_of_a_hostfile_is_asked_as_the_launcher_would(tmp_path):
    """A pdsh that runs the command here, in the host's shell."""
    (tmp_path / "hosts").write_text("192.0.2.1 slots=2\n")
    (tmp_path / "pdsh").write_text('#!/bin/sh\nshift 3; exec sh -c "$*"\n')
    (tmp_path / "pdsh").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = doctor("--hostfile", tmp_path / "hosts", "--output_dir", tmp_path / "a b", **OFFLINE, **path)
    assert re.search(r"^\S+: \d+ of \d+ good$", done.stdout, re.MULTILINE), done.stdout + done.stderr


@pytest.mark.slow
def test_a_host_out_of_reach_is_bad(tmp_path):
    done = host_out_of_reach(tmp_path)
    assert done.returncode == 1 and "No route to host" in line_of(done, "host"), done.stdout


# --- containers


def test_the_container_installs_the_tested_versions_with_hashes():
    text = (ROOT / "scripts/container-requirements.txt").read_text()
    pinned = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+) \\$", text, re.MULTILINE))
    assert len(re.findall(r"^    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)) >= len(pinned) > 50
    tested = dict(
        line.split("==") for line in (ROOT / "scripts/constraints.txt").read_text().splitlines() if "==" in line
    )
    assert {name: version for name, version in tested.items() if name in pinned and pinned[name] != version} == {}
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {Requirement(text).name for text in project["dependencies"]} <= set(pinned)


@pytest.mark.skipif(not shutil.which("hadolint"), reason="needs hadolint")
def test_the_dockerfile_passes_its_linter():
    done = subprocess.run(["hadolint", str(ROOT / "scripts/Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_container_runs_as_nobody_in_particular():
    text = (ROOT / "scripts/Dockerfile").read_text()
    assert re.search(r"^USER 10001$", text, re.MULTILINE) and "--require-hashes" in text


def test_the_pytorchjob_starts_flags_that_there_are():
    """What the operator asks for by name, and our flags in its arguments. Its schema is checked with the operator's own client."""
    from aligner.training.flags import parse

    job = yaml.safe_load((ROOT / "scripts/pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"} and replicas["Master"]["replicas"] == 1
    for replica in replicas.values():
        (container,) = replica["template"]["spec"]["containers"]
        assert container["name"] == "pytorch"
        arguments = [word.replace("/opt/aligner", str(ROOT)) for word in container["args"]]
        assert parse(arguments).optimization.records_per_update == 256
        assert job["spec"]["nprocPerNode"] == container["resources"]["limits"]["nvidia.com/gpu"]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as here:
        print(f"here:\n{doctor('--output_dir', Path(here) / 'out').stdout}")
    for name, surroundings in BROKEN.items():
        with tempfile.TemporaryDirectory() as place:
            ended = surroundings(Path(place))
            wrong = [line for line in ended.stdout.splitlines() if line.startswith(("  warning", "  bad"))]
            print("\n".join([f"{name} (exit {ended.returncode}):", *wrong, ""]))
