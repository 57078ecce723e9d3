"""Many effects in one LoRA: flow matching on samples of all teachers, then distribution matching on top.

`flow` is the warm start alone. `student` goes on from its last state by the whole method. Both sample by
Euler.
"""

from argparse import ArgumentParser, Namespace
from typing import Any

from collectionlora.adapters.roles import TEACHER
from collectionlora.system.progress import Progress
from tables.study import COUNTS, NO_DISTILLATION, Study, add_options

FLOW, STUDENT = "flow", "student"  # names of the runs
STEPS = (8, 4, 2, 1)
NUM_GENERAL = 256
LAYER: dict[str, dict[str, Any]] = {
    "targets": {"steps": 8, "general": NUM_GENERAL},
    "match": {"loss": "flow"},
    "sampling": {"sampler": "euler"},
}


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    parser.add_argument("--effects", type=int, choices=COUNTS, metavar="N", help="the first ones")


def make(args: Namespace, progress: Progress) -> None:
    study = Study(args, LAYER, args.effects, progress, NUM_GENERAL)
    study.train(FLOW, NO_DISTILLATION)
    study.train(STUDENT, start=FLOW)
    few = [f"{name}-{steps}" for name in (TEACHER, FLOW, STUDENT) for steps in STEPS]
    study.write(args.out, study.judge(["source", TEACHER, *few]))
