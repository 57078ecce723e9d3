"""The verbs as functions: what the command line calls, and what `import collectionlora` offers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from collectionlora.adapters.formats import write_lora
from collectionlora.adapters.roles import STUDENT
from collectionlora.backbones import load_backbone
from collectionlora.collection import Collection, Effect, list_photos
from collectionlora.config import Settings
from collectionlora.editing import Editor, edit
from collectionlora.errors import UserError
from collectionlora.files import write_json
from collectionlora.prompting import cosine_table
from collectionlora.session import (
    Session,
    build_roles,
    check_resolution,
    effect_names,
    resolve_settings,
    student_prompts,
)
from collectionlora.target_making import encode_for_photos, read_images
from collectionlora.teaching import Teaching
from collectionlora.trainer import train

__all__ = ["Editor", "distill", "edit", "prompts", "targets", "teach"]

Progress = Callable[[str, int, int, dict[str, float]], None]  # (what, done, in all, metrics)


def ignore(_what: str, _done: int, _total: int, _metrics: dict[str, float]) -> None:
    """No progress shown."""


def open_collection(collection: Collection | Path | str) -> Collection:
    return collection if isinstance(collection, Collection) else Collection.load(collection)


def teach(
    collection: Collection | Path | str,
    names: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    resume: bool = True,
    progress: Progress = ignore,
) -> list[Path]:
    """Train effect LoRAs from `pairs/NAME/{source,target}`; returns the files written.

    Raises:
        UserError: pairs are missing or do not match.
        Interrupted: stopped by the user; call again to go on.
    """
    collection = open_collection(collection)
    settings = resolve_settings(collection, overrides or {})
    backbone = load_backbone(collection.manifest.base, settings.model)
    check_resolution(collection, backbone, settings)
    roles = build_roles(backbone, {STUDENT: settings.teach.rank}, settings.teach.seed, settings)
    fresh = roles.weights(STUDENT)
    written = []
    for name in effect_names(collection, names):
        effect = collection.effect(name)
        roles.load(STUDENT, fresh)
        sources, answers = read_pairs(collection, effect, settings)
        prompt = encode_for_photos(backbone, [effect.teacher_prompt] * len(sources), sources)
        x, y = backbone.encode_image(sources), backbone.encode_image(answers)
        backbone.release_encoders()
        teaching = Teaching(backbone, roles, x, y, prompt, settings)

        def report(done: int, total: int, metrics: dict[str, float], name: str = name) -> None:
            progress(name, done, total, metrics)

        folder = collection.folder / "runs" / f"teach-{name}"
        train(teaching, folder, settings.distill.checkpoint_every, resume, report)
        path = collection.teacher_path(effect)
        write_lora(path, teaching.weights(), {"teacher_prompt": effect.teacher_prompt})
        written.append(path)
    return written


def read_pairs(collection: Collection, effect: Effect, settings: Settings) -> tuple[Tensor, Tensor]:
    """An effect's image pairs, matched by file name; two tensors `[N, 3, side, side]` in [0, 1].

    Raises:
        UserError: a file without its partner.
    """
    folder = collection.folder / "pairs" / effect.name
    sides = [list_photos(folder / side) for side in ("source", "target")]
    stems = [{path.stem: path for path in side} for side in sides]
    alone = sorted(set(stems[0]) ^ set(stems[1]))
    if alone:
        raise UserError(folder, alone[0], "is in source/ or target/ alone", "give both files one name")
    order = sorted(stems[0])
    sources, targets = (read_images([side[s] for s in order], settings) for side in stems)
    return sources, targets


def prompts(collection: Collection | Path | str) -> dict[str, Any]:
    """Student prompts of all effects, and their pairwise cosine with and without asymmetric prompting."""
    collection = open_collection(collection)
    backbone = load_backbone(collection.manifest.base, resolve_settings(collection, {}).model)
    written = student_prompts(collection, backbone)
    teacher_prompts = [e.teacher_prompt for e in collection.effects]
    return {
        "student_prompts": written,
        "teacher_prompts": {e.name: e.teacher_prompt for e in collection.effects},
        "student_cosine": cosine_table(backbone.encode_prompt, list(written.values())).tolist(),
        "teacher_cosine": cosine_table(backbone.encode_prompt, teacher_prompts).tolist(),
    }


def targets(
    collection: Collection | Path | str,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress = ignore,
) -> dict[str, int]:
    """Make what is missing of the teacher targets; returns the number of images by effect."""
    collection = open_collection(collection)
    session = Session(collection, resolve_settings(collection, overrides or {}), with_critics=False)
    streams = session.make_targets(lambda what, done, total: progress(what, done, total, {}))
    counts = {data.name: data.targets[:, :, 0, 0, 0].numel() for data in streams.effects}
    return counts | {"general": len(streams.general.targets)}


def distill(
    collection: Collection | Path | str,
    run: str = "default",
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress = ignore,
) -> Path:
    """The method over a collection; returns the finished adapter.

    Raises:
        UserError: bad input.
        Interrupted: stopped by the user; call again with `resume=True` to go on.
    """
    collection = open_collection(collection)
    settings = resolve_settings(collection, overrides or {})
    folder = collection.folder / "runs" / run
    session = Session(collection, settings, with_critics=True)
    distillation = session.distillation(
        lambda what, done, total: progress(f"targets {what}", done, total, {})
    )
    write_json(folder / "settings.json", settings.model_dump(mode="json"))
    train(
        distillation,
        folder,
        settings.distill.checkpoint_every,
        resume,
        lambda done, total, metrics: progress("distill", done, total, metrics),
    )
    session.write_result(distillation, folder / collection.result.name)
    session.write_result(distillation, collection.result)
    return collection.result
