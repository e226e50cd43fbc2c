"""Members by kind: tests marked `kind("...")`. At the end of a run the table of what held.

python tests/kinds.py                       the table for this checkout
python tests/kinds.py REVISION              the same with a column for an earlier revision: these tests, its scripts and package
python tests/kinds.py REVISION FILE.py ...  the same of these test files: of surroundings and attacks unless they are named
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = (
    "test_attacks.py",
    "test_state_faults.py",
    "test_environment_script.py",
    "test_surroundings.py",
    "test_launchers.py",
    "test_files_by_kind.py",
)
MARKERS = (
    "markers=slow: minutes\nkind(name): a member of a kind\nattacks: hostile inputs"  # of an earlier revision, too
)
OUTCOMES: dict[str, Counter[str]] = {}  # kind -> passed, failed, skipped


def record(kind: str, outcome: str) -> None:
    """Count a member's outcome."""
    OUTCOMES.setdefault(kind, Counter())[outcome] += 1


def lines() -> list[str]:
    """The table of this test run; nothing where no member was tried."""
    rows = [
        f"| {kind} | {sum(seen.values()) - seen['skipped']} | {seen['passed']} | {seen['skipped'] or ''} |"
        for kind, seen in sorted(OUTCOMES.items())
    ]
    return ["| kind | members tried | held | not tried here |", "|---|---|---|---|", *rows] if rows else []


def outcomes_of(tests: Path, files: Sequence[str]) -> dict[str, Counter[str]]:
    """What the members do in a checkout: of its tests folder."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outcomes.json"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "kind or attacks", "-p", "no:cacheprovider"]
        command += ["-o", MARKERS, *files]
        variables = {"KINDS_OUTCOMES": str(file), "PYTHONPATH": str(tests.parent)}
        subprocess.run(command, cwd=tests, env={**os.environ, **variables}, stdout=sys.stderr, check=False)
        return {kind: Counter(seen) for kind, seen in json.loads(file.read_text()).items()}


def outcomes_at(revision: str, files: Sequence[str]) -> dict[str, Counter[str]]:
    """What the members of today do with an earlier revision."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "earlier"
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(place), revision], cwd=ROOT, check=True, stdout=sys.stderr
        )
        try:
            shutil.copytree(ROOT / "tests", place / "tests", dirs_exist_ok=True)
            return outcomes_of(place / "tests", files)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(place)], cwd=ROOT, check=True)


def main() -> None:
    """Print the table."""
    files = sys.argv[2:] or FILES
    now = outcomes_of(ROOT / "tests", files)
    before = outcomes_at(sys.argv[1], files) if len(sys.argv) > 1 else {}
    print("| kind | members tried | held before | held now |\n|---|---|---|---|")
    for kind, seen in sorted(now.items()):
        held = before[kind]["passed"] if kind in before else ""
        print(f"| {kind} | {seen.total() - seen['skipped']} | {held} | {seen['passed']} |")


if __name__ == "__main__":
    main()
