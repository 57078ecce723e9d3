"""`add` and `remove`: grow or shrink a finished collection.

`add` starts student and critic from the finished adapter and takes few updates. Its effect stream draws a new
effect with probability `add.new_ratio` and replays a kept one otherwise; the general stream stays as it is.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from collectionlora.adapters.alpha import lora_files
from collectionlora.adapters.formats import LoraFile, read_header, read_teacher
from collectionlora.adapters.keys import WITHOUT
from collectionlora.adapters.recipe import Recipe, adapter_path, read_adapter, start_file, write_adapter
from collectionlora.adapters.roles import target_weights
from collectionlora.backbones import family_of
from collectionlora.collection import MANIFEST, Collection
from collectionlora.config import Settings, replace_settings
from collectionlora.manifest.edits import add_effect, drop_effects
from collectionlora.manifest.template import teacher_copies
from collectionlora.runs.inputs import distillation_inputs
from collectionlora.runs.run import open_run
from collectionlora.runs.session import (
    Session,
    check_processes,
    distillation_facts,
    resolve_settings,
    warn_of_untrained_steps,
)
from collectionlora.system import processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import copy_whole, fingerprint, keep_earlier, refuse_other, write_text
from collectionlora.system.progress import Progress


def backup_path(collection: Collection) -> Path:
    """Where the adapter from before an `add` is kept until `bench --baseline` has passed."""
    return collection.result.with_suffix(".before-add.safetensors")


def enter_teacher(collection: Collection, name: str, teacher: Path, teacher_prompt: str | None) -> Collection:
    """Copy an effect LoRA into a collection and enter it in the manifest, with photos from `photos/NAME`.

    An effect that is entered already with this file stays as it is: a stopped command can be repeated.

    Raises:
        UserError: the manifest has the effect with another file or prompt, the file does not fit the base,
            there are no photos, or no prompt is known; nothing is written then.
    """
    place = collection.folder / MANIFEST
    if name in (e.name for e in collection.effects):
        entered = collection.effect(name)
        held = collection.teacher_path(entered)
        if fingerprint(*lora_files(teacher)) != fingerprint(*lora_files(held)):
            hint = "give the same LoRA, or enter it under another name"
            raise UserError(held, "", f"exists already and is not {teacher}", hint)
        if teacher_prompt not in (None, entered.teacher_prompt):
            hint = "leave out --teacher-prompt, or correct it in the file"
            raise UserError(place, name, "has another teacher_prompt", hint)
        return collection
    base = collection.manifest.base
    family = family_of(base)
    try:
        read_teacher(teacher, target_weights(*family.empty_network(base)), family.weight_reader(base))
    except UserError as error:
        if error.hint != WITHOUT:
            raise
        hint = "copy it into the collection, write the effect with without_text_encoder: true into "
        hint += "collection.yaml, and give add its name without --teacher"
        raise UserError(teacher, error.field, error.message, hint) from None
    prompt = teacher_prompt or read_header(teacher).get("teacher_prompt")
    if not prompt:
        message = "the file does not say what it was trained with"
        raise UserError(teacher, "teacher_prompt", message, "give it: --teacher-prompt TEXT")
    copies = teacher_copies(name, teacher)
    entry = {"name": name, "teacher": next(iter(copies)), "teacher_prompt": prompt}
    text = add_effect(collection.folder, {**entry, "photos": f"photos/{name}"})
    grown = Collection.parse(collection.folder, text)
    grown.photo_paths(grown.effect(name))
    for path, source in copies.items():
        refuse_other(source, grown.folder / path)
    for path, source in copies.items():
        copy_whole(source, grown.folder / path)
    write_text(place, text)
    return grown


def add(
    collection: Collection, names: Sequence[str], overrides: Mapping[str, Any], progress: Progress
) -> Path:
    """Teach a finished adapter further effects of its manifest; resumes. Returns the adapter.

    The adapter from before is kept at `backup_path`.

    Raises:
        UserError: an effect is unknown or held already, or manifest or settings do not fit the adapter.
        Interrupted: stopped by the user; the same command goes on.
    """
    from collectionlora.runs.watching import Watch  # takes seconds, and `check` needs this module too

    path, lora, recipe, settings = open_adapter(collection, overrides)
    warn_of_untrained_steps(settings)
    for name in names:
        if collection.effect(name).name in recipe.effects:
            raise UserError(path, name, "is in this adapter already", "name an effect that is new")
    known = [e.name for e in collection.effects]
    for name in recipe.effects:
        if name not in known:
            hint = f"put it back, or run: collectionlora remove {collection.folder} {name}"
            raise UserError(collection.folder / MANIFEST, name, "is in the adapter, not here", hint)
    chosen = [name for name in known if name in recipe.effects or name in names]
    grown = collection.only(chosen)
    facts = distillation_facts(grown, settings) | {"add.new_ratio": settings.add.new_ratio}
    folder = collection.folder / "runs" / f"add-{fingerprint(path, facts)}"
    grown.check_files()
    with open_run(folder) as opened:
        session = Session(grown, settings, with_critics=True)
        start_from(session, lora, recipe)
        run = session.distillation(progress)
        run.streams.favour(names, settings.add.new_ratio)
        inputs = [path, *distillation_inputs(grown)]
        with Watch(run, folder) as watch:
            report = watch.beside(partial(progress, "add"))
            opened.train(run, settings, session.facts(), collection, inputs, report)
        session.write_result(run, folder / path.name)
        backup = backup_path(collection)
        if processes.is_main() and not backup.exists():  # of several without a passed gate the oldest stays
            copy_whole(path, backup)
        session.write_result(run, path)
        processes.barrier()
    return path


def open_adapter(
    collection: Collection, overrides: Mapping[str, Any]
) -> tuple[Path, LoraFile, Recipe, Settings]:
    """The finished adapter that `add` begins as, and the settings of its run.

    Raises:
        UserError: the collection is not distilled, or settings do not exist or do not fit the adapter.
    """
    path = adapter_path(collection.folder)
    lora, recipe = read_adapter(path)
    settings = growing_settings(resolve_settings(collection, overrides))
    check_processes(collection, settings)
    refuse_other_schedule(settings, path, recipe)
    refuse_misfit(collection, settings, path, lora, recipe)
    return path, lora, recipe, settings


def growing_settings(settings: Settings) -> Settings:
    """Those of the short run of `add`, which begins as the collection's adapter in place of `match.start`."""
    match = {"updates": settings.add.match_updates, "start": "base"}
    return replace_settings(settings, match=match, distill={"student_updates": settings.add.student_updates})


def start_from(session: Session, lora: LoraFile, recipe: Recipe) -> None:
    """Let the student begin as a finished adapter that fits it; the run's critics start as its copies.

    Raises:
        UserError: the adapter has another prompt of an effect.
    """
    place, prompts = session.collection.folder / MANIFEST, session.recipe_prompts()
    for name, prompt in recipe.effects.items():
        if prompts.get(name, prompt) != prompt:
            hint = f"the adapter knows it as {prompt!r}: give it as its student_prompt"
            raise UserError(place, name, "has another student prompt now", hint)
    session.first_student = lambda: lora.weights


def open_start(collection: Collection, settings: Settings) -> tuple[Path, LoraFile, Recipe] | None:
    """The finished adapter that the student begins as, if `match.start` names one.

    Raises:
        UserError: it is missing or damaged, or does not fit.
    """
    path = start_file(collection, settings)
    if path is None:
        return None
    lora, recipe = read_adapter(path)
    refuse_misfit(collection, settings, path, lora, recipe)
    return path, lora, recipe


def refuse_misfit(
    collection: Collection, settings: Settings, path: Path, lora: LoraFile, recipe: Recipe
) -> None:
    """Refuse a finished adapter that no student of these settings can begin as.

    Raises:
        UserError: the adapter has another base, a module that its base lacks, or more rank than the student.
    """
    if recipe.base != collection.manifest.base:
        message, hint = f"the adapter is of {recipe.base}", "write the adapter's base"
        raise UserError(collection.folder / MANIFEST, "base", message, hint)
    if lora.rank > settings.student.rank:
        hint = f"write --set student.rank={lora.rank} --set critic.rank={lora.rank}"
        raise UserError(path, "", f"has rank {lora.rank}, the student {settings.student.rank}", hint)
    base = target_weights(*family_of(recipe.base).empty_network(recipe.base))
    for module, (a, b) in lora.weights.items():
        if module not in base or (len(b), *a.shape[1:]) != base[module].shape:
            message = f"is not a module of {recipe.base} that takes this LoRA"
            raise UserError(path, module, message, "give an adapter that was made on this base")


def refuse_other_schedule(settings: Settings, path: Path, recipe: Recipe) -> None:
    """Refuse to write another schedule over the one that an adapter was distilled for.

    Raises:
        UserError: settings and recipe differ in it.
    """
    held = {
        "sampling.steps": (recipe.steps, settings.sampling.steps),
        "sampling.shift": (recipe.shift, settings.sampling.shift),
        "sampling.sampler": (recipe.sampler, settings.sampling.sampler),
        "data.resolution": (recipe.resolution, settings.data.resolution),
    }
    for name, (before, now) in held.items():
        if before != now:
            message = f"{name} is {before} in the adapter, and {now} in the settings"
            raise UserError(path, "", message, f"write --set {name}={before}")


def remove(collection: Collection, names: Sequence[str]) -> list[str]:
    """Take effects out of the manifest and out of the finished adapter's recipe; returns what is left.

    The weights stay as they are: nothing is forgotten, the effect is only no longer offered.

    Raises:
        UserError: an effect that neither has, or nothing would be left.
    """
    place = collection.folder / MANIFEST
    path = collection.result
    lora, recipe = read_adapter(path) if path.exists() else (None, None)
    in_adapter = recipe.effects if recipe else {}
    for name in names:
        if name not in in_adapter:
            collection.effect(name)
    left = [e.name for e in collection.effects if e.name not in names]
    if not left or (recipe and not in_adapter.keys() - set(names)):
        raise UserError(
            place, "effects", "no effect would be left", "keep one effect, or delete the collection"
        )
    text = drop_effects(collection.folder, names)
    Collection.parse(collection.folder, text)
    if lora and recipe:
        fewer = {name: prompt for name, prompt in in_adapter.items() if name not in names}
        references = {name: count for name, count in recipe.references.items() if name in fewer}
        update = {"effects": fewer, "references": references}
        with keep_earlier(path):
            write_adapter(path, lora.weights, recipe.model_copy(update=update))
    with keep_earlier(place):
        write_text(place, text)
    return left
