"""Which noise the warm start pairs with a teacher's sample: fresh noise, or the noise that it came from.

`fresh` and `coarse` are flow matching on the same samples, and both sample by Euler. `coarse` takes the
teacher's noise where the outcome is decided. `velocity` follows the teachers' velocities and samples
stochastically. All rows train for the same time: that of `fresh` at `match.updates`. Nothing is distilled.
Every seed has photos of its own.
"""

from argparse import ArgumentParser, Namespace
from typing import Any

from collectionlora.adapters.roles import TEACHER
from collectionlora.config import Overrides
from collectionlora.system.progress import Progress
from tables.study import NO_DISTILLATION, Study, add_effects_option, add_options

STEPS = (8, 4, 2, 1)
FRESH = "fresh"
LAYER: dict[str, dict[str, Any]] = {
    "targets": {"samples": 4, "steps": 8},
    "match": {"loss": "flow"},
    "sampling": {"sampler": "euler"},
    **NO_DISTILLATION,
}
ROWS: dict[str, Overrides] = {
    "coarse": {"match": {"coupled_above": 0.75, "fresh_share": 0.6}},
    "velocity": {"match": {"loss": "velocity"}, "sampling": {"sampler": "stochastic"}},
}


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    add_effects_option(parser, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="in place of --seed")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)


def make(args: Namespace, progress: Progress) -> None:
    for seed in args.seeds:
        out = args.out / f"seed-{seed}"
        study = Study(Namespace(**{**vars(args), "out": out, "seed": seed}), LAYER, args.effects, progress)
        study.train(FRESH)
        for row in args.rows:
            study.match_as_long(row, FRESH, ROWS[row])
        students = [FRESH, *args.rows]
        few = [f"{name}-{steps}" for name in (TEACHER, *students) for steps in STEPS]
        study.write(out, study.judge(["source", TEACHER, *few]), students)
