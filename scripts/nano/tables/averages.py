"""Which weights of a warm start are saved: the last ones, or their moving average.

All rows train as `late` of the table `tuning`. `last` saves the last weights. `average` saves the moving
average of the same run. `constant` saves the moving average of a run whose learning rate does not fall at its
end. Every seed has photos of its own.
"""

from argparse import Namespace

from collectionlora.config import Overrides
from collectionlora.system.progress import Progress
from tables import noise, tuning
from tables.study import over

options = noise.options
AVERAGE = {"distill": {"ema": 0.998}}
CHANGES: dict[str, Overrides] = {
    "last": {"distill": {"ema": 0}},
    "average": AVERAGE,
    "constant": over(AVERAGE, {"distill": {"decay_ratio": 0}}),
}
ROWS = {row: over(tuning.ROWS["late"], changes) for row, changes in CHANGES.items()}


def make(args: Namespace, progress: Progress) -> None:
    for study in noise.each_seed(args, progress):
        for row, changes in ROWS.items():
            study.train(row, changes)
        study.write(study.args.out, study.judge(noise.in_few_steps(ROWS)))
