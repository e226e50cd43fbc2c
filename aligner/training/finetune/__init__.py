"""The program that every rank runs: deepspeed --module aligner.training.finetune."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # before DeepSpeed is imported, or each rank says that it looked for more
