"""`aligner doctor`: one screen before the first GPU hour, of this machine and of every host that the run would use."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from aligner import __version__
from aligner.launch.launch import completed_flags
from aligner.launch.machine_checks import BAD, GOOD, SKEW, WARNING, Check, check_machine
from aligner.parsing import json_value
from aligner.records import UserError
from aligner.training.config import RunConfig
from aligner.training.distributed.hosts import forwarded_variables, is_here, launcher_words, read_hostfile, remote_words
from aligner.training.flags import ROOT
from aligner.training.planning.memory import size_of
from aligner.training.planning.shapes import shape_of_model

PATIENCE = 180  # seconds for a host's answer
Report = dict[str, Any]  # host, time, checks


def diagnose(flags: Sequence[str]) -> list[Report]:
    """The reports of this machine and of the other hosts of a run with these flags."""
    config = completed_flags(flags)
    here = report_here(Path(config.output.output_dir or "output"), *disk_need(config))
    return [here, *ask_hosts(config, flags)]


def report_here(output: Path, need: float, problem: Check | None = None) -> Report:
    """This machine's report. `need`: bytes that the run writes."""
    checks = check_machine(output, need) + ([problem] if problem else [])
    return {
        "host": socket.gethostname(),
        "time": time.time(),
        "aligner": __version__,
        "checks": [asdict(c) for c in checks],
    }


def disk_need(config: RunConfig) -> tuple[float, Check | None]:
    """Bytes that a run writes: its resume states (fp32 weights and two moments each, and one being written) and its export."""
    name = config.model.model_name_or_path or ""
    try:
        parameters = (
            134_515_008
            if name == "embedded"
            else size_of(shape_of_model(name, config.model.trust_remote_code)).parameters
        )
    except UserError as error:
        return 0.0, Check("base model", BAD, str(error).split(". ")[0], "Check --model_name_or_path and the network")
    states = (
        (config.output.save_total_limit + 1) * 12.12 if config.output.save_interval or config.output.save_minutes else 0
    )
    return parameters * (states + 4), None


def ask_hosts(config: RunConfig, flags: Sequence[str]) -> list[Report]:
    """The reports of the other hosts, asked in the way that the launcher starts their ranks: pdsh, or srun in a Slurm job."""
    words = [sys.executable, "-m", "aligner", "doctor", "--json", "--this_host", *without_hostfile(flags)]
    if config.launch.hostfile:
        hosts = [host.name for host in read_hostfile(config.launch.hostfile) if not is_here(host.name)]
        variables = {**forwarded_variables(os.environ), "PYTHONPATH": str(ROOT)}
        remote = remote_words(
            [*(["cd", str(Path.cwd()), "&&", "env"]), *(f"{k}={v}" for k, v in variables.items()), *words]
        )
        remote = ["&&" if word == "'&&'" else word for word in remote]
        given = launcher_words(config.launch.launcher_args or "")
        port = dict(pairwise(given)).get("--ssh_port")
        env = {"PDSH_RCMD_TYPE": "ssh", **({"PDSH_SSH_ARGS_APPEND": f"-p {port}"} if port else {})}
        return [r for host in hosts for r in ask(host, ["pdsh", "-S", "-w", host, " ".join(remote)], env)]
    if int(os.environ.get("SLURM_JOB_NUM_NODES") or 1) > 1:
        command = ["srun", "--ntasks-per-node=1", f"--ntasks={os.environ['SLURM_JOB_NUM_NODES']}", "--overlap", *words]
        return [r for r in ask("the job's nodes", command, {}) if r["host"] != socket.gethostname()]
    return []


def without_hostfile(flags: Sequence[str]) -> list[str]:
    """The flags of a run on one host."""
    kept: list[str] = []
    skip = False
    for word in flags:
        if skip or word.startswith("--hostfile="):
            skip = False
        elif word == "--hostfile":
            skip = True
        else:
            kept.append(word)
    return kept


def ask(name: str, command: Sequence[str], env: dict[str, str]) -> list[Report]:
    """Run the doctor elsewhere. A host that does not answer is a report with that finding."""
    began = time.time()
    if not shutil.which(command[0]):
        return [lost(name, f"{command[0]} is not installed", f"Install {command[0]}, or start the ranks with torchrun")]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return [lost(name, f"no answer in {PATIENCE} s", "Check that it is up and that ssh reaches it")]
    ended, reports = time.time(), []
    for line in done.stdout.splitlines():
        if (start := line.find('[{"host"')) >= 0:
            with suppress(ValueError):  # another program's line
                reports += json_value(line[start:])
    if not reports:
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:200]
        return [lost(name, why, f"Try 'ssh {name} true' without a password, and give all hosts the same paths")]
    return [with_skew(report, began, ended) for report in reports]


def lost(name: str, finding: str, remedy: str) -> Report:
    """The report of a host that gave none."""
    return {"host": name, "time": None, "checks": [asdict(Check("host", BAD, finding, remedy))]}


def with_skew(report: Report, began: float, ended: float) -> Report:
    """A host's report with its clock against this machine's: beyond the time that asking took."""
    skew = max(began - report["time"], report["time"] - ended, 0.0)
    state = WARNING if skew > SKEW else GOOD
    check = Check(
        "clock here", state, f"{skew:.1f} s from this machine's", "Set the clocks (chrony, ntp)" if skew > SKEW else ""
    )
    return {**report, "checks": [*report["checks"], asdict(check)]}


def screen(reports: Sequence[Report]) -> list[str]:
    """The reports as lines: of other hosts what is not good."""
    lines = []
    for number, report in enumerate(reports):
        checks = [Check(**check) for check in report["checks"]]
        wrong = [check for check in checks if check.state != GOOD]
        lines.append(
            f"{report['host']}" + ("" if number == 0 else f": {len(checks) - len(wrong)} of {len(checks)} good")
        )
        for check in checks if number == 0 else wrong:
            lines.append(
                f"  {check.state:<8}{check.name:<12}{check.finding}" + (f". {check.remedy}." if check.remedy else "")
            )
    return lines


def worst(reports: Sequence[Report]) -> str:
    """The gravest state in the reports."""
    states = {check["state"] for report in reports for check in report["checks"]}
    return next((state for state in (BAD, WARNING) if state in states), GOOD)
