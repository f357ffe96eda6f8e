#!/usr/bin/env bash
# Proves that the package works under stock RecBole: a new virtual environment, RecBole 1.2.1 and
# the package installed into it, and scripts/stock_recbole_check.py run in an empty folder. It
# checks what the import does, run_recbole with our models and RecBole's own, metrics, a benchmark
# config file, checkpoints, own models and hyper-parameter tuning, a line for each fact.
#
#   scripts/prove_stock_recbole.sh [PYTHON]    PYTHON: python3.11 by default (RecBole 1.2.1 can't
#                                              be installed on 3.12 and newer)
#
# QUICK=1           leave out the run with all defaults
# TORCH=torch==...  another torch (default torch==2.13.0)
# WORK=FOLDER       make and keep everything there instead of in a temporary folder
#
# Takes 8 minutes or so on two idle cores: 2 for the installation, 2 for the checks, 4 for the run
# with all defaults. Ends non-zero if a fact doesn't hold.
set -euo pipefail

python=${1:-python3.11}
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -n ${WORK:-} ]]; then
    work=$(mkdir -p "$WORK" && cd "$WORK" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi

# A copy, so that the build leaves nothing in the checkout.
mkdir -p "$work/source"
cp -r "$checkout"/{pyproject.toml,setup.cfg,README.md,LICENSE,recbole_escm2,properties} "$work/source"
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "${TORCH:-torch==2.13.0}"
# What RecBole 1.2.1 needs beside it: its Config names np.float_, which numpy 2 hasn't, and its
# quick_start imports ray 2.6.3, which needs pkg_resources, which setuptools 82 hasn't.
"$work/venv/bin/pip" install --quiet "$work/source" recbole==1.2.1 'numpy<2' 'setuptools<82'

rm -rf "$work/run"
mkdir "$work/run"
cp "$checkout/scripts/stock_recbole_check.py" "$work/check.py"
cd "$work/run"
options=(full)
[[ ${QUICK:-0} != 1 ]] || options=()
"$work/venv/bin/python" "$work/check.py" "${options[@]}" 2>"$work/check.log" || {
    status=$?
    echo "the log ends with:"
    tail -n 20 "$work/check.log"
    exit "$status"
}
echo "all of it holds"
