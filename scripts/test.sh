#!/usr/bin/env bash
# Set up what is missing, then run the linters and the quick tests (five minutes on two quiet cores).
#   bash scripts/test.sh [pytest arguments]            the quick ones
#   bash scripts/test.sh --slow [PART] [arguments]     the slow ones, or a part of them (tests/README.md has the parts)
#   bash scripts/test.sh --gpu [--only STEP ...]       the acceptance run of a GPU (tests/acceptance/README.md)
set -eu
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh" test
cd "$root"
if [ ! -w "$root" ]; then  # a read-only checkout: the linters keep no cache in it
    export RUFF_NO_CACHE=true MYPY_CACHE_DIR=/dev/null PYTHONDONTWRITEBYTECODE=1 PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} -p no:cacheprovider"
fi
if [ "${1:-}" = "--gpu" ]; then
    shift
    exec "$PYTHON" -m tests.acceptance "$@"
fi
if [ "${1:-}" = "--slow" ]; then
    shift
    part=()
    if [[ "${1:-}" =~ ^[a-z_]+$ ]]; then
        part=(--part "$1")
        shift
    fi
    exec "$PYTHON" -m pytest -m slow "${part[@]}" "$@"
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest -n 3 --no-loadscope-reorder "$@"
