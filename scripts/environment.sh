# Sourced by the other scripts: finds or makes a Python environment and leaves it in $PYTHON; environment.py does the work.
# An active environment that satisfies pyproject.toml is used as it is; otherwise ALIGNER_VENV, or .venv here, gets the
# tested versions. Usage: source environment.sh EXTRA   ("" for none; left out, bash would pass the caller's own arguments)

root=$(CDPATH='' builtin cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." >/dev/null && pwd -P)
extra=$1

# Exit 0 if Python $1 starts and is 3.11 or newer: a module's PYTHONHOME would break any other.
is_new_enough() {
    env -u PYTHONHOME "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1
}

# Exit 0 if Python $1 can run the project, with the packages that PYTHONPATH and the user's own folder give it.
is_ready() {
    "$1" "$root/scripts/environment.py" ready "$extra" </dev/null >/dev/null 2>&1
}

find_python() {
    local name
    for name in python3 python python3.14 python3.13 python3.12 python3.11 "$(uv python find '>=3.11' 2>/dev/null)"; do
        if [ -n "$name" ] && is_new_enough "$name"; then
            env -u PYTHONHOME "$name" -I -c 'import sys; print(sys.executable)'
            return
        fi
    done
    echo "error: no Python 3.11 or newer is on PATH. Load its module, or install one ('uv python install 3.12' does without root)." >&2
    return 1
}

# Without the settings of a cluster's module, which may be for another Python.
is_ready_alone() (unset PYTHONPATH PYTHONHOME && is_ready "$1")

PYTHON=$(type -P python3 || type -P python || true)
if [ -n "${ALIGNER_VENV:-}" ] || [ -z "$PYTHON" ] || ! { is_ready "$PYTHON" || is_ready_alone "$PYTHON"; }; then
    base=$(find_python) || exit 2
    PYTHON=$(env -u PYTHONHOME "$base" -I "$root/scripts/environment.py" make "$extra") || exit
fi
if [ -n "${PYTHONPATH:-}${PYTHONHOME:-}" ] && ! is_ready "$PYTHON"; then
    echo "PYTHONPATH and PYTHONHOME are set aside: they have packages of another Python before $PYTHON's own" >&2
    unset PYTHONPATH PYTHONHOME
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
