#!/usr/bin/env bash
# Put into a folder all that a run takes from the network, for nodes that have none: packages, the embedded model, what the
# run names on the hub. Run it where there is a network (a login node), with a Python like the nodes'.
#   bash scripts/prepare-offline.sh DIR [the flags of the run]
# On the nodes: export ALIGNER_OFFLINE=DIR; then nothing reaches for the network.
set -eu
if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
    echo "error: name the folder first: bash scripts/prepare-offline.sh DIR [the flags of the run]" >&2
    exit 2
fi
folder=$(readlink -m -- "$1")
shift
unset ALIGNER_OFFLINE
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/environment.sh" ""  # an extra: none
"$PYTHON" "$root/scripts/environment.py" prepare "" "$folder"
exec "$PYTHON" -m aligner.launch.prepare_offline "$folder" "$@"
