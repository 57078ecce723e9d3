#!/usr/bin/env bash
# Everything that is measured on a GPU, within nine minutes, on a machine with CUDA, PyTorch and no network.
#
#     scripts/gpu/wheels.sh                   once, where there is a network
#     scripts/gpu/run.sh [--out FOLDER]       writes FOLDER/gpu.json as it goes; by default $OUT, or else gpu-out
#     scripts/gpu/run.sh --tiny               the same on the CPU over small networks, in seconds
#
# --help says what else it takes.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
"$python" "$root/scripts/gpu/measure.py" "$@"
