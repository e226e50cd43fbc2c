#!/usr/bin/env bash
# Train an Aligner. Without data and model: the embedded default, on whatever this machine has.
#   bash scripts/sft-correction.sh
#   bash scripts/sft-correction.sh --train_datasets train.json --model_name_or_path BASE --output_dir DIR [flags]
# --help lists the flags, --dry_run shows what would be done.
set -eu
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh" ""  # an extra: none
exec "$PYTHON" -m aligner.launch "$@"
