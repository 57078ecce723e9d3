"""axe-core, the checker of accessibility, from the registry of npm; kept in build/ once it is there."""

import shutil
import subprocess
import tarfile
from pathlib import Path

VERSION = "4.14.1"
FOLDER = Path(__file__).parents[2] / "build" / f"axe-core-{VERSION}"
FILE = "package/axe.min.js"
# WCAG 2.2 at the levels A and AA.
AXE_OPTIONS = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]},
    "resultTypes": ["violations"],
}


def load_axe():
    """The script; None where it is not kept and npm cannot fetch it. npm checks its hash."""
    npm = shutil.which("npm")
    if not (FOLDER / FILE).exists():
        if npm is None:
            return None
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", f"axe-core@{VERSION}", "--fetch-retries=0", "--fetch-timeout=20000"]
        if subprocess.run(command, cwd=FOLDER, capture_output=True).returncode:
            return None
        with tarfile.open(next(FOLDER.glob("*.tgz"))) as package:
            package.extract(FILE, FOLDER, filter="data")
    return (FOLDER / FILE).read_text(encoding="utf-8")


def describe_violations(found):
    """One line for each element that breaks a rule."""
    return [
        f"{rule['id']}: {node['html'][:160]}: {node['failureSummary'][:300]}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
