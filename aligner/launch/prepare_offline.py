"""`scripts/prepare-offline.sh DIR FLAGS`: what a run takes from the network, laid into a folder beside its packages."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from aligner.readers.paths import home_expanded
from aligner.surroundings import HUB, MODELS, OFFLINE, PACKAGES
from aligner.terminal import print_lines

log = logging.getLogger("aligner")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill DIR for the run with these flags (without flags: the embedded default). Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    folder = Path(given[0]).absolute()
    os.environ["HF_HOME"] = str(folder / HUB)  # before the libraries that read it
    from aligner.console import setup_logging
    from aligner.records import UserError
    from aligner.system_errors import system_error

    setup_logging()
    try:
        prepare(folder, given[1:])
    except (UserError, OSError) as error:
        log.error("%s", system_error(error) if isinstance(error, OSError) else error)
        return 2
    print_lines(f"prepared: {folder}", f"on a node without a network: export {OFFLINE}={folder}")
    return 0


def prepare(folder: Path, flags: Sequence[str]) -> None:
    """The embedded model, the base model where it is on the hub, and the hub's data sets that the flags name."""
    from aligner.demo import FOLDER, NAME, embedded_model
    from aligner.files import is_completed, remove_folder
    from aligner.launch.launch import completed_flags

    config = completed_flags(flags)
    kept = folder / MODELS / FOLDER
    if not is_completed(kept):
        remove_folder(kept)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(embedded_model(), kept, copy_function=shutil.copyfile)
    model = config.model.model_name_or_path or NAME
    names = [] if model == NAME or home_expanded(model).exists() else [model]
    for name in names:
        fetch_model(name)
    from aligner.training.stages import stage_data, stages

    data = stage_data(config, stages(config)[-1].name)  # reads every data set, so that the hub's are kept
    about = {
        "python": sys.version.split()[0],
        "models": [NAME, *names],
        "records": len(data.train) + len(data.held_out),
    }
    (folder / "prepared.json").write_text(
        json.dumps({**about, "packages": len(list((folder / PACKAGES).glob("*.whl")))})
    )


def fetch_model(name: str) -> None:
    """A model of the hub into its cache. UserError where it cannot be had."""
    from huggingface_hub import snapshot_download

    from aligner.records import UserError

    log.info("fetching %s from the hub", name)
    try:
        snapshot_download(name, ignore_patterns=["*.gguf", "*.onnx", "*.msgpack", "*.h5", "original/*"])
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} cannot be fetched from the hub ({reason}). Check its name, or 'hf auth login'."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
