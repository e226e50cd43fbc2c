#!/usr/bin/env bash
# Ask upstreams, correct their answers, judge both, and print the table: one command that goes on where it was stopped.
#   bash scripts/evaluate.sh configs/evaluation/upstreams.yaml
set -eu
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh" ""  # an extra: none
exec "$PYTHON" -m aligner campaign "$@"
