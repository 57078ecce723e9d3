"""What a student begins as, each way with the same time of the warm start.

`from-base` begins as the bare base, `from-merge` as the mean of its teachers, as near as its rank comes, and
`wide` as the base with twice the rank. The time is that of `from-base` at `match.updates`: how many updates
another row gets follows from its pace in a short run. Nothing is distilled.
"""

from argparse import ArgumentParser, Namespace

from collectionlora.adapters.roles import TEACHER
from collectionlora.config import Overrides
from collectionlora.system.progress import Progress
from tables.study import NO_DISTILLATION, Study, add_effects_option, add_options

BASE = "from-base"
ROWS: dict[str, Overrides] = {
    "from-merge": {"match": {"start": "merge"}},
    "wide": {"student": {"rank": 64}, "critic": {"rank": 64}},
}


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    add_effects_option(parser, default=12)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)


def make(args: Namespace, progress: Progress) -> None:
    study = Study(args, NO_DISTILLATION, args.effects, progress)
    study.train(BASE)
    for row in args.rows:
        study.match_as_long(row, BASE, ROWS[row])
    study.write(args.out, study.judge([f"{TEACHER}-8", BASE, *args.rows]), [BASE, *args.rows])
