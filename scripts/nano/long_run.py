"""Many effects in one LoRA, beside its controls, on photographs that nothing was trained on; resumes.

    torchrun --nproc-per-node 2 scripts/nano/long_run.py --data DATA --out DIR [--set section.name=value ...]

Two processes of one thread are faster than one of two; `python scripts/nano/long_run.py` works as well.

Runs the method over the first teachers: the warm start, and from its last state the distillation; then, as
a control of equal time from the same state, more of the warm start (teacher matching, no critic) for as long
as the distillation took; and the distillation from where the control ended. Judges source, teachers in their
many steps, undistilled teachers in few, and the four students; writes sheet.png, report.html and metrics.json
into DIR. The adapters are DIR/collection/runs/*/collection.safetensors.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from tables.study import NO_DISTILLATION, Study, add_effects_option, add_options, step_seconds

from collectionlora.adapters.roles import TEACHER
from collectionlora.command_line.progress import joined_processes
from collectionlora.command_line.terminal import faults_in_a_line
from collectionlora.config import Settings
from collectionlora.runs.trainer import LOG

WARM, DISTILLED, CONTROL, LONGER = "warm", "distilled", "matching", "matching-distilled"  # names of the runs
STEPS = (8, 4, 2, 1)
NUM_GENERAL = 256
# Beside nano's own settings, which are a demo's: the warm start of an hour on two cores, checkpoints by time.
LONG: dict[str, dict[str, Any]] = {
    "targets": {"general": NUM_GENERAL},
    "match": {"updates": 6500},
    "distill": {"student_updates": 100, "checkpoint_minutes": 10},
}


def equal_time(log: Path, settings: Settings) -> dict[str, Any]:
    """Settings whose warm start takes as long as the whole run of `log` would undisturbed.

    Medians of seconds for each step: a run that was paused or shared its machine gives the same.
    """
    seconds = step_seconds(log)
    matching, distilling = seconds[: settings.match.updates], seconds[settings.match.updates :]
    ratio = statistics.median(distilling) / statistics.median(matching)
    return {"match": {"updates": len(matching) + round(len(distilling) * ratio)}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    add_effects_option(parser, default=12)
    args = parser.parse_args()
    with faults_in_a_line(), joined_processes() as progress:
        study = Study(args, LONG, args.effects, progress, NUM_GENERAL)
        study.train(WARM, NO_DISTILLATION)
        study.train(DISTILLED, start=WARM)
        longer = equal_time(study.run_folder(DISTILLED) / LOG, study.settings)
        study.train(CONTROL, {**longer, **NO_DISTILLATION}, start=WARM)
        study.train(LONGER, longer, start=CONTROL)
        methods = ["source", TEACHER, *(f"{TEACHER}-{n}" for n in STEPS)]
        methods += [f"{run}-{n}" for run in (WARM, DISTILLED, CONTROL, LONGER) for n in STEPS]
        study.write(args.out, study.judge(methods), (DISTILLED, CONTROL, LONGER))


if __name__ == "__main__":
    main()
