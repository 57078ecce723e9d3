"""What the tables share: photographs, a collection of shipped teachers, runs from one start, the judging."""

import json
import shutil
import statistics
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from collectionlora import distill
from collectionlora.collection import MANIFEST, Collection
from collectionlora.command_line.demo import GENERAL_PHOTOS, PHOTOS, build_collection, shipped_teachers
from collectionlora.config import Overrides, parse_overrides
from collectionlora.effectbench.gallery import Result
from collectionlora.effectbench.heldout import Heldout, heldout_photographs
from collectionlora.effectbench.report.page import write_results
from collectionlora.effectbench.running import run_bench
from collectionlora.effects import ALL_EFFECTS
from collectionlora.effects.crops import PhotoPool
from collectionlora.effects.ordinary import load_photographs
from collectionlora.pictures.photographs import HELDOUT, TRAIN, load_photograph
from collectionlora.pictures.photos import Photo
from collectionlora.runs.session import resolve_settings
from collectionlora.runs.trainer import LOG
from collectionlora.system import processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import read_json, write_json
from collectionlora.system.progress import Progress

OPTIONS = "options.json"
COUNTS = range(1, len(ALL_EFFECTS) + 1)  # of effects in one LoRA
FREE = {"judged", "classifier_steps", "out"}  # options that change no training: they may be others next time
NO_DISTILLATION = {"distill": {"student_updates": 0}}
PROBE, WARM_UP = 24, 2  # updates that tell a pace, and the first of them, which do not


def over(layer: Overrides, changes: Overrides) -> dict[str, dict[str, Any]]:
    """Settings with those of `changes` in their place."""
    return {name: {**layer.get(name, {}), **changes.get(name, {})} for name in {**layer, **changes}}


def training_photographs(data: Path) -> PhotoPool:
    return load_photographs(data / "photographs" / "train")


def unseen_photographs(data: Path) -> dict[str, Photo]:
    """Whole photographs that neither base, teachers nor students were trained on."""
    debian = heldout_photographs(data / "photographs" / "heldout", "nano")
    return debian | {name: load_photograph(name) for name in (*HELDOUT, *TRAIN)}


def add_options(parser: ArgumentParser) -> None:
    """What every command takes that trains a collection."""
    add_judging_options(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photos", type=int, default=PHOTOS, help="crops that the effects are learned on")
    text = "weight of effects with several outcomes, in the draws"
    parser.add_argument("--random-weight", type=float, default=1, metavar="W", help=text)
    text = "weights of single effects, as EFFECT=W, over those of --random-weight"
    parser.add_argument("--weights", type=effect_weight, nargs="+", default=[], metavar="EFFECT=W", help=text)
    text = "folders of EFFECT.safetensors, which follow those that ship"
    parser.add_argument("--teachers", type=Path, nargs="+", default=[], help=text)
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="section.name=value")


def effect_weight(text: str) -> tuple[str, float]:
    """An effect and its weight from `EFFECT=W`."""
    name, _, weight = text.partition("=")
    if name not in ALL_EFFECTS:
        raise ArgumentTypeError(f"{name!r} is not an effect: write EFFECT=W")
    return name, float(weight)


def add_judging_options(parser: ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder made by photographs.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judged", type=int, default=24, help="photos for each effect")
    parser.add_argument("--classifier-steps", type=int, default=1500)


def add_effects_option(parser: ArgumentParser, default: int) -> None:
    parser.add_argument("--effects", type=int, default=default, choices=COUNTS, metavar="N")


def first_teachers(number: int | None, folders: Sequence[Path]) -> dict[str, Path]:
    """Teachers by effect: those that ship, then those of each folder by name; all, or the first ones.

    Raises:
        UserError: there are fewer, or a folder has a file that is not named after an effect.
    """
    found = shipped_teachers()
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        if path.stem not in ALL_EFFECTS:
            raise UserError(path, "name", "is not an effect's", "name it EFFECT.safetensors")
        found.setdefault(path.stem, path)
    if number is not None and number > len(found):
        message = f"{number} effects are asked for and there are {len(found)} teachers"
        raise UserError("", "--teachers", message, "train more by scripts/nano/teachers.py")
    return dict(islice(found.items(), number))


def keep_options(out: Path, args: Namespace) -> None:
    """Write OUT/options.json.

    Raises:
        UserError: the folder was begun with other options, of which its results would be a mixture.
    """
    path, before = out / OPTIONS, read_json(out / OPTIONS)
    now = json.loads(json.dumps(vars(args), default=str))
    for name in (before or now).keys() - FREE:
        if before and before[name] != now.get(name):
            message = f"was {before[name]!r} and is {now.get(name)!r}"
            raise UserError(path, name, message, "give the same options, or another --out")
    if processes.is_main():
        write_json(path, now)


class Study:
    """Runs over one collection of teachers in OUT/collection, and what they are worth.

    Args:
        args: see `add_options`.
        layer: settings over nano's own; `--set` lies over both.
        num_effects: as in `first_teachers`.
        num_general: photos of the general stream.

    Raises:
        UserError: see `first_teachers` and `keep_options`.
    """

    def __init__(
        self,
        args: Namespace,
        layer: Overrides,
        num_effects: int | None,
        progress: Progress,
        num_general: int = GENERAL_PHOTOS,
    ):
        self.args, self.progress = args, progress
        self.overrides = over(layer, parse_overrides([f"distill.seed={args.seed}", *args.overrides]))
        self.pool, folder = training_photographs(args.data), args.out / "collection"
        teachers = first_teachers(num_effects, args.teachers)
        keep_options(args.out, args)
        with processes.main_first():
            if not (folder / MANIFEST).exists():
                several = [name for name in teachers if ALL_EFFECTS[name].num_outcomes != 1]
                weights = dict.fromkeys(several, args.random_weight) | dict(args.weights)
                build_collection(folder, teachers, self.pool, args.seed, num_general, args.photos, weights)
        self.collection = Collection.load(folder)
        self.settings = resolve_settings(self.collection, self.overrides)

    @property
    def names(self) -> list[str]:
        return [effect.name for effect in self.collection.effects]

    def run_folder(self, run: str) -> Path:
        return self.collection.folder / "runs" / run

    def train(
        self, run: str, changes: Overrides | None = None, start: str | None = None, names: Sequence[str] = ()
    ) -> None:
        """One run, which resumes; its adapter is the collection's.

        Args:
            changes: settings over the study's.
            start: a finished run from whose last state this one goes on.
            names: its effects; all by default.
        """
        place = self.run_folder(run)
        with processes.main_first():
            if start and not place.exists():
                partial = place.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(self.run_folder(start), partial)
                partial.rename(place)
        collection = self.collection.only(names or self.names)
        distill(collection, run, over(self.overrides, changes or {}), resume=True, progress=self.progress)

    def match_as_long(self, run: str, reference: str, changes: Overrides) -> None:
        """A warm start that takes the time of another: a short run tells how many updates that is."""
        probe = f"{run}-pace"
        self.train(probe, over(changes, {"match": {"updates": PROBE}}))
        ratio = self.update_seconds(reference) / self.update_seconds(probe)
        updates = round(self.settings.match.updates * ratio)
        self.train(run, over(changes, {"match": {"updates": updates}}))

    def update_seconds(self, run: str) -> float:
        """What an update takes where nothing disturbs it: only every tenth is faster."""
        return statistics.quantiles(step_seconds(self.run_folder(run) / LOG)[WARM_UP:], n=10)[0]

    def judge(
        self, methods: Sequence[str], names: Sequence[str] = (), changes: Overrides | None = None
    ) -> Result:
        """EffectBench on unseen photographs, and the seconds of each training; the rest as in `train`."""
        args, collection = self.args, self.collection.only(names or self.names)
        photographs = unseen_photographs(args.data)
        heldout = Heldout(photographs, self.pool, args.judged, [args.seed], args.classifier_steps)
        settings = resolve_settings(collection, over(self.overrides, changes or {}))
        result = run_bench(collection, settings, methods, heldout, self.progress)
        logs = {**self.logs("runs"), **self.logs("bench")}
        result.metrics["training_seconds"] = {run: last_seconds(log) for run, log in logs.items()}
        return result

    def logs(self, kind: str = "runs") -> dict[str, Path]:
        """Training logs by run, without runs of no step; of kind "bench" those of the baselines."""
        found = sorted(self.collection.folder.glob(f"{kind}/*/{LOG}"))
        return {log.parent.name: log for log in found if log.stat().st_size}

    def write(self, out: Path, result: Result, runs: Sequence[str] = ()) -> None:
        """sheet.png, report.html with the curves of `runs` (all by default), and metrics.json."""
        logs = {run: log for run, log in self.logs().items() if not runs or run in runs}
        if processes.is_main():
            write_results(out, result, logs)
        processes.barrier()


def step_seconds(log: Path) -> list[float]:
    """What each step of a training took."""
    ends = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]
    return [end - start for start, end in pairwise([0.0, *ends])]


def last_seconds(log: Path) -> float:
    """How long a training took; of one that began as a copy, with what it was copied from."""
    return float(json.loads(log.read_text().splitlines()[-1])["seconds"])
