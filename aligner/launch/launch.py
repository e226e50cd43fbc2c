"""What `scripts/sft-correction.sh` runs: read the flags, start DeepSpeed once for each stage, show what was learned.

Started as one of many ranks (torchrun, srun), it is that rank and starts nothing.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aligner.console import speak
from aligner.file_systems import require_usable
from aligner.files import is_completed, remove_folder
from aligner.launch.report import show_examples, show_result
from aligner.models import load_tokenizer, quiet_libraries
from aligner.records import UserError, system_error
from aligner.relay import outlive_readers
from aligner.training.checkpoint.resume import another_run, clear, standing, the_only_run
from aligner.training.config import RunConfig
from aligner.training.distributed import heartbeat, stop_signals
from aligner.training.distributed.hardware import gpu_memory, gpus_here, ranks_here, resolved, threads_per_rank
from aligner.training.distributed.hosts import (
    forwarded,
    hostfile_for_deepspeed,
    is_here,
    launcher_words,
    read_hostfile,
    remote_words,
)
from aligner.training.distributed.launcher_variables import free_port, rank_variables
from aligner.training.distributed.stop_signals import EXIT_AGAIN
from aligner.training.flags import ROOT, parse, parser, to_flags
from aligner.training.planning.memory import size_of
from aligner.training.planning.memory_plan import Hardware, fit_lines, memory_lines, need_of
from aligner.training.planning.shapes import shape_of_model
from aligner.training.stages import (
    Stage,
    check_positions,
    make_card,
    plan_of,
    records_per_update,
    sides_as_tokens,
    stage_data,
    stages,
)

USAGE = (
    "bash scripts/sft-correction.sh [--train_datasets PATH|SPEC ... --model_name_or_path BASE --output_dir DIR] [flags]"
)
log = logging.getLogger("aligner")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all stages. Returns the exit status: 0; 2 for what the user can mend; 75 where the run was stopped and can go on;
    130 where it was ended at once; else that of the failed stage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    speak()
    if "--help" in given or "-h" in given:
        parser(USAGE).print_help()
        return 0
    try:
        started = rank_variables(os.environ)
        if started is not None:
            os.environ.update(started)
            return run_as_rank(completed_flags(given))
        with outlive_readers():
            return run(completed_flags(given))
    except (UserError, OSError) as error:
        log.error("%s", system_error(error) if isinstance(error, OSError) else error)
        return 2
    except KeyboardInterrupt:
        log.warning("stopped")
        return 130


def run_as_rank(config: RunConfig) -> int:
    """Be the rank that the environment says; a dry run is the first one's alone."""
    if config.launch.dry_run:
        return run(config) if os.environ["RANK"] == "0" else 0
    from aligner.training.finetune import run as rank

    return rank.main(to_flags(config))


def completed_flags(given: Sequence[str]) -> RunConfig:
    """The configuration; with neither data nor model the embedded default. UserError names a missing flag."""
    config = parse(given, USAGE)
    data, model = config.data.train_datasets, config.model.model_name_or_path
    if not data and not model:
        default = ["--model_name_or_path", "embedded", "--train_datasets", _shown(ROOT / "template-dataset.json")]
        default += ["--output_dir", "output/embedded"]
        file = [] if config.launch.config else ["--config", str(ROOT / "configs" / "embedded.yaml")]
        config = parse([*default, *file, *given], USAGE)
        data, model = config.data.train_datasets, config.model.model_name_or_path
    for flag, value in (
        ("train_datasets", data),
        ("model_name_or_path", model),
        ("output_dir", config.output.output_dir),
    ):
        if not value:
            raise UserError(f"--{flag} is missing. Without data and model the embedded default is trained.")
    return resolved(config)


def _shown(path: Path) -> str:
    """A path as a person would write it from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def run(config: RunConfig) -> int:
    """Check the data, then train what is not finished yet, then show the result."""
    quiet_libraries()
    planned = [stage for stage in stages(config) if config.launch.stage in (None, stage.name)]
    ranks = count_ranks(config)
    check_positions(config, stages(config)[0])
    if config.launch.dry_run:
        rehearse(config, planned, ranks)
        return 0
    require_usable(stages(config)[-1].folder)
    with the_only_run(stages(config)[-1].folder) as folder:
        if stop_signals.is_requested(folder):
            log.warning("%s: an old request to stop is removed", folder / stop_signals.REQUEST)
        stop_signals.withdraw(folder)
        return train(config, planned, ranks)


def train(config: RunConfig, planned: Sequence[Stage], ranks: int) -> int:
    """Start what is not finished, stage by stage, and show the result."""
    for stage in reversed(planned) if config.output.resume == "never" else []:
        clear(stage.folder)
    if config.output.resume == "never" and len(stages(config)) == 1:
        remove_folder(stages(config)[0].folder / "identity")  # an earlier run's warm-up, which this one has none of
    main_finished = is_finished(config, planned[-1], ranks)  # first of all: it may refuse
    for stage in planned:
        if main_finished or is_finished(config, stage, ranks):
            log.info("%s is already complete: %s", stage.name, stage.folder)
            continue
        stage.folder.mkdir(parents=True, exist_ok=True)  # shows before any rank starts whether one can write there
        command, whole = launch_command(config, stage, ranks), stages(config)[-1].folder
        status, asked = launch(command, environment(config, ranks), stage.folder, whole)
        if status or not is_completed(stage.folder) or (asked and stage is not planned[-1]):
            return status or EXIT_AGAIN
    data, trusted = stage_data(config, planned[-1].name), config.model.trust_remote_code
    show_result(planned, data, config.output.show_corrections, trusted)
    return 0


def rehearse(config: RunConfig, planned: Sequence[Stage], ranks: int) -> None:
    """`--dry_run`: for each stage the launch command, the arithmetic, the tally, and at the end three examples."""
    for stage in planned:
        data = stage_data(config, stage.name)
        tokenizer = load_tokenizer(stages(config)[0].start_from, config.model.trust_remote_code)
        (tokens, tally), (_, held_out) = sides_as_tokens(config, data, tokenizer)
        variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment(config, ranks).items())
        print(f"\n{stage.name}\n{variables} {shlex.join(launch_command(config, stage, ranks))}".rstrip())
        print(plan_of(stage.optimization, len(tokens), records_per_update(config, ranks), ranks).line())
        for side, counted in (("training", tally), ("held out", held_out)):
            print(*(f"{side}: {line.strip()}" for line in (counted.lines() if counted.rows else [])), sep="\n")
        print(f"prompt: {data.template.name}")
    print(*memory_summary(config, ranks), sep="\n")
    show_examples(tokens, tokenizer)


def memory_summary(config: RunConfig, ranks: int) -> list[str]:
    """What each rank will hold, and whether this machine's GPUs can."""
    shape = shape_of_model(config.model.model_name_or_path or "", config.model.trust_remote_code)
    size, per_node = size_of(shape), ranks
    if config.launch.hostfile:
        per_node = max(host.slots for host in read_hostfile(config.launch.hostfile))
    hardware = Hardware(ranks, per_node, gpu_memory())
    need = need_of(config, shape, size, hardware)
    lines = [f"\nmemory ({size.parameters:,} parameters; 'aligner plan' has more)", *memory_lines(need, hardware)]
    return lines + (fit_lines(config, shape, size, hardware, need) if hardware.gpu_memory else [])


def is_finished(config: RunConfig, stage: Stage, ranks: int) -> bool:
    """Whether a stage's folder is complete and of this very run.

    A warm-up of another run is given up and trained anew; in the main stage it is a UserError that names what differs.
    """
    data = stage_data(config, stage.name)
    found = standing(config, stage.folder, make_card(config, stage, data, records_per_update(config, ranks), {}))
    if found.changed and stage.name == "identity":
        log.info("the warm-up in %s differs in %s: training it anew", stage.folder, ", ".join(found.changed))
        remove_folder(stage.folder)
        return False
    if found.changed:
        raise another_run(stage.folder, found)
    return found.finished


def count_ranks(config: RunConfig) -> int:
    """Ranks of the whole run: the hostfile's slots, or this machine's."""
    if config.launch.hostfile:
        return sum(host.slots for host in read_hostfile(config.launch.hostfile))
    return ranks_here(config)


def launch_command(config: RunConfig, stage: Stage, ranks: int) -> list[str]:
    """The exact command that trains one stage."""
    own = replace(config, launch=replace(config.launch, stage=stage.name, dry_run=False, launcher_args=None))
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", *placement(config, ranks)]
    runner += ["--master_port", str(free_port()), *launcher_words(config.launch.launcher_args or "")]
    hosts = read_hostfile(config.launch.hostfile) if config.launch.hostfile else []
    if len(hosts) > 1 or (hosts and not is_here(hosts[0].name)):
        if not shutil.which("pdsh"):
            raise UserError("--hostfile with other hosts needs pdsh. Install it, or use Slurm or torchrun (README).")
        variables = forwarded({**os.environ, **environment(config, ranks), **heartbeat.launcher_mark()})
        words = ["env", *(f"{name}={value}" for name, value in variables.items())]
        words += [sys.executable, "-m", "aligner.training.finetune", *to_flags(own)]
        alone = ["--force_multi"] if len(hosts) == 1 else []  # or DeepSpeed would start its ranks here
        return [*runner, *alone, "--no_python", "--no_local_rank", *remote_words(words)]
    return [*runner, "--module", "aligner.training.finetune", *to_flags(own)]


def placement(config: RunConfig, ranks: int) -> list[str]:
    """Where DeepSpeed's launcher puts the ranks. With --num_gpus it would forget CUDA_VISIBLE_DEVICES, so those are named."""
    if config.launch.hostfile:
        return ["--hostfile", hostfile_for_deepspeed(config.launch.hostfile, stages(config)[-1].folder)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible and gpus_here():
        if not all(word.strip().isdigit() for word in visible.split(",")):
            raise UserError(
                f"CUDA_VISIBLE_DEVICES is {visible}: DeepSpeed's launcher takes numbers alone. Name GPUs by number, or start the "
                "ranks with torchrun (README)."
            )
        return ["--include", "localhost:" + ",".join(visible.split(",")[:ranks])]
    return ["--num_gpus", str(ranks)]


def environment(config: RunConfig, ranks: int) -> dict[str, str]:
    """What the ranks' environment has beyond this process's."""
    variables = {"PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "true"}
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    variables["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    if config.launch.hostfile:
        variables["DS_ACCELERATOR"] = os.environ.get("DS_ACCELERATOR", "cuda")  # also from a login node without a GPU
    elif not gpus_here():
        threads = os.environ.get("OMP_NUM_THREADS") or str(threads_per_rank(ranks))
        variables |= {"DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(ranks), "OMP_NUM_THREADS": threads}
        # Keep freed memory: returning each large tensor to the kernel cost a fifth of an update's time.
        variables |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(1 << 28)}
    return variables


def launch(command: Sequence[str], variables: dict[str, str], folder: Path, whole: Path) -> tuple[int, bool]:
    """Run a command that trains a stage in this folder, in a session of its own, so that ending it ends every rank.

    Returns its exit status, and whether the run was asked to stop: by a signal, which the ranks hear of through a file in the
    folder of the whole run, or by somebody's making that file.
    """

    def pass_on(number: signal.Signals) -> None:
        stop_signals.request(whole)
        log.warning("%s: stopping after this update; Ctrl-C again ends at once", number.name)

    heartbeat.forget(folder)
    asked = stop_signals.Asked(pass_on)
    process = subprocess.Popen(
        command, env={**os.environ, **variables, **heartbeat.launcher_mark()}, start_new_session=True
    )
    try:
        status = wait(process, folder)
        heard = asked.seen or stop_signals.is_requested(whole)
        if status == 0 and not heard and not is_completed(folder):
            status = 1  # DeepSpeed's launcher was killed itself
        if status not in (0, 2, EXIT_AGAIN):
            cause = heartbeat.diagnosis(folder) or f"the ranks ended with exit status {status}"
            log.error("%s. See above and %s", cause, folder / "train.log")
        return status, heard
    finally:
        end_session(process)
        asked.restore()
        stop_signals.withdraw(whole)
        heartbeat.forget(folder)


def wait(process: subprocess.Popen[bytes], folder: Path) -> int:
    """The exit status of DeepSpeed's launcher; 1 where it still waits for a host long after a rank has failed."""
    while True:
        try:
            return process.wait(heartbeat.BEAT)
        except subprocess.TimeoutExpired:
            if heartbeat.is_lost(folder):
                return 1


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the launched session: ask, wait, insist."""
    for asked, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(process.pid, asked)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
