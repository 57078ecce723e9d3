"""The toy world asked: does a student that reuses its teachers' noise need fewer steps? Resumes.

    python scripts/toy_noise.py [--out FILE] [--only NAME ...] [--seeds 5]

A row of FILE is one student, judged by one sampler in one number of steps, with the CPU seconds of its
training; what is there is not made again.
"""

import time

import torch
from toy_table import Table, study_parser

from collectionlora.config import Overrides, Sampler
from collectionlora.toy.world import ToyWorld, run_to_end, toy_settings

SAMPLERS: tuple[Sampler, ...] = ("euler", "stochastic")
JUDGED = [(sampler, steps) for sampler in SAMPLERS for steps in (8, 4, 2, 1)]
ALL_LENGTHS = [8, 4, 2, 1]


def flow(updates: int, above: float = 1.0, share: float = 0.0, **rest: float) -> Overrides:
    """Flow matching on teacher samples alone, their own noise above a sigma."""
    match = {"loss": "flow", "updates": updates, "coupled_above": above, "fresh_share": share, **rest}
    return {"match": match, "distill": {"student_updates": 0}}


def then_distilled(sampler: str, updates: int = 500) -> list[Overrides]:
    """Distribution matching after it, with this sampler in the rollout."""
    distill = {"student_updates": updates, "rollout_steps": ALL_LENGTHS}
    return [{"distill": distill, "sampling": {"sampler": sampler}}]


# Name of a student -> what it changes of the toy's recipe.
STUDENTS: dict[str, list[Overrides]] = {
    "fresh noise, 2,000": [flow(2000)],
    "teacher's noise, 2,000": [flow(2000, 0.0)],
    "fresh noise, 6,000": [flow(6000)],
    "teacher's noise, 6,000": [flow(6000, 0.0)],
    "above .50, 2,000": [flow(2000, 0.5)],
    "above .75, 2,000": [flow(2000, 0.75)],
    "above .90, 2,000": [flow(2000, 0.9)],
    "30 % fresh, 2,000": [flow(2000, 0.0, 0.3)],
    "60 % fresh, 2,000": [flow(2000, 0.0, 0.6)],
    "60 % fresh above .75, 2,000": [flow(2000, 0.75, 0.6)],
    "fresh noise, 2,000, then distilled": [flow(2000), *then_distilled("stochastic")],
    "fresh noise, 2,000, then distilled by Euler": [flow(2000), *then_distilled("euler")],
    "teacher's noise, 2,000, then distilled": [flow(2000, 0.0), *then_distilled("stochastic")],
    "teacher's noise, 2,000, then distilled by Euler": [flow(2000, 0.0), *then_distilled("euler")],
}


def main() -> None:
    args = study_parser(__doc__, "docs/results/toy_noise.json", STUDENTS).parse_args()
    torch.set_num_threads(1)
    table = Table(args.out)
    for seed in range(args.seeds):
        missing = [
            name
            for name in args.only
            if not all(table.has(student=name, sampler=s, steps=n, seed=seed) for s, n in JUDGED)
        ]
        if not missing:
            continue
        world = ToyWorld(seed=seed)
        for name in missing:
            run = world.distillation(toy_settings(*STUDENTS[name], {"distill": {"seed": seed}}))
            began = time.process_time()
            run_to_end(run)
            seconds = {"seconds": time.process_time() - began}
            for sampler, n in JUDGED:
                asked = {"student": name, "sampler": sampler, "steps": n, "seed": seed}
                if not table.has(**asked):
                    table.add(asked, {**seconds, **world.judge(run, n, sampler=sampler)})


if __name__ == "__main__":
    main()
