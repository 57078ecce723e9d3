"""Which noise the warm start pairs with a teacher's sample: fresh noise, or the noise that it came from.

`fresh` and `coarse` are flow matching on the same samples, in as many updates, and both sample by Euler.
`coarse` takes the teacher's noise where the outcome is decided. Nothing is distilled. Every seed has photos
of its own.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
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
    for study in each_seed(args, progress):
        for row, changes in ROWS.items():
            study.train(row, changes)
        study.write(study.args.out, study.judge(in_few_steps(ROWS)))


def each_seed(args: Namespace, progress: Progress) -> Iterator[Study]:
    """A study for each of `--seeds`, in OUT/seed-SEED."""
    for seed in args.seeds:
        own = {**vars(args), "out": args.out / f"seed-{seed}", "seed": seed, "seeds": None}
        yield Study(Namespace(**own), LAYER, args.effects, progress)


def in_few_steps(runs: Iterable[str]) -> list[str]:
    """The untouched photo, and teachers and students in every number of steps."""
    return ["source", *(f"{name}-{steps}" for name in (TEACHER, *runs) for steps in STEPS)]
