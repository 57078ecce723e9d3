"""What a student begins as, each way with the same time of the warm start.

`from-base` begins as the bare base, `from-merge` as the mean of its teachers, as near as its rank comes, and
`wide` as the base with twice the rank. The time is that of `from-base` at `match.updates`: how many updates
another row gets follows from its pace in a short run. Nothing is distilled.
"""

import statistics
from argparse import ArgumentParser, Namespace

from collectionlora.adapters.roles import TEACHER
from collectionlora.config import Overrides
from collectionlora.runs.trainer import LOG
from collectionlora.system.progress import Progress
from tables.study import NO_DISTILLATION, Study, add_effects_option, add_options, over, step_seconds

BASE = "from-base"
ROWS: dict[str, Overrides] = {
    "from-merge": {"match": {"start": "merge"}},
    "wide": {"student": {"rank": 64}, "critic": {"rank": 64}},
}
PROBE, WARM_UP = 24, 2  # updates that tell a pace, and the first of them, which do not


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    add_effects_option(parser, default=12)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)


def pace(study: Study, run: str) -> float:
    """Median seconds of an update."""
    return statistics.median(step_seconds(study.run_folder(run) / LOG)[WARM_UP:])


def make(args: Namespace, progress: Progress) -> None:
    study = Study(args, NO_DISTILLATION, args.effects, progress)
    updates = study.settings.match.updates
    study.train(BASE)
    for row in args.rows:
        probe = f"{row}-pace"
        study.train(probe, over(ROWS[row], {"match": {"updates": PROBE}}))
        number = round(updates * pace(study, BASE) / pace(study, probe))
        study.train(row, over(ROWS[row], {"match": {"updates": number}}))
    study.write(args.out, study.judge([f"{TEACHER}-8", BASE, *args.rows]), [BASE, *args.rows])
