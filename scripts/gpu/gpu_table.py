"""The table of docs/gpu.md from docs/results/gpu.json; without that file the page says that nothing ran.

python scripts/gpu/gpu_table.py --write
"""

import argparse
import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
RESULT, PAGE = DOCS / "results" / "gpu.json", DOCS / "gpu.md"
BEGIN, END = "<!-- made by scripts/gpu/gpu_table.py -->\n", "<!-- end -->\n"
NOTHING = "No measurement is here yet.\n"
GIB = 2**30


def rows_of_large(name: str, part: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured of a large base at one rank, its value and its aim."""
    rows = []
    for what, aim in (("targets", ""), ("update", "within 10 %")):
        if ratio := part.get("ratio", {}).get(what):
            planned = part["planned_bytes"][what]
            size = f"{ratio * planned / GIB:.1f} GiB of {planned / GIB:.1f} planned ({ratio - 1:+.1%})"
            rows.append((f"{name}: peak memory, {what}", size, aim))
    for what, seconds in part.get("seconds", {}).items():
        rows.append((f"{name}: {what.replace('_', ' ')}", f"{seconds:.3g} s", ""))
    if "lora_overhead" in part:
        rows.append((f"{name}: LoRA's share of a forward", f"{part['lora_overhead']:.1%}", "under 8 %"))
    if shares := part.get("share_of_matmul"):
        rows.append((f"{name}: share of matrix products' rate", f"{shares['useful']:.1%}", "45 %"))
        rows.append((f"{name}: with what is computed twice", f"{shares['done']:.1%}", ""))
    if reference := part.get("reference"):
        rows.append((f"{name}: seconds / the reference's layout", f"{reference['ours_by_seconds']:.2f}", ""))
        rows.append((f"{name}: memory / the reference's layout", f"{reference['ours_by_bytes']:.2f}", ""))
    return rows


def rows_of_part(name: str, part: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The rows of one part; what stopped it is the last."""
    rows = rows_of_large(name, part)
    for dtype, rate in part.get("matmul_flops_a_second", {}).items() if name == "device" else ():
        rows.append((f"matrix product, {dtype}", f"{rate / 1e12:.0f} TFLOP/s", ""))
    if counts := part.get("counts"):
        counted = ", ".join(f"{number} {what}" for what, number in counts.items())
        rows.append((name, counted, "some passed, 0 failed"))
    if name == "toy" and "match" in part:
        rows.append((name, f"{part['match']:.0f} / {part['distill']:.1f} updates a second", ""))
    for what, found in part.items() if name == "nano" else ():
        if isinstance(found, dict):
            rates = f"{found['match']:.1f} / {found['distill']:.2f} updates a second"
            rows.append((f"nano, {what.replace('px-', ' px, batch ')}", rates, ""))
    for key in ("error", "exit_code", "stopped_after", "left_out"):
        if key in part:
            rows.append((f"{name}: {key.replace('_', ' ')}", str(part[key]).splitlines()[0][:200], ""))
    return rows


def write_table(found: dict[str, Any]) -> str:
    """Markdown of all parts."""
    device = found.get("device", {})
    head = f"On {device.get('device')}, torch {device.get('torch')}.\n\n| | measured | aim |\n|---|---|---|\n"
    rows = [row for name, part in found.items() for row in rows_of_part(name, part)]
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page_part() -> str:
    """What stands between the page's marks."""
    return write_table(json.loads(RESULT.read_text())) if RESULT.exists() else NOTHING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/gpu.md; else it is printed")
    if parser.parse_args().write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{page_part()}\n{END}{rest.partition(END)[2]}")
    else:
        print(page_part())


if __name__ == "__main__":
    main()
