"""A LoRA distilled over the whole base, over int8 and over nf4, each judged on all three bases.

Everything of a row belongs to its base: targets are sampled on it, the student learns over it, at equal
updates by flow matching. `shipped` is the LoRA that ships, of a longer run over the whole base.
"""

import shutil
from argparse import ArgumentParser, Namespace

from collectionlora.adapters.recipe import SHIPPED
from collectionlora.adapters.roles import TEACHER
from collectionlora.system import processes
from collectionlora.system.files import write_json
from collectionlora.system.progress import Progress
from tables.study import NO_DISTILLATION, Study, add_effects_option, add_options, over

KINDS = ("none", "int8", "nf4")
LAYER = over({"match": {"updates": 400}, "targets": {"steps": 10, "general": 24}}, NO_DISTILLATION)
SHIPPED_RUN = "shipped"


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    add_effects_option(parser, default=4)


def make(args: Namespace, progress: Progress) -> None:
    study = Study(args, LAYER, args.effects, progress)
    for kind in KINDS:
        study.train(f"on-{kind}", {"model": {"quantization": kind}})
    shipped = study.run_folder(SHIPPED_RUN) / SHIPPED.name
    with processes.main_first():
        if not shipped.exists():
            shipped.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(SHIPPED, shipped)
    runs, bases = [f"on-{kind}" for kind in KINDS], {}
    for kind in KINDS:
        methods = [f"{TEACHER}-8", *runs, SHIPPED_RUN]
        result = study.judge(methods, changes={"model": {"quantization": kind}})
        study.write(args.out / kind, result, runs)
        bases[kind] = result.metrics
    if processes.is_main():
        write_json(args.out / "metrics.json", {"table": "quantised", "bases": bases})
