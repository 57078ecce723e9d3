#!/usr/bin/env bash
# A nano base at up to 256 pixels, fifty teachers over it and one student of all, judged, on a GPU within nine minutes.
#
#     python scripts/nano/photographs.py --out DATA            once, where there is a network
#     scripts/gpu/wheels.sh
#     scripts/nano/on_gpu.sh --data DATA [--out FOLDER]        by default $OUT, or else on-gpu
#     scripts/nano/on_gpu.sh --data DATA --tiny                the same path on the CPU, in a minute
#
# FOLDER gets on_gpu.json as it goes, the base, the teachers, the student, its sheet and its metrics: eight files at
# most, none above 16 MB.
set -euo pipefail
source "$(dirname "$0")/../gpu/environment.sh"
export PYTHONPATH="$root/scripts/gpu:$PYTHONPATH" OMP_NUM_THREADS=1
"$python" "$root/scripts/nano/on_gpu.py" "$@"
