"""The whole journey on the embedded base: photographs, teachers, distillation, table, pictures, report."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from collectionlora import distill
from collectionlora.adapters.recipe import SHIPPED, read_recipe
from collectionlora.adapters.roles import STUDENT, TEACHER
from collectionlora.collection import MANIFEST, Collection
from collectionlora.editing import Editor
from collectionlora.effectbench.heldout import Heldout, heldout_photographs
from collectionlora.effectbench.report.page import write_results
from collectionlora.effectbench.running import run_bench
from collectionlora.effects import ALL_EFFECTS
from collectionlora.effects.crops import PhotoPool
from collectionlora.effects.ordinary import general_instructions
from collectionlora.pictures.photographs import HELDOUT, TRAIN, load_photograph, pool
from collectionlora.pictures.photos import Photo, read_photo, write_photo
from collectionlora.pictures.sheets import labelled_grid
from collectionlora.runs.session import resolve_settings
from collectionlora.runs.trainer import LOG
from collectionlora.system import processes
from collectionlora.system.errors import UserError
from collectionlora.system.files import write_text
from collectionlora.system.progress import Progress

RUN = "demo"
PHOTOS, GENERAL_PHOTOS, JUDGED = 64, 48, 24
CLASSIFIER_STEPS = 600
SHOWN_SIZE = 128  # pixels of a side that the network works with for the last pictures; it was taught at 64


def shipped_teachers() -> dict[str, Path]:
    """The effect LoRAs that ship with the package, by effect, in the order of the collection that ships.

    Triggers are drawn in that order, so that a collection of them has the student prompts of the one that
    ships, and can go on from it. Of the first four, one has several valid outcomes.
    """
    folder = SHIPPED.parent / "teachers"
    return {name: folder / f"{name}.safetensors" for name in read_recipe(SHIPPED).effects}


def build_collection(
    folder: Path,
    teachers: Mapping[str, Path],
    photographs: PhotoPool,
    seed: int,
    num_general: int = GENERAL_PHOTOS,
    num_photos: int = PHOTOS,
    weights: Mapping[str, float] | None = None,
) -> Collection:
    """A collection of effect LoRAs by effect name, over crops of photographs; some effects have weights."""
    rng = np.random.default_rng(seed)
    for sub, count in (("photos/effects", num_photos), ("photos/general", num_general)):
        for index in range(count):
            write_photo(folder / sub / f"{index:03d}.png", photographs.crop(rng))
    (folder / "teachers").mkdir(parents=True, exist_ok=True)
    for name, path in teachers.items():
        shutil.copyfile(path, folder / "teachers" / f"{name}.safetensors")
    write_text(folder / "general.txt", "\n".join(general_instructions()) + "\n")
    effects = [
        {
            "name": name,
            "teacher": f"teachers/{name}.safetensors",
            "teacher_prompt": ALL_EFFECTS[name].teacher_prompt,
            "photos": "photos/effects",
        }
        | ({"weight": weights[name]} if weights and name in weights else {})
        for name in teachers
    ]
    general = {"photos": "photos/general", "prompts": "general.txt"}
    manifest = {"base": "nano", "effects": effects, "general": general}
    write_text(folder / MANIFEST, yaml.safe_dump(manifest, sort_keys=False))
    return Collection.load(folder)


def draw_pictures(folder: Path) -> Photo:
    """One photograph that nothing was trained on, and the same under every effect."""
    editor, photo = Editor.load(folder), load_photograph(HELDOUT[0])
    made = {name: np.asarray(editor.edit(photo, name, size=SHOWN_SIZE)) for name in editor.effects}
    return labelled_grid({"photo": photo, **made}, columns=5)


def demo(
    out: Path, num_effects: int, seed: int, overrides: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Run it all into `out`; returns the content of metrics.json.

    Raises:
        UserError: more effects than teachers ship, or `out` holds a demo of others or of another seed.
    """
    began = time.perf_counter()
    available = shipped_teachers()
    if not 1 <= num_effects <= len(available):
        raise UserError(
            "demo", "--effects", f"{num_effects} is out of range", f"choose 1 to {len(available)}"
        )
    folder, chosen = out / "collection", dict(list(available.items())[:num_effects])
    photographs = pool(TRAIN)
    with processes.main_first():
        if not (folder / MANIFEST).exists():
            build_collection(folder, chosen, photographs, seed)
    collection = Collection.load(folder)
    if [effect.name for effect in collection.effects] != list(chosen):
        message = f"holds a demo of {len(collection.effects)} other effects"
        raise UserError(folder, "--effects", message, "give the same --effects, or another --out")
    crop = photographs.crop(np.random.default_rng(seed))
    if not np.array_equal(read_photo(collection.photo_paths(collection.effects[0])[0]), crop):
        raise UserError(
            folder, "--seed", "holds a demo of another seed", "give the same --seed, or another --out"
        )
    distill(collection, RUN, overrides, resume=True, progress=progress)

    settings = resolve_settings(collection, overrides)
    others = [n for n in settings.distill.rollout_steps if n != settings.sampling.steps]
    methods = ["source", TEACHER, STUDENT, *(f"{STUDENT}-{n}" for n in others)]
    heldout = Heldout(
        heldout_photographs(None, collection.manifest.base), photographs, JUDGED, [seed + 1], CLASSIFIER_STEPS
    )
    result = run_bench(collection, settings, methods, heldout, progress)
    result.metrics["seconds"] = time.perf_counter() - began
    logs = {RUN: folder / "runs" / RUN / LOG}
    if processes.is_main():
        for place in (out, folder / "bench"):  # for people, and where the studio looks
            write_results(place, result, logs)
        write_photo(out / "pictures.png", draw_pictures(folder))
    return result.metrics
