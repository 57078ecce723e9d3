"""Many effects in one LoRA: flow matching on samples of all teachers, then on the noise that they came from.

`flow` is flow matching alone, on fresh noise. `student` goes on from its last state for `--coupled` further
updates, in which high sigmas reuse the noise of the teacher's sample (docs/few-steps.md), and which may show
two effects in one prompt. Both sample by Euler.
"""

from argparse import ArgumentParser, Namespace
from typing import Any

from collectionlora.adapters.roles import TEACHER
from collectionlora.system.progress import Progress
from tables.noise import COARSE
from tables.study import NO_DISTILLATION, Study, add_effects_option, add_options, over

FLOW, STUDENT = "flow", "student"  # names of the runs
STEPS = (8, 4, 2, 1)
LAYER: dict[str, dict[str, Any]] = {
    "targets": {"steps": 8},
    "match": {"loss": "flow"},
    "sampling": {"sampler": "euler"},
    **NO_DISTILLATION,
}


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    add_effects_option(parser, default=50)
    parser.add_argument("--coupled", type=int, default=14000, metavar="N", help="further updates of student")
    parser.add_argument("--general", type=int, default=256, metavar="N", help="items of the general stream")
    parser.add_argument(
        "--compositions", type=int, default=0, metavar="N", help="of student, for each effect"
    )


def make(args: Namespace, progress: Progress) -> None:
    layer = over(LAYER, {"targets": {"general": args.general}})
    study = Study(args, layer, args.effects, progress, args.general)
    study.train(FLOW)
    match = {**COARSE, "updates": study.settings.match.updates + args.coupled}
    study.train(STUDENT, {"targets": {"compositions": args.compositions}, "match": match}, start=FLOW)
    few = [f"{name}-{steps}" for name in (TEACHER, FLOW, STUDENT) for steps in STEPS]
    study.write(args.out, study.judge(["source", TEACHER, *few]))
