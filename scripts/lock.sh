#!/usr/bin/env bash
# Renews the hash-pinned sets from constraints.txt: every package that the project needs, in one version, with the hashes of all its
# files. Run it after a change of pyproject.toml or constraints.txt, read the difference, run the tests, commit. Needs uv.
#   bash scripts/lock.sh              constraints.txt and the versions that are locked decide; --upgrade takes newer ones of the rest
#   bash scripts/lock.sh --check      known advisories about the locked versions, by pip-audit; skipped, and said, without it
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

if [ "${1:-}" = --check ]; then
    command -v pip-audit >/dev/null || { echo "skipped: advisories are not checked, pip-audit is not installed (pip install pip-audit)"; exit 0; }
    said=$(mktemp)
    trap 'rm -f "$said"' EXIT
    if timeout 300 pip-audit --disable-pip --no-deps --requirement locked-test.txt >"$said" 2>&1; then
        unknown=$(grep -c 'could not be audited' "$said" || true)
        if [ "$unknown" -gt 0 ]; then
            echo "skipped: the service of advisories does not know $unknown of $(grep -c == locked-test.txt) packages, so that nothing is said of them"
        fi
        grep -v 'could not be audited' "$said" || true
    elif grep -qiE 'connection|name resolution|max retries|timed? ?out|proxy|unreachable|HTTPError|RequestException' "$said"; then
        echo "skipped: advisories are not checked, their service cannot be reached from here ($(tail -n 1 "$said" | cut -c1-120))"
    else
        cat "$said"
        exit 1
    fi
    exit 0
fi

# torch and what it brings for CUDA stay outside: which of its builds is right depends on the machine (environment.py).
outside=(torch triton cuda-bindings cuda-pathfinder cuda-toolkit)
outside+=(nvidia-{cublas,cuda-cupti,cuda-nvrtc,cuda-runtime,cudnn-cu13,cufft,cufile,curand,cusolver,cusparse,cusparselt-cu13})
outside+=(nvidia-{nccl-cu13,nvjitlink,nvshmem-cu13,nvtx})
common=(--quiet --universal --python-version 3.11 --constraints constraints.txt --generate-hashes --no-annotate --no-header "$@")
for name in "${outside[@]}"; do
    common+=(--no-emit-package "$name")
done
uv pip compile ../pyproject.toml "${common[@]}" --output-file locked.txt
uv pip compile ../pyproject.toml --extra test --extra metrics "${common[@]}" --constraints locked.txt --output-file locked-test.txt
