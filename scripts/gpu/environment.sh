# Sourced by scripts that run on a lent machine: the package without installing it, and the wheels of what is missing or older.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" - "$root/scripts/gpu/wheels" "$site" <<'END'
import importlib.metadata
import sys
import zipfile
from pathlib import Path


def parts(version: str) -> list[int]:
    return [int(part) for part in version.split("+")[0].split(".") if part.isdigit()]


for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    name, version, python = wheel.name.split("-")[:3]
    if python.startswith("cp") and python != "cp{}{}".format(*sys.version_info):
        continue
    try:
        if parts(importlib.metadata.version(name)) >= parts(version):
            continue
    except importlib.metadata.PackageNotFoundError:
        pass
    zipfile.ZipFile(wheel).extractall(sys.argv[2])
    print("unpacked", wheel.name)
END
export PYTHONPATH="$site:$root/src:$root/tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
