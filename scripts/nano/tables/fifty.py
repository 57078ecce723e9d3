"""Many effects in one LoRA: flow matching on samples of all teachers, then on the noise that they came from.

`flow` is flow matching alone, on fresh noise. `coupled` goes on from its last state for `--coupled` further
updates, in which high sigmas reuse the noise of the teacher's sample (docs/few-steps.md), and which may show
two effects in one prompt. `student` goes on from there for `--plus` further updates at the learning rates of
LoRA+ (docs/training.md). With `--start` a finished adapter, `start`, takes the place of `flow` and `coupled`.
All sample by Euler. The teachers are judged in 40 steps, too.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from collectionlora.adapters.recipe import adapter_path
from collectionlora.adapters.roles import TEACHER
from collectionlora.system import processes
from collectionlora.system.files import copy_whole
from collectionlora.system.progress import Progress
from tables.noise import COARSE, in_few_steps
from tables.study import NO_DISTILLATION, Study, add_effects_option, add_options, over
from tables.tuning import lora_plus

START, FLOW, COUPLED, STUDENT = "start", "flow", "coupled", "student"  # names of the runs
BEGUN = "start.safetensors"
LAYER: dict[str, dict[str, Any]] = {
    "targets": {"steps": 8},
    "match": {"loss": "flow"},
    "sampling": {"sampler": "euler"},
    **NO_DISTILLATION,
}


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    add_effects_option(parser, default=50)
    parser.add_argument("--coupled", type=int, default=14000, metavar="N", help="further updates of coupled")
    parser.add_argument("--plus", type=int, default=4000, metavar="N", help="further updates of student")
    text = "a finished adapter that student begins as; with --plus 0 it is judged alone"
    parser.add_argument("--start", type=Path, metavar="ADAPTER", help=text)
    parser.add_argument("--general", type=int, default=256, metavar="N", help="items of the general stream")
    parser.add_argument(
        "--compositions", type=int, default=0, metavar="N", help="of coupled and student, for each effect"
    )


def make(args: Namespace, progress: Progress) -> None:
    layer = over(LAYER, {"targets": {"general": args.general, "compositions": args.compositions}})
    study = Study(args, layer, args.effects, progress, args.general)
    plus = over({"match": COARSE}, lora_plus(study.settings.match.learning_rate))
    if args.start:
        runs = [START]
        if processes.is_main():
            copy_whole(adapter_path(args.start), study.collection.folder / BEGUN)
        processes.barrier()
        study.train(START, {"match": {"start": BEGUN, "updates": 0}})
        if args.plus:
            runs.append(STUDENT)
            study.train(STUDENT, over(plus, {"match": {"start": BEGUN, "updates": args.plus}}))
    else:
        runs = [FLOW, COUPLED, STUDENT]
        updates = study.settings.match.updates + args.coupled
        study.train(FLOW, {"targets": {"compositions": 0}})
        study.train(COUPLED, {"match": {**COARSE, "updates": updates}}, start=FLOW)
        study.train(STUDENT, over(plus, {"match": {"updates": updates + args.plus}}), start=COUPLED)
    study.write(args.out, study.judge([f"{TEACHER}-40", *in_few_steps(runs)]))
