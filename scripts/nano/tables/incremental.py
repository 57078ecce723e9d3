"""`add` of effects to a finished collection in few updates: what they reach, and what the others lost.

The effects of --new are added to the others of --effects. Further effects that --start holds are removed
first. The same photos are judged before and after; OUT/before, OUT/after (both of the kept effects) and
OUT/all have their reports. The gate is that of `bench --baseline`; it stops nothing.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from collectionlora.adapters.recipe import adapter_path, read_adapter
from collectionlora.adapters.roles import STUDENT, TEACHER
from collectionlora.command_line.demo import GENERAL_PHOTOS
from collectionlora.effectbench.gate import Gate
from collectionlora.runs import growing
from collectionlora.system import processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import copy_whole, write_json
from collectionlora.system.progress import Progress
from tables.study import Study, add_effects_option, add_options, over

LAYER = {"match": {"updates": 750}, "distill": {"student_updates": 10, "batch_size": 4}}
METHODS = (TEACHER, STUDENT, f"{STUDENT}-4")


def options(parser: ArgumentParser) -> None:
    add_options(parser)
    parser.set_defaults(photos=32)
    add_effects_option(parser, default=12)
    new = ["technicolor", "x-ray"]
    parser.add_argument("--new", nargs="+", default=new, metavar="NAME", help="effects to add")
    text = "a finished adapter of the kept effects, in place of training one"
    parser.add_argument("--start", type=Path, metavar="ADAPTER", help=text)
    text = "items of the general stream"
    parser.add_argument("--general", type=int, default=GENERAL_PHOTOS, metavar="N", help=text)
    parser.add_argument("--margin", type=float, default=1.0, help="dB that a kept effect may lose")


def make(args: Namespace, progress: Progress) -> None:
    layer = over(LAYER, {"targets": {"general": args.general}})
    study, results = Study(args, layer, args.effects, progress, args.general), {}
    new, kept = args.new, kept_effects(study.names, args.new)
    begin(study, kept)
    for moment, names in {"before": kept, "after": kept, "all": study.names}.items():
        if moment == "after":
            growing.add(study.collection, new, study.overrides, progress)
        result = study.judge(METHODS, names)
        study.write(args.out / moment, result)
        results[moment] = result.metrics
    if processes.is_main():
        before, after = (args.out / moment / "metrics.json" for moment in ("before", "after"))
        gate = Gate.load(before, args.margin, after).check(results["after"]) | {"baseline": "before"}
        write_json(args.out / "metrics.json", {"table": "incremental", "new": new, **results, "gate": gate})


def kept_effects(names: Sequence[str], new: Sequence[str]) -> list[str]:
    """All but the new ones.

    Raises:
        UserError: a new one is not among the names, or no other is.
    """
    for name in new:
        if name not in names:
            raise UserError("", "--new", f"{name} is not among the effects", "raise --effects")
    if not (kept := [name for name in names if name not in new]):
        raise UserError("", "--new", "leaves no effect to keep", "name fewer")
    return kept


def begin(study: Study, kept: Sequence[str]) -> None:
    """The collection's adapter is that of the kept effects, again also after an `add`."""
    if study.args.start is None:
        study.train("kept", names=kept)
        return
    if processes.is_main():
        copy_whole(adapter_path(study.args.start), study.collection.result)
        held = read_adapter(study.collection.result)[1].effects
        if others := sorted(held.keys() - kept):
            growing.remove(study.collection, others)
    processes.barrier()
