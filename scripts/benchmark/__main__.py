"""How fast the method runs here: ratios, not times, so that machines can be compared.

    python scripts/benchmark [--only cycle nano ...] [--out docs/results/performance.json]

Every part is a process of its own with one thread, so that its memory is its own; seconds are CPU seconds.
With `--only` the other parts keep what the file has of them. docs/performance.md explains the table.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from collectionlora.system.files import write_json

DOCS = Path(__file__).parents[2] / "docs"
OUT, PAGE = DOCS / "results" / "performance.json", DOCS / "performance.md"
BEGIN, END = "<!-- ratios: written by scripts/benchmark -->\n", "<!-- end of ratios -->\n"
# Part -> its tasks, each `module.function` and a process of its own.
PARTS = {
    "counts": ["training.counts"],
    "cycle": [
        "training.imports",
        "training.cycle_plain",
        "training.cycle_checkpointed",
        "training.reference_layout",
    ],
    "nano": ["training.nano"],
    "lora": ["training.lora"],
    "checkpoint": ["training.saving"],
    "switch": ["training.switch"],
    "sampling": ["using.sampling"],
    "merged": ["using.merged"],
    "cold": ["using.cold"],
    "growth": ["training.growth"],
    "processes": ["using.several_processes"],
    "compile": ["using.compiled"],
    "profile": ["training.profiles"],
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# glibc keeps freed memory instead of returning it at every step, as `make demo` has it. What measures memory
# runs once more with memory given back at once, so that the peak is of what is held and not of holes.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144"}
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_MMAP_THRESHOLD_": "100000000000"}
MEASURES_MEMORY = PARTS["cycle"]


def run_task(task: str) -> Any:
    """What a task returns; its peak memory is of a run of its own."""
    result = run_process(task, KEPT_MEMORY)
    if task in MEASURES_MEMORY:
        result["peak_mib"] = run_process(task, GIVEN_BACK)["peak_mib"]
    return result


def run_process(task: str, allocator: dict[str, str]) -> Any:
    """What a task returns from a process of its own."""
    environment = {**os.environ, **ENVIRONMENT, **allocator}
    command = [sys.executable, __file__, "--task", task]
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def ratios(found: dict[str, Any]) -> list[tuple[str, float, str]]:
    """What, the ratio, and what it should be, of all parts that were measured."""
    rows: list[tuple[str, float, str]] = []

    def row(what: str, value: float, aim: str = "") -> None:
        rows.append((what, round(value, 4), aim))

    if counts := found.get("training.counts"):
        forwards, backwards = counts["reference"]
        row("forwards of a student update / reference's", counts["effect"][0] / forwards, "<= 0.66")
        row("the same, the paper's critic order", counts["simulated"][0] / forwards)
        row("backwards / reference's", counts["effect"][1] / backwards, "<= 1")
    if reference := found.get("training.reference_layout"):
        empty = found["training.imports"]["peak_mib"]
        for name in ("checkpointed", "plain"):
            ours = found[f"training.cycle_{name}"]
            row(
                f"cycle, {name} / reference layout: CPU seconds",
                ours["seconds"] / reference["seconds"],
                "0.5",
            )
            row(
                f"cycle, {name} / reference layout: peak memory",
                ours["peak_mib"] / reference["peak_mib"],
                "0.5",
            )
            beyond = (ours["peak_mib"] - empty) / (reference["peak_mib"] - empty)
            row("the same, beyond imports", beyond)
        plain = found["training.cycle_plain"]
        row("Qwen training FLOP/s / matmul", plain["flops"] / plain["seconds"] / plain["matmul_flops"])
    if nano := found.get("training.nano"):
        row("nano training FLOP/s / matmul", nano["flops"] / nano["seconds"] / nano["matmul_flops"], ">= 0.8")
    if part := found.get("training.lora"):
        for dtype in ("float32", "bfloat16"):
            for what in ("forward", "learn"):
                share = 1 - part["seconds"]["base"][what] / part["seconds"][dtype][what]
                row(f"LoRA's share of CPU seconds, {what}, {dtype}", share)
            moved = part["block_bytes"]
            row(f"LoRA's share of a true block's bytes, {dtype}", 1 - moved["base"] / moved[dtype])
    if part := found.get("training.saving"):
        row("a checkpoint: seconds that training waits / all of its", part["waits"] / part["takes"])
    for name, part in found.get("training.switch", {}).items():
        row(f"teacher switch / step, {name}", part["switch"] / part["step"], "< 0.01")
        row(f"drawing a batch / step, {name}", part["batch"] / part["step"])
    rows += ratios_of_use(found) + ratios_of_growth(found)
    return rows


def ratios_of_use(found: dict[str, Any]) -> list[tuple[str, float, str]]:
    rows = []
    if part := found.get("using.sampling"):
        rows.append(("8-step edits/s / plain diffusers loop", part["plain"] / part["ours"], ">= 1"))
        fused = part["fused_plain"] / part["fused_ours"]
        rows.append(("8-step edits/s / plain loop with fused LoRA", fused, ""))
        nano = part["nano"]
        rows.append(("nano edits/s, condition cached / not", nano["rereading"] / nano["cached"], "> 1"))
    if part := found.get("using.merged"):
        for what, decibels in part["psnr"].items():
            rows.append((f"LoRA {what} a bfloat16 nano: dB to float32", decibels, ""))
        for steps, seconds in part["seconds"].items():
            rows.append((f"LoRA merged / beside, {steps} steps", seconds["merged"] / seconds["beside"], ""))
    if part := found.get("using.cold"):
        rows.append(("cold edit / importing torch: CPU seconds", part["edit"] / part["import_torch"], ""))
        rows.append(("--help / importing torch: CPU seconds", part["help"] / part["import_torch"], ""))
    if part := found.get("using.compiled"):
        plain, fast = part["plain"], part["compiled"]
        rows.append(("model.compile: forward speed", plain["forward"] / fast["forward"], ""))
        rows.append(("model.compile: critic update speed", plain["learn"] / fast["learn"], ""))
        rows.append(("model.compile: its time / a plain critic update", fast["first"] / plain["learn"], ""))
    return [(what, round(value, 4), aim) for what, value, aim in rows]


def ratios_of_growth(found: dict[str, Any]) -> list[tuple[str, float, str]]:
    rows = []
    if part := found.get("training.growth"):
        first = next(iter(part["tokens"].values()))
        rows += [(f"update, {n} tokens / first", s / first, "") for n, s in part["tokens"].items()]
        rows += [
            (f"a photo in a batch of {n} / alone", s / part["batch"]["1"], "")
            for n, s in part["batch"].items()
        ]
        two = part["effects"]["2"]
        for number, effect in part["effects"].items():
            rows.append((f"{number} effects / two: memory of teachers", effect["mib"] / two["mib"], ""))
            rows.append((f"{number} effects / two: one switch", effect["switch"] / two["switch"], ""))
    if part := found.get("using.several_processes"):
        rows.append(("images/s, two processes / one", 2 * part["1"] / part["2"], "2"))
    return [(what, round(value, 4), aim) for what, value, aim in rows]


def write_page(rows: list[tuple[str, float, str]]) -> None:
    """Put the table into docs/performance.md."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    lines = [
        "| | ratio | aim |",
        "|---|---|---|",
        *(f"| {what} | {value:.3g} | {aim} |" for what, value, aim in rows),
    ]
    table = "\n".join(lines)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n\n{END}{rest.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        module, _, function = args.task.rpartition(".")
        print(json.dumps(getattr(importlib.import_module(module or "using"), function)()))
        return
    found = json.loads(args.out.read_text())["parts"] if args.out.exists() else {}
    for part in args.only:
        for task in PARTS[part]:
            print(f"{task} ...", file=sys.stderr)
            found[task] = run_task(task)
    rows = ratios(found)
    machine = {"processor": platform.machine(), "torch": version("torch"), "diffusers": version("diffusers")}
    result = {"machine": machine, "ratios": {what: value for what, value, _ in rows}, "parts": found}
    write_json(args.out, result)
    if args.out == OUT:
        write_page(rows)
    for what, value, aim in rows:
        print(f"{what:<58} {value:>10.4g}  {aim}")


if __name__ == "__main__":
    main()
