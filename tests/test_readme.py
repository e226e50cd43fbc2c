"""The pages: every link leads somewhere, every command parses, and those of the front page do what they promise."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TEMPLATE, read_rows
from warm import run_aligner

from aligner.cli import command_parser
from aligner.training.flags import parse

FRONT = ROOT / "README.md"
GENERATED = {"output", "build", "wandb"}
PAGES = [
    page
    for page in sorted(ROOT.rglob("README.md"))
    if not any(part in GENERATED or part.startswith(".") for part in page.relative_to(ROOT).parts)
]


def without_code(text: str) -> str:
    """A page without its fenced blocks and its literal words, where brackets mean something else."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language, continued lines put together."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [block.replace("\\\n", " ") for block in found]


def commands(page: Path, *starts: str) -> list[list[str]]:
    """The words of every command line of a page that begins with one of these."""
    lines = [line.strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(starts)]


def test_every_link_of_every_page_leads_to_a_file_and_a_heading():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
            if target.startswith(("http://", "https://")):
                continue
            file, _, anchor = target.partition("#")
            place = (page.parent / file).resolve() if file else page
            if not place.exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
            elif anchor and anchor not in anchors(place / "README.md" if place.is_dir() else place):
                broken.append(f"{page.relative_to(ROOT)}: {target}: no such heading")
    assert not broken


def test_every_page_can_be_reached_from_the_front_page():
    reached, waiting = set(), [FRONT]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", without_code(page.read_text())):
            place = (page.parent / target).resolve()
            if place.name == "README.md" and place not in reached:
                waiting.append(place)
    assert set(PAGES) - reached == set()


def test_the_front_page_is_short_and_says_first_what_has_not_been_done():
    lines = FRONT.read_text().splitlines()
    assert len(lines) <= 250
    screen = "\n".join(lines[:60])
    assert "```diff" in screen and "![" in screen and "reproduced" in screen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.parent.relative_to(ROOT)))
def test_every_command_of_a_page_parses(page):
    for words in commands(page, "bash scripts/sft-correction.sh", "sbatch", "aligner train"):
        program = next(
            n for n, word in enumerate(words) if word == "train" or word.startswith("scripts/sft-correction.")
        )
        parse(words[program + 1 :])
    for words in commands(page, "aligner"):
        if words[1] != "train":
            args, rest = command_parser().parse_known_args(words[1:])
            assert not rest or args.command in ("plan", "doctor")
            parse(rest)
    for line in re.findall(
        r"^\| .* \| `(--config [^`]*)` \|", page.read_text(), flags=re.MULTILINE
    ):  # the paper's checkpoints
        parse(shlex.split(line))


def test_the_pages_have_commands_to_parse():
    assert len(commands(FRONT, "bash scripts/sft-correction.sh")) >= 3 and len(commands(FRONT, "aligner")) >= 4
    assert sum(len(commands(page, "aligner")) for page in PAGES) >= 15


@pytest.fixture(scope="module")
def as_a_newcomer(tiny_model, tmp_path_factory):
    """A folder in which a reader of the front page types its commands; `embedded` is a tiny model, and runs are short."""
    folder = tmp_path_factory.mktemp("newcomer")
    rows = read_rows(TEMPLATE, 24)
    for name in ("train.json", "template-dataset.json"):
        (folder / name).write_text(json.dumps(rows))
    tickets = [{"ticket": row["question"], "draft": row["answer"], "sent": row["correction"]} for row in rows]
    (folder / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tickets))
    (folder / "my_datasets.py").write_text(blocks(FRONT, "python")[0])

    def type_in(words: list[str]) -> Any:
        short = {"embedded": str(tiny_model), "256": "4"}
        words = [short.get(word, word) for word in words]
        if words[0] != "bash":
            with contextlib.chdir(folder):
                return run_aligner([sys.executable, "-m", *words])
        words = ["bash", str(ROOT / words[1]), *words[2:], "--epochs", "1", "--max_length", "512", "--gpus", "1"]
        variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return subprocess.run(
            words, cwd=folder, env=variables, capture_output=True, text=True, timeout=600, check=False
        )

    return folder, type_in


@pytest.mark.slow
def test_the_front_pages_commands_run_one_after_the_other(as_a_newcomer):
    """Those that need no hub, no server and no GPU; the run of the embedded model has tests of its own."""
    folder, type_in = as_a_newcomer
    lines = commands(FRONT, "bash scripts/sft-correction.sh", "aligner correct", "aligner evaluate", "aligner check")
    here = [words for words in lines if not re.search("http|meta-llama", " ".join(words))]
    trains = [words for words in here if words[0] == "bash" and "--output_dir" in words]
    rest = [words for words in here if words[0] == "aligner"]
    assert trains and {words[1] for words in rest} == {"check", "correct", "evaluate"}
    for words in trains:
        done = type_in(words)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "output/embedded").symlink_to(folder / words[words.index("--output_dir") + 1])
    for words in sorted(rest, key=lambda words: ("check", "correct", "evaluate").index(words[1])):
        done = type_in(words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(read_lines(folder / "corrected.jsonl")) == 24
    assert (folder / "evaluation/report.html").stat().st_size > 10_000


def read_lines(file: Path) -> list[str]:
    return file.read_text().splitlines()
