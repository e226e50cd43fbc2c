# Sourced by the other scripts: finds or makes a Python environment and leaves it in $PYTHON.
# An active environment that satisfies pyproject.toml is used as it is; otherwise .venv gets the tested versions.
# Usage: source environment.sh EXTRA   ("" for none; left out, bash would pass the caller's own arguments)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extra=$1

# Exit 0 if Python $1 is new enough and has what pyproject.toml and its extra $2 ask for.
satisfies() {
    "$1" - "$root/pyproject.toml" "$2" >/dev/null 2>&1 <<'PYTHON'
import importlib.metadata, sys, tomllib
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
wanted = project["dependencies"] + (project["optional-dependencies"][sys.argv[2]] if sys.argv[2] else [])
for requirement in map(Requirement, wanted):
    if not requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True):
        sys.exit(1)
PYTHON
}

# The first Python on PATH that is 3.11 or newer.
find_python() {
    local name
    for name in python3 python python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            "$name" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    echo "error: no Python 3.11 or newer is on PATH. Install one and run this again." >&2
    return 1
}

make_environment() {
    local base wanted marker
    base=$(find_python) || return 1
    wanted=$(cat "$root/pyproject.toml" "$root/scripts/constraints.txt" | cksum)
    marker="$root/.venv/.installed-${extra:-core}"
    if [ "$(cat "$marker" 2>/dev/null)" = "$wanted" ] && [ -x "$root/.venv/bin/python" ]; then
        return
    fi
    echo "Setting up $root/.venv (once; about 2 GB of packages)"
    if ! [ -x "$root/.venv/bin/python" ] && ! "$base" -m venv "$root/.venv"; then
        rm -rf "$root/.venv"
        echo "error: $base cannot make a virtual environment. Install its venv module (python3-venv) and run this again." >&2
        return 1
    fi
    # Only the lines that show progress; pip's status is kept by pipefail.
    if ! (set -o pipefail; "$root/.venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        -c "$root/scripts/constraints.txt" -e "$root${extra:+[$extra]}" 2>&1 | tee "$root/.venv/install.log" \
        | sed -n -u 's/^ *Downloading \([^ ]*\)-[0-9].*(\(.*\))$/  \1 \2/p; s/^Installing collected.*/  installing/p'); then
        tail -5 "$root/.venv/install.log" >&2
        echo "error: the packages could not be installed; $root/.venv/install.log has the whole story." >&2
        return 1
    fi
    echo "$wanted" >"$marker"
}

PYTHON=$(command -v python3 || command -v python || true)
if [ -z "$PYTHON" ] || ! satisfies "$PYTHON" "$extra"; then
    make_environment || exit 1
    PYTHON="$root/.venv/bin/python"
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
