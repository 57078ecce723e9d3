"""Known vulnerabilities of the versions in constraints.txt, by pip-audit from the OSV database.

    python scripts/audit.py

Exit code 1 if there are any. Where the database cannot be reached that is said, and nothing fails.
"""

import json
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
UNREACHED = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "SSLError")


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--format", "json"]
    command += ["--no-deps", "--disable-pip", "--vulnerability-service", "osv", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.strip():
        if any(reason in done.stderr for reason in UNREACHED):
            print("skipped: pip-audit: the advisory database cannot be reached")
            return 0
        print(done.stderr, file=sys.stderr)
        return 1
    packages = json.loads(done.stdout)["dependencies"]
    for package in packages:
        for found in package.get("vulns", []):
            fixes = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixes}")
    print(f"{len(packages)} packages, pip-audit found {'nothing' if done.returncode == 0 else 'the above'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
