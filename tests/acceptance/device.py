"""Step 0: driver, wheel, GPUs, and that nothing has to be compiled."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess

import torch

from tests.acceptance.common import CUDA, TINY, report


def main() -> None:
    driver = None
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    versions = {name: getattr(__import__(name), "__version__", "?") for name in ("torch", "transformers", "deepspeed")}
    report(
        versions=versions, wheel=torch.version.cuda, driver=driver, gpus=torch.cuda.device_count(),
        gpu=torch.cuda.get_device_name() if CUDA else None, nvcc=shutil.which("nvcc"),
        trl=importlib.util.find_spec("trl") is not None, missed=[] if CUDA or TINY else ["torch sees no GPU"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
