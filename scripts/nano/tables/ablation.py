"""The paper's five rows of its ablation: PDSR, AOP, TS and TA, at equal updates.

Rows go on from one warm start, which knows none of the losses. Where a row lacks what the warm start has too
(the student's own prompts without AOP, the general stream without PDSR) it has a warm start of its own.
Rows named warm are those starts. A row's `-4` is the same student in 4 steps.
"""

from argparse import ArgumentParser, Namespace
from typing import Any

from collectionlora.adapters.roles import TEACHER
from collectionlora.system.progress import Progress
from tables.study import NO_DISTILLATION, Study, add_effects_option, add_options, over

# The paper's constant weights of all three losses. No moving average: over so few updates it would be mostly
# the warm start that rows have in common.
LAYER: dict[str, dict[str, Any]] = {
    "match": {"updates": 350},
    "distill": {
        "student_updates": 15,
        "batch_size": 4,
        "target_weight": 1,
        "anchor_weight": 1,
        "ema": 0,
    },
}
WARM, WARM_TEACHER_PROMPTS, WARM_EFFECTS_ONLY = "warm", "warm-teacher-prompts", "warm-effects-only"
STARTS: dict[str, dict[str, Any]] = {
    WARM: {},
    WARM_TEACHER_PROMPTS: {"asymmetric_prompts": False},
    WARM_EFFECTS_ONLY: {"effect_ratio": 1},
}
# Row -> its start, and what else it does without.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "pdsr": (WARM_TEACHER_PROMPTS, {"target_weight": 0, "anchor_weight": 0}),
    "pdsr-aop": (WARM, {"target_weight": 0, "anchor_weight": 0}),
    "pdsr-aop-ts": (WARM, {"anchor_weight": 0}),
    "aop-ts-ta": (WARM_EFFECTS_ONLY, {}),
    "all": (WARM, {}),
}


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    add_effects_option(parser, default=4)


def make(args: Namespace, progress: Progress) -> None:
    study = Study(args, LAYER, args.effects, progress)
    for start, changes in STARTS.items():
        study.train(start, over({"distill": changes}, NO_DISTILLATION))
    for row, (start, changes) in ROWS.items():
        study.train(row, {"distill": {**STARTS[start], **changes}}, start)
    methods = ["source", TEACHER, f"{TEACHER}-8", *STARTS, *ROWS, *(f"{row}-4" for row in ROWS)]
    study.write(args.out, study.judge(methods))
