#!/usr/bin/env bash
# Set up what is missing, then run the linters and the quick tests (at most 12 minutes on two cores).
#   bash scripts/test.sh [pytest arguments]      the quick ones
#   bash scripts/test.sh --slow [...]            the slow ones
set -eu
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh" test
cd "$root"
marker="not slow"
if [ "${1:-}" = "--slow" ]; then
    marker="slow"
    shift
else
    "$PYTHON" -m ruff check .
    "$PYTHON" -m ruff format --check .
    "$PYTHON" -m mypy
fi
exec "$PYTHON" -m pytest -m "$marker" "$@"
