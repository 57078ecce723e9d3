#!/usr/bin/env bash
# The wheels that run.sh carries to a machine that has PyTorch, peft and transformers and no network.
#
#     scripts/gpu/wheels.sh [FOLDER]          by default scripts/gpu/wheels, which git ignores; 13 MB
#
# For Python 3.12 on x86-64, in the versions of constraints.txt. Of bitsandbytes only the library for CUDA 13 is kept.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/scripts/gpu/wheels}
names="annotated-types bitsandbytes diffusers importlib_metadata lazy-importer piq pydantic pydantic_core"
names="$names typing_extensions typing-inspection"
pins=()
for name in $names; do
    pins+=("$(grep -i "^$name==" "$root/constraints.txt")")
done
mkdir -p "$folder"
rm -f "$folder"/*.whl
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --dest "$folder" "${pins[@]}"
python3 - "$folder" <<'END'
import sys, zipfile
from pathlib import Path

for wheel in Path(sys.argv[1]).glob("bitsandbytes-*.whl"):
    kept = wheel.with_suffix(".kept")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED) as small:
        for name in whole.namelist():
            if not name.endswith(".so") or name.endswith(("_cpu.so", "_cuda130.so")):
                small.writestr(name, whole.read(name))
    kept.replace(wheel)
END
du -sh "$folder"
