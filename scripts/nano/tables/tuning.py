"""Learning rates of the warm start, and the shift of the student's schedule.

`one` has one learning rate, and `twice` has twice that rate. `plus` has LoRA+ (arXiv 2402.12354): half of the
rate of `one` for A, and twice that rate for B. `late` is `plus` trained at higher sigmas, by a larger shift.
All take as many updates on the same samples, and all sample by Euler. Nothing is distilled. Every seed has
photos of its own. Each student is judged with both shifts: OUT/seed-SEED/shift-SHIFT.
"""

from argparse import Namespace
from typing import Any

from collectionlora.config import Overrides
from collectionlora.system.progress import Progress
from tables import noise
from tables.study import over

options = noise.options
RATE = 1.4e-3
SHIFTS = (3, 12)


def lora_plus(learning_rate: float) -> dict[str, dict[str, Any]]:
    """Half of a rate for A, and twice the rate for B."""
    return {"match": {"learning_rate": learning_rate / 2}, "distill": {"loraplus_lr_ratio": 4}}


EARLY, LATE = ({"sampling": {"shift": shift}} for shift in SHIFTS)
ROWS: dict[str, Overrides] = {
    "one": over(EARLY, {"match": {"learning_rate": RATE}}),
    "twice": over(EARLY, {"match": {"learning_rate": 2 * RATE}}),
    "plus": over(EARLY, lora_plus(RATE)),
    "late": over(LATE, lora_plus(RATE)),
}


def make(args: Namespace, progress: Progress) -> None:
    for study in noise.each_seed(args, progress):
        for row, changes in ROWS.items():
            study.train(row, changes)
        for shift in SHIFTS:
            used = {"sampling": {"shift": shift}}
            for row, changes in ROWS.items():
                # Nothing is left to train: this writes the adapter again, to be used with this shift.
                study.train(row, over(changes, used))
            result = study.judge(noise.in_few_steps(ROWS), changes=used)
            study.write(study.args.out / f"shift-{shift}", result)
