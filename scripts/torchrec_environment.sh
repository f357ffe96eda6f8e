#!/usr/bin/env bash
# Makes an environment in which embedding tables can be in shards on CPUs (embedding_placement):
# this package, and TorchRec on the CPU build of its kernels. TorchRec's wheel asks for the build for
# CUDA, and for one version of torchmetrics, so that it is installed without its dependencies.
#
#     scripts/torchrec_environment.sh FOLDER        (PYTHON=python3.12 for another Python)
#
# Then FOLDER/bin/torchrun --nproc_per_node=2 run_recbole_escm2.py --embedding_placement=sharded …,
# and the tests of it: FOLDER/bin/python -m pytest -n0 tests/distributed/test_sharded.py
#
# Shards on GPUs need no such thing: pip install 'recbole-escm2[torchrec]'.
set -euo pipefail
if [ $# -ne 1 ] || [ "${1#-}" != "$1" ]; then
    sed -n '2,12s/^# \{0,1\}//p' "$0"
    exit 2
fi
folder=$1
here=$(cd "$(dirname "$0")/.." && pwd)
cpu=https://download.pytorch.org/whl/cpu

"${PYTHON:-python3}" -m venv "$folder"
pip() { "$folder/bin/python" -m pip install --quiet "$@"; }
pip --upgrade pip
pip torch==2.13.0 --extra-index-url "$cpu"
pip fbgemm-gpu-cpu==1.8.0 --extra-index-url "$cpu"
pip torchrec==1.8.0 --no-deps
pip torchmetrics tensordict iopath pyre-extensions typing-inspect
pip --editable "$here[test]"
"$folder/bin/python" - <<'PY'
import warnings

warnings.simplefilter("ignore")
import fbgemm_gpu
import torch
import torchrec

import recbole_escm2

print(f"torch {torch.__version__}, torchrec {torchrec.__version__}, recbole-escm2 "
      f"{recbole_escm2.__version__}")
PY
