#!/usr/bin/env bash
# Proves that the main job runs on a Python newer than 3.11, where pip resolves to RecBole 1.2.0:
# a new virtual environment, the package installed into it, and one run in an empty folder.
#
#   scripts/prove_newer_python.sh [PYTHON]     PYTHON: python3.12 (default), python3.13, ...
#
# FULL=1            the run with all defaults (4 to 5 minutes) instead of one epoch on a tenth of D
# TORCH=torch==...  another torch (default torch==2.13.0)
# WORK=FOLDER       make and keep everything there instead of in a temporary folder
#
# Takes 5 minutes or so, nearly all of it the installation: there may be no CPU build of torch for
# this Python, and pip then installs the CUDA build (2.5 GB to download, 6 GB on disk).
set -euo pipefail

python=${1:-python3.12}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -n ${WORK:-} ]]; then
    work=$(mkdir -p "$WORK" && cd "$WORK" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' || {
    echo "$python is not Python 3.12 or newer" >&2
    exit 2
}

# A copy, so that the build leaves nothing in the checkout.
mkdir -p "$work/source" "$work/run"
cp -r "$checkout"/{pyproject.toml,setup.cfg,README.md,LICENSE,recbole_escm2,properties} "$work/source"
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "${TORCH:-torch==2.13.0}"
"$work/venv/bin/pip" install --quiet "$work/source"
"$work/venv/bin/python" -c '
import platform
from importlib.metadata import version
names = ("recbole", "torch", "numpy", "pandas", "scipy")
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in names))'

options=(--model=ESCM2_DR --dataset=ml-100k)
[[ ${FULL:-0} == 1 ]] || options+=(--epochs=1 --impression_sample=0.1)
cd "$work/run"
"$work/venv/bin/recbole-escm2" "${options[@]}" | tee metrics.txt

for name in CTR_AUC CVR_AUC CTCVR_AUC; do
    grep -qE "^$name: 0\.[0-9]+$" metrics.txt || {
        echo "FAIL  no line '$name: ...' in the output" >&2
        exit 1
    }
done
echo "ok    recbole-escm2 ${options[*]} on $("$python" --version): $(grep '^CTCVR_AUC: ' metrics.txt)"
