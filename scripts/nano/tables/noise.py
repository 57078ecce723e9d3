"""Which noise the warm start pairs with a teacher's sample: fresh noise, or the noise that it came from.

`fresh` and `coarse` are flow matching on the same samples, in as many updates, and both sample by Euler.
`coarse` takes the teacher's noise where the outcome is decided. Nothing is distilled. Every seed has photos
of its own.
"""

from argparse import ArgumentParser, Namespace
from typing import Any

from collectionlora.adapters.roles import TEACHER
from collectionlora.config import Overrides
from collectionlora.system.progress import Progress
from tables.study import NO_DISTILLATION, Study, add_effects_option, add_options

STEPS = (8, 4, 2, 1)
LAYER: dict[str, dict[str, Any]] = {
    "targets": {"samples": 4, "steps": 8},
    "match": {"loss": "flow"},
    "sampling": {"sampler": "euler"},
    **NO_DISTILLATION,
}
COARSE = {"coupled_above": 0.75, "fresh_share": 0.6}
ROWS: dict[str, Overrides] = {"fresh": {}, "coarse": {"match": COARSE}}


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    add_effects_option(parser, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="in place of --seed")


def make(args: Namespace, progress: Progress) -> None:
    for seed in args.seeds:
        out = args.out / f"seed-{seed}"
        own = {**vars(args), "out": out, "seed": seed, "seeds": None}
        study = Study(Namespace(**own), LAYER, args.effects, progress)
        for row, changes in ROWS.items():
            study.train(row, changes)
        few = [f"{name}-{steps}" for name in (TEACHER, *ROWS) for steps in STEPS]
        study.write(out, study.judge(["source", TEACHER, *few]))
