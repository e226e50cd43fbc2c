"""`--dry_run`: what a run would do: its command, the arithmetic, the tally, the memory, examples of each data set."""

from __future__ import annotations

import shlex

from aligner.launch.command import environment, launch_command
from aligner.launch.report import examples, show_examples
from aligner.models import load_tokenizer
from aligner.terminal import print_lines
from aligner.training.config import RunConfig
from aligner.training.datasets.rated import length_ratios
from aligner.training.distributed.hardware import gpu_memory, gpus_here
from aligner.training.distributed.hosts import read_hostfile
from aligner.training.planning.memory import size_of
from aligner.training.planning.memory_plan import (
    Hardware,
    fit_lines,
    memory_lines,
    need_of,
    one_gpu_line,
    recomputing_line,
    settle_recomputing,
)
from aligner.training.planning.shapes import shape_of_model
from aligner.training.stages import plan_of, records_per_update, sides_as_tokens, stage_data, stages, stages_to_train


def dry_run(config: RunConfig, ranks: int) -> None:
    """Print it all."""
    variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment(config, ranks).items())
    print_lines("", f"{variables} {shlex.join(launch_command(config, ranks))}")
    tokenizer = load_tokenizer(stages(config)[0].start_from, config.model.trust_remote_code)
    for stage in stages_to_train(config):
        data = stage_data(config, stage.name)
        (tokens, tally), (_, held_out_tally) = sides_as_tokens(config, data, tokenizer)
        print_lines("", stage.name)
        print_lines(plan_of(stage.optimization, len(tokens), records_per_update(config, ranks), ranks).line())
        for side, counted in (("training", tally), ("held out", held_out_tally)):
            for line in counted.lines() if counted.rows else []:
                print_lines(f"{side}: {line.strip()}")
        print_lines(f"prompt: {data.prompts.line()}")
        for name, (count, ratio) in length_ratios(data.train).items():
            print_lines(f"objective {name}: {count:,} records, median length of the target {ratio:.2f} of its answer's")
    print_lines("", *memory_summary(config, ranks))
    show_examples(examples(tokens, data.train_sources), tokenizer)


def memory_summary(config: RunConfig, ranks: int) -> list[str]:
    """What each rank will hold, and whether this machine's GPUs can."""
    shape = shape_of_model(config.model.model_name_or_path or "", config.model.trust_remote_code)
    size, per_node = size_of(shape, config.lora), ranks
    if config.launch.hostfile:
        per_node = max(host.slots for host in read_hostfile(config.launch.hostfile))
    hardware = Hardware(ranks, per_node, gpu_memory(), on_cpu=not (gpus_here() or config.launch.hostfile))
    settled = settle_recomputing(config, shape, size, hardware)
    need = need_of(settled, shape, size, hardware)
    lines = [f"memory ({size.parameters:,} parameters; 'aligner plan' has more)", recomputing_line(config, settled)]
    lines += memory_lines(need, hardware)
    if not hardware.gpu_memory:
        return lines
    return [*lines, *fit_lines(settled, shape, size, hardware, need), *one_gpu_line(config, ranks)]
