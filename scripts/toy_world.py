"""The ablation on the toy world, in exact distances; resumes.

    python scripts/toy_world.py [--out FILE] [--only NAME ...] [--seeds 5]

A row of FILE is a variant at one number of steps, with the CPU seconds of its training; what is there is not
made again. Draw them with toy_plots.py.
"""

import time
from functools import cached_property

import torch
from toy_table import Table, study_parser

from collectionlora.toy.world import VARIANTS, ToyWorld, run_to_end, toy_settings

STEPS = (8, 4, 2, 1)
UNDISTILLED = "undistilled teachers"


class Study:
    """All variants of one seed over one world, which is made when a row needs it."""

    def __init__(self, table: Table, num_effects: int, displacement: float, seed: int):
        self.table, self.num_effects, self.displacement, self.seed = table, num_effects, displacement, seed

    @cached_property
    def world(self) -> ToyWorld:
        return ToyWorld(self.num_effects, self.seed, self.displacement)

    def undistilled(self) -> None:
        """The teachers in few steps."""
        for num_steps in STEPS:
            asked = {"variant": UNDISTILLED, "steps": num_steps, "seed": self.seed}
            if not self.table.has(**asked):
                self.table.add(asked, {"effects_mean": self.world.judge_undistilled(num_steps)})

    def variant(self, name: str) -> None:
        """One variant, judged at every number of steps that it learnt (all of them for a warm start)."""
        settings = toy_settings(*VARIANTS[name], {"distill": {"seed": self.seed}})
        lengths = settings.distill.rollout_steps if settings.distill.student_updates else STEPS
        if all(self.table.has(variant=name, steps=n, seed=self.seed) for n in lengths):
            return
        run = self.world.distillation(settings)
        began = time.process_time()
        run_to_end(run)
        seconds = {"seconds": time.process_time() - began}
        for n in lengths:
            asked = {"variant": name, "steps": n, "seed": self.seed}
            if not self.table.has(**asked):
                self.table.add(asked, {**seconds, **self.world.judge(run, n)})


def main() -> None:
    parser = study_parser(__doc__, "docs/results/toy_world.json", VARIANTS)
    parser.add_argument("--effects", type=int, default=4)
    parser.add_argument(
        "--displacement", type=float, default=4.0, help="distance of the effects from the base"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(args.out)
    for seed in range(args.seeds):
        study = Study(table, args.effects, args.displacement, seed)
        study.undistilled()
        for name in args.only:
            study.variant(name)


if __name__ == "__main__":
    main()
