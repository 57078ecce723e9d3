"""One LoRA for 3, 6 and 12 effects, at equal updates for each effect.

More effects are the first ones and others: compare a student with the teachers of the same effects, or all
sizes on the effects of the smallest. The classifier of a size knows that size's effects alone.
"""

from argparse import ArgumentParser, Namespace

from collectionlora.adapters.roles import TEACHER
from collectionlora.system import processes
from collectionlora.system.files import write_json
from collectionlora.system.progress import Progress
from tables.study import COUNTS, Study, add_options

LAYER = {"distill": {"batch_size": 4}}


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 6, 12], choices=COUNTS, metavar="N")
    parser.add_argument("--matching", type=int, default=130, help="updates of the warm start for each effect")
    parser.add_argument("--distilling", type=int, default=4, help="student updates for each effect")


def make(args: Namespace, progress: Progress) -> None:
    study = Study(args, LAYER, max(args.sizes), progress)
    sizes = {}
    for size in sorted(args.sizes):
        run, names = f"{size}-effects", study.names[:size]
        updates = {"match": {"updates": size * args.matching}}
        study.train(run, updates | {"distill": {"student_updates": size * args.distilling}}, names=names)
        result = study.judge([TEACHER, f"{TEACHER}-8", run, f"{run}-4"], names)
        study.write(args.out / run, result, [run])
        sizes[size] = result.metrics
    if processes.is_main():
        write_json(args.out / "metrics.json", {"table": "scaling", "sizes": sizes})
