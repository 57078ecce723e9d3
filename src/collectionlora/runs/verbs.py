"""The verbs from prompts to `add` and `remove`, as functions."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from collectionlora.adapters.alpha import lora_files
from collectionlora.adapters.formats import LoraFile, write_lora
from collectionlora.adapters.recipe import START, Recipe, start_file
from collectionlora.adapters.roles import STUDENT
from collectionlora.backbones import load_backbone
from collectionlora.backbones.base import Backbone
from collectionlora.cache import base_facts
from collectionlora.collection import Collection, Effect, open_collection
from collectionlora.config import Settings, result_settings
from collectionlora.distillation import Distillation
from collectionlora.pictures.buckets import gather_images
from collectionlora.pictures.folders import warn_of_left_out
from collectionlora.pictures.pairs import check_pairs, read_pair
from collectionlora.pictures.photos import to_images
from collectionlora.pictures.sizes import WorkingSizes
from collectionlora.prompting.endpoint import Endpoint
from collectionlora.prompting.own_encoder import OwnEncoder, vlm_opener
from collectionlora.prompting.triggers import cosine_table
from collectionlora.prompting.writing import PromptWriter, known_prompts
from collectionlora.runs import growing
from collectionlora.runs.folder import (
    FACTS,
    LOCK,
    hold,
    is_finished,
    refuse_elsewhere,
    refuse_finished,
    refuse_other_length,
    refuse_unfinished,
    set_aside,
    steps_left,
)
from collectionlora.runs.inputs import data_facts, distillation_inputs, teaching_inputs
from collectionlora.runs.run import open_run
from collectionlora.runs.session import (
    Session,
    build_roles,
    check_processes,
    check_references,
    check_resolution,
    distillation_facts,
    effect_names,
    resolve_settings,
    warn_of_untrained_steps,
)
from collectionlora.runs.target_making import encode_photos, read_references
from collectionlora.runs.teaching import EncodedPairs, Teaching
from collectionlora.runs.watching import Tracker, Watch, track
from collectionlora.system import processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import copy_whole, fingerprint, keep_earlier, move_aside, put_aside
from collectionlora.system.progress import Progress, ignore

WAIT = "wait for it or stop it"
log = logging.getLogger(__name__)


def teach(
    collection: Collection | Path | str,
    names: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    resume: bool = True,
    progress: Progress = ignore,
) -> list[Path]:
    """Train effect LoRAs from `pairs/NAME/{source,target}`; returns the files written.

    Raises:
        UserError: pairs are missing, do not match, or have sides of other shapes.
        Interrupted: stopped by the user; call again to go on.
    """
    collection = open_collection(collection)
    settings = resolve_settings(collection, overrides or {})
    effects = [collection.effect(name) for name in effect_names(collection, names)]
    for effect in effects:  # the last one's as well are known to be good before anything is loaded
        check_pairs(collection.pair_paths(effect))
    warn_of_left_out(collection.pair_folders([effect.name for effect in effects]))
    check_resolution(collection, settings)
    check_references(collection, settings)
    backbone = load_backbone(collection.manifest.base, settings.model)
    seen = [teaching_inputs(collection, effect) for effect in effects]
    # Before pairs are read: hours later they may be others, which the next call has to learn.
    marks = [fingerprint(*paths) for paths in seen]
    # All before the network is loaded, which then has the device for itself.
    encoded = [encode_pairs(collection, effect, backbone, settings) for effect in effects]
    backbone.release_encoders()
    roles = build_roles(backbone, {STUDENT: settings.teach.rank}, settings.teach.seed, settings)
    fresh = roles.weights(STUDENT)
    written = []
    for effect, pairs, paths, mark in zip(effects, encoded, seen, marks, strict=True):
        folder = collection.folder / "runs" / f"teach-{effect.name}"
        with open_run(folder) as run, Tracker(folder, settings.log) as tracker:
            roles.load(STUDENT, fresh)
            teaching = Teaching(effect.name, backbone, roles, pairs, settings)
            facts = result_settings(settings, ("model", "data", "teach")) | {
                "base": collection.manifest.base,
                "teacher_prompt": effect.teacher_prompt,
                "pairs": mark,
                **base_facts(collection.manifest.base),
            }
            report = track(tracker, partial(progress, effect.name))
            run.train(teaching, settings, facts, collection, paths, report, resume)
            path = collection.teacher_path(effect)
            with keep_earlier(path), ExitStack() as aside:
                for config in lora_files(path)[1:]:  # it states the alphas of the LoRA that is replaced
                    aside.enter_context(put_aside(config))
                write_lora(path, teaching.weights(), {"teacher_prompt": effect.teacher_prompt})
        written.append(path)
    return written


def encode_pairs(
    collection: Collection, effect: Effect, backbone: Backbone, settings: Settings
) -> EncodedPairs:
    """An effect's image pairs, its teacher prompt and its reference images, as the network takes them.

    Raises:
        UserError: pairs are missing or do not match.
    """
    sizes = WorkingSizes.of(settings.data, backbone.side_multiple)
    sources, answers = read_pairs(collection, effect, sizes)
    shown = read_references(collection, effect, backbone, settings)
    texts = {"teacher": [effect.teacher_prompt] * len(sources)}
    latents, prompts = encode_photos(backbone, sources, texts, shown)
    targets = gather_images([backbone.encode_image(image)[0] for image in answers])
    return EncodedPairs(
        latents, targets, prompts["teacher"], [backbone.encode_image(image) for image in shown]
    )


def read_pairs(
    collection: Collection, effect: Effect, sizes: WorkingSizes
) -> tuple[list[Tensor], list[Tensor]]:
    """An effect's image pairs, matched by file name, each image `[1, 3, height, width]` in [0, 1].

    A target takes the size of its source.

    Raises:
        UserError: a file without its partner, or a pair whose sides have other shapes.
    """
    sources, targets = [], []
    for pair in collection.pair_paths(effect):
        source, target = read_pair(*pair)
        source = sizes.fit(source)
        sources.append(to_images([source]))
        targets.append(to_images([sizes.fit(target, source.shape[:2])]))
    return sources, targets


def prompts(
    collection: Collection | Path | str,
    model: Endpoint | OwnEncoder | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress = ignore,
) -> dict[str, Any]:
    """Student prompts of all effects, and their pairwise cosine with and without asymmetric prompting.

    A model, behind an endpoint or the base's own text encoder, rewrites what is missing or changed from two
    image pairs. Each answer is kept as it comes, so a call after an error or an interruption asks only for
    the rest.

    Raises:
        UserError: bad input, a base whose encoder cannot be asked, an endpoint that fails, or another process
            that asks a model, adds, removes or begins to distil.
    """
    collection = open_collection(collection)
    settings = resolve_settings(collection, overrides or {})
    open_vlm = vlm_opener(model, collection.manifest.base, settings.vlm)
    # Answers take a while and cost money: no other process writes the file in the meantime.
    with hold_changes(collection) if open_vlm else nullcontext():
        backbone = load_backbone(collection.manifest.base, settings.model)
        vlm = open_vlm(backbone) if open_vlm else None
        writer = PromptWriter(collection, backbone, settings, vlm)
        written = {}
        for effect in collection.effects:
            written[effect.name] = writer.write(effect)
            if vlm:
                spent = {"thousand tokens": vlm.tokens / 1000}
                progress("prompts", len(written), len(collection.effects), spent)
    student_prompts = {name: w.student_prompt for name, w in written.items()}
    teacher_prompts = {e.name: e.teacher_prompt for e in collection.effects}
    return {
        "student_prompts": student_prompts,
        "written_by": {name: w.written_by for name, w in written.items()},
        "notes": {name: w.note for name, w in written.items() if w.note},
        "calls": vlm.calls if vlm else 0,
        "tokens": vlm.tokens if vlm else 0,
        "teacher_prompts": teacher_prompts,
        "student_cosine": cosine_table(backbone.encode_prompt, list(student_prompts.values())).tolist(),
        "teacher_cosine": cosine_table(backbone.encode_prompt, list(teacher_prompts.values())).tolist(),
    }


@processes.joined()
def targets(
    collection: Collection | Path | str,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress = ignore,
) -> dict[str, int]:
    """Make what is missing of the teacher targets; returns the number of images by effect.

    `general` counts the bare base's answers, which only a warm start reads.

    Several processes share the work.
    """
    collection = open_collection(collection)
    settings = resolve_settings(collection, overrides or {})
    collection.check_files()
    session = Session(collection, settings, with_critics=False)
    streams = session.make_targets(progress)
    counts = {data.name: sum(map(len, data.targets)) for data in streams.effects}
    answers = streams.general.targets
    return counts | {"general": 0 if answers is None else len(answers)}


@processes.joined()
def distill(
    collection: Collection | Path | str,
    run: str = "default",
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    again: bool = False,
    progress: Progress = ignore,
) -> Path:
    """The method over a collection; returns the finished adapter. Several processes train data-parallel.

    A finished run stays as it is.

    Args:
        again: start over where a run is finished or unfinished; what it left moves into a folder beside it.

    Raises:
        UserError: bad input, a run that another process holds, an unfinished run without `resume` or `again`,
            or a run that was finished with other settings, without `again`.
        Interrupted: stopped by the user; call again with `resume=True` to go on.
    """
    collection = open_collection(collection)
    settings = resolve_settings(collection, overrides or {})
    folder = run_path(collection, run)
    collection.check_files()
    check_processes(collection, settings)
    warn_of_untrained_steps(settings)
    if again and resume:
        raise UserError("", "--again", "cannot go with --resume", "give one of them")
    if again:
        refuse_start_in(folder, start_file(collection, settings))
    with open_run(folder) as opened:
        with hold_changes(collection):  # neither is begun while the other is under way
            pass
        result = folder / collection.result.name
        if not again:
            finished = check_earlier_run(collection, settings, folder, resume)
            if finished and not resume and processes.from_main(result.exists()):
                log.warning("%s: is finished; --again starts over and keeps what is there", folder)
                if processes.is_main() and not collection.result.exists():
                    copy_whole(result, collection.result)
                return result
            resume = resume or finished  # it may have stopped between its last step and its result
        start = growing.open_start(collection, settings)
        session = Session(collection, settings, with_critics=True)
        if again:
            set_aside(folder)
        # Of a resumed run as well, which may find no whole checkpoint.
        inputs = distillation_inputs(collection) + begin_student(session, start)
        distillation = session.distillation(progress)
        facts = session.facts()
        if processes.is_main() and result.exists() and steps_left(folder, settings):
            move_aside(result)  # it would stand for the longer run's
        with Watch(distillation, folder) as watch:
            report = watch.beside(partial(progress, "distill"))
            opened.train(distillation, settings, facts, collection, inputs, report, resume, anyway=True)
        write_results(session, distillation, folder)
    return collection.result


def write_results(session: Session, distillation: Distillation, folder: Path) -> None:
    """Write the finished adapter as that of the collection, and into its run's folder."""
    collection = session.collection
    session.write_result(distillation, collection.result)
    backup = growing.backup_path(collection)
    if processes.is_main() and backup.exists():  # no `add` to this adapter can go back to it
        move_aside(backup)
    # Last: where it lies, `distill` takes all of this for done.
    session.write_result(distillation, folder / collection.result.name)
    processes.barrier()


def check_earlier_run(collection: Collection, settings: Settings, folder: Path, resume: bool) -> bool:
    """Whether a run's folder holds a finished run, which, if `resume`, takes more steps.

    Raises:
        UserError: it holds a run that these settings must not replace, or cannot go on with.
    """
    # More updates may follow a finished run, but no other effects or data: its weights never saw them. Nor
    # other settings where no update follows.
    facts: dict[str, Any] = {"effects": effect_names(collection, ())}
    if not (resume and steps_left(folder, settings)):
        facts = distillation_facts(collection, settings)
    refuse_elsewhere(folder)
    refuse_finished(folder, facts | data_facts(collection, known_prompts(collection)))
    if resume:
        refuse_other_length(folder, settings)
    else:
        refuse_unfinished(folder)
    return processes.from_main(is_finished(folder))


def refuse_start_in(folder: Path, start: Path | None) -> None:
    """Refuse to begin as a file of the run that starts over.

    Raises:
        UserError: it lies in the run's folder.
    """
    if start is not None and start.resolve().is_relative_to(folder.resolve()):
        hint = "copy it into the collection's folder and give that file"
        raise UserError(start, START, "is moved away by --again", hint)


def begin_student(session: Session, start: tuple[Path, LoraFile, Recipe] | None) -> list[Path]:
    """Let the student begin as `match.start` says; returns the file of the adapter that is its `start`.

    Raises:
        UserError: the adapter has another prompt of an effect.
    """
    if session.settings.match.start == "merge":
        session.first_student = session.merge_teachers
    if start is None:
        return []
    path, lora, recipe = start
    growing.start_from(session, lora, recipe)
    return [path]


def run_path(collection: Collection, run: str) -> Path:
    """Where a run of a name is kept.

    Raises:
        UserError: the name is that of no folder below `runs`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run):
        raise UserError("", "--run", f"{run!r} cannot name a folder", "use letters, digits, . _ and -")
    return collection.folder / "runs" / run


def warn_of_no_run(collection: Collection, run: str) -> None:
    """Say that a run to go on with was never begun. It begins: a job may be started again and again."""
    folder = run_path(collection, run)
    if processes.is_main() and not folder.exists():
        runs = sorted(path.parent.name for path in folder.parent.glob(f"*/{FACTS}"))
        log.warning(
            "%s: there is no such run, so it begins now; there are: %s", folder, ", ".join(runs) or "none"
        )


@processes.joined()
def add(
    collection: Collection | Path | str,
    names: Sequence[str],
    teacher: Path | None = None,
    teacher_prompt: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress = ignore,
) -> Path:
    """Teach a finished collection further effects of its manifest, with replay of the kept ones; resumes.

    Several processes train data-parallel.

    Args:
        teacher: the LoRA file of one named effect, which is entered in the manifest with photos/NAME.
        teacher_prompt: what it was trained with, if the file does not say.

    Returns:
        the adapter; the one from before is kept until `bench` with a `baseline` has passed.

    Raises:
        UserError: bad input, or another process that adds, removes or distils.
        Interrupted: stopped by the user; call again without `teacher` to go on.
    """
    with hold_collection(collection) as held:
        if teacher:
            growing.open_adapter(held, overrides or {})  # refuses what it can before the manifest changes
            if len(names) != 1:
                raise UserError("", "--teacher", f"is one file for {len(names)} effects", "name one effect")
            if processes.is_main():
                growing.enter_teacher(held, names[0], teacher, teacher_prompt)
            processes.barrier()
            held = Collection.load(held.folder)
        return growing.add(held, names, overrides or {}, progress)


def remove(collection: Collection | Path | str, names: Sequence[str]) -> list[str]:
    """Take effects out of a collection; returns what is left. The weights still hold them.

    Raises:
        UserError: no such effect, no effect would be left, or another process adds, removes or distils.
    """
    with hold_collection(collection) as held:
        return growing.remove(held, names)


@contextmanager
def hold_collection(collection: Collection | Path | str) -> Iterator[Collection]:
    """The collection while no other `add` or `remove` changes it, and no run will replace its adapter.

    Raises:
        UserError: another process does.
    """
    with hold_changes(open_collection(collection)):
        for lock in (open_collection(collection).folder / "runs").glob(f"*/{LOCK}"):
            with hold(lock.parent, hint=WAIT):
                pass
        yield open_collection(collection)


def hold_changes(collection: Collection) -> AbstractContextManager[None]:
    """No other process begins to `add`, `remove`, distil, or ask a model for prompts inside the block.

    Raises:
        UserError: another process adds, removes, or asks for prompts.
    """
    return hold(collection.folder / "runs", "this collection", WAIT)
