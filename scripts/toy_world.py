"""The ablation on the toy world, in exact distances: python scripts/toy_world.py [--out FILE] [--only NAME]

Prints one line for each variant and number of steps and writes them, with CPU seconds, as JSON.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from collectionlora.effectbench.toy_world import VARIANTS, ToyWorld, run_to_end, toy_settings
from collectionlora.files import write_json


def measure(world: ToyWorld, name: str, seed: int) -> list[dict[str, Any]]:
    """One variant, judged at every number of steps that it learnt (8, 4, 2 and 1 for the warm start)."""
    settings = toy_settings(*VARIANTS[name], {"distill": {"seed": seed}})
    began = time.process_time()
    run = run_to_end(world.distillation(settings))
    seconds = round(time.process_time() - began, 1)
    lengths = settings.distill.rollout_steps if settings.distill.student_updates else (8, 4, 2, 1)
    rows = []
    for num_steps in lengths:
        result = {key: round(value, 3) for key, value in world.judge(run, num_steps).items()}
        rows.append({"variant": name, "steps": num_steps, "seed": seed, "seconds": seconds, **result})
        print(f"{name:32s} {num_steps} steps  {result}  {seconds} s", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help="variants to run; default all")
    parser.add_argument("--effects", type=int, default=4)
    parser.add_argument(
        "--displacement", type=float, default=4.0, help="distance of the effects from the base"
    )
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        began = time.process_time()
        world = ToyWorld(args.effects, seed, args.displacement)
        print(f"base and {args.effects} teachers: {time.process_time() - began:.1f} s", flush=True)
        for num_steps in (8, 4, 2, 1):
            distance = round(world.judge_undistilled(num_steps), 3)
            rows.append(
                {
                    "variant": "undistilled teachers",
                    "steps": num_steps,
                    "seed": seed,
                    "effects_mean": distance,
                }
            )
            print(f"{'undistilled teachers':32s} {num_steps} steps  effects_mean {distance}", flush=True)
        for name in args.only or VARIANTS:
            rows += measure(world, name, seed)
            if args.out:
                write_json(args.out, {"torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
