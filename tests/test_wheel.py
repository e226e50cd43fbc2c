"""The wheel: what an installed package needs outside the checkout travels in it, under a name that is free."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

from aligner.shipped import find_config, shipped
from aligner.training.flags import parse

CONFIGS = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "configs").rglob("*.yaml"))


def test_in_a_checkout_the_shipped_files_are_those_at_the_top():
    assert shipped("template-dataset.json") == ROOT / "template-dataset.json"
    assert [shipped(name) for name in CONFIGS] == [ROOT / name for name in CONFIGS]


def test_a_shipped_configuration_is_found_from_anywhere_and_an_own_one_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(["--config", "configs/llama-2-7b.yaml"]).optimization.records_per_update == 256
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "llama-2-7b.yaml").write_text("epochs: 7\n")
    assert parse(["--config", "configs/llama-2-7b.yaml"]).optimization.epochs == 7
    assert find_config("configs/none.yaml") == "configs/none.yaml"


@pytest.mark.slow
def test_a_wheel_holds_the_shipped_files_as_copies(tmp_path):
    copy = tmp_path / "copy"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            (copy / name).symlink_to((ROOT / name).readlink())
        elif (ROOT / name).is_file():
            (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", tmp_path, copy], check=True)
    [wheel] = tmp_path.glob("qac_aligner-*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = set(held.namelist())
        assert {f"aligner/shipped/{name}" for name in [*CONFIGS, "template-dataset.json"]} <= names
        assert {"aligner/serving/page.html", "aligner/evaluation/report.html"} <= names
        assert held.read("aligner/shipped/template-dataset.json") == (ROOT / "template-dataset.json").read_bytes()
        assert b"aligner = aligner.cli:main" in held.read(
            next(name for name in names if name.endswith("entry_points.txt"))
        )
