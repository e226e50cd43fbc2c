#!/usr/bin/env bash
# All experiments of configs/reproduce, one after another; each goes on where it was stopped.
#   bash scripts/reproduce.sh --data DIR [--scale small|paper] [--dry_run]
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""  # an extra: none
for file in "$root"/configs/reproduce/*.yaml; do
    "$PYTHON" -m aligner reproduce "$(basename "$file" .yaml)" "$@"
done
