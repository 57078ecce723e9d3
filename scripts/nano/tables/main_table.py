"""One LoRA against its teachers, stacking, flow matching and merges; every seed with photos of its own.

Every seed is a study of its own in OUT/seed-N: all that is trained gets as many updates as the student.
"""

from argparse import ArgumentParser, Namespace

from collectionlora.adapters.roles import STUDENT, TEACHER
from collectionlora.effectbench.baselines import BASELINES
from collectionlora.system.progress import Progress
from tables.study import Study, add_effects_option, add_options

LAYER = {"match": {"updates": 500}, "distill": {"student_updates": 15, "batch_size": 4}}
METHODS = ("source", TEACHER, f"{TEACHER}-8", *BASELINES, STUDENT, f"{STUDENT}-4")


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    add_effects_option(parser, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", help="several in place of --seed")


def make(args: Namespace, progress: Progress) -> None:
    for seed in args.seeds or [args.seed]:
        out = args.out / f"seed-{seed}"
        own = {**vars(args), "out": out, "seed": seed, "seeds": None}
        study = Study(Namespace(**own), LAYER, args.effects, progress)
        study.train(STUDENT)
        study.write(out, study.judge(METHODS))
