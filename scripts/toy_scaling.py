"""How many teachers fit into one student, and whether the gradient vanishes far from them; resumes.

    python scripts/toy_scaling.py [--out FILE] [--seeds 5] [--effects 4 16 64 180] [--per-effect]

A row of FILE is one measurement; those that are there are not made again. Draw them with toy_plots.py.
"""

import argparse
import time
from pathlib import Path

import torch
from toy_table import Table

from collectionlora.toy.studies import OBJECTIVES, follow, measure_scaling, scaling_settings
from collectionlora.toy.world import ToyWorld


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results/toy_scaling.json"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--effects", type=int, nargs="*", default=[4, 16, 64, 180])
    parser.add_argument("--per-effect", action="store_true", help="equal updates for each effect, not in all")
    parser.add_argument("--distance", type=float, default=10, help="of two effects that are far away")
    parser.add_argument("--updates", type=int, default=300, help="towards the effects far away")
    parser.add_argument("--base-steps", type=int, default=2500)
    parser.add_argument("--teacher-steps", type=int, default=800)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(args.out)

    steps = args.base_steps, args.teacher_steps
    for seed in range(args.seeds):
        follow_all(table, seed, args.distance, args.updates, steps)
        for num_effects in args.effects:
            asked = {"study": "scaling", "effects": num_effects, "seed": seed, "per_effect": args.per_effect}
            if not table.has(**asked):
                began = time.perf_counter()
                world = ToyWorld(num_effects, seed, 4.0, *steps)
                made = time.perf_counter()
                result = measure_scaling(world, scaling_settings(num_effects, seed, args.per_effect))
                seconds = {"teachers_seconds": made - began, "student_seconds": time.perf_counter() - made}
                table.add(asked, {**result, **seconds})


def follow_all(table: Table, seed: int, distance: float, num_updates: int, steps: tuple[int, int]) -> None:
    """Two effects far away, by each objective."""
    world = None
    for objective in OBJECTIVES:
        asked = {"study": "far", "objective": objective, "distance": distance, "seed": seed}
        if not table.has(**asked, updates=num_updates):
            world = world or ToyWorld(2, seed, distance, *steps)
            for updates, result in follow(world, objective, num_updates, seed):
                if not table.has(**asked, updates=updates):
                    table.add({**asked, "updates": updates}, result)


if __name__ == "__main__":
    main()
