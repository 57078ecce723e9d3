"""The whole journey on the embedded base: photographs, teachers, distillation, table, sheet, report."""

import platform
import shutil
import time
from collections.abc import Callable, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from collectionlora import __version__
from collectionlora.adapters.roles import BASE, TEACHER
from collectionlora.api import distill
from collectionlora.backbones.base import Condition
from collectionlora.collection import MANIFEST, Collection
from collectionlora.data import Photo, write_photo
from collectionlora.editing import Editor
from collectionlora.effectbench import bench
from collectionlora.effectbench.classifier import train_classifier
from collectionlora.effectbench.photographs import HELDOUT, TRAIN, pool
from collectionlora.effectbench.report import build_report, read_curves
from collectionlora.effectbench.sheet import contact_sheet
from collectionlora.effects import EFFECTS
from collectionlora.effects.ordinary import general_instructions
from collectionlora.errors import UserError
from collectionlora.files import write_json, write_text
from collectionlora.sampling import Denoiser, noise_like, sample_many_steps
from collectionlora.session import Session, resolve_settings

PHOTOS, GENERAL_PHOTOS, JUDGED = 24, 64, 24
CLASSIFIER_STEPS = 400
SHEET_PHOTOS = 2

Progress = Callable[[str, int, int, dict[str, float]], None]


def shipped_teachers() -> dict[str, Path]:
    """The effect LoRAs that ship with the package, by effect."""
    folder = Path(str(resources.files("collectionlora"))) / "weights" / "teachers"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def build_collection(folder: Path, names: Sequence[str], seed: int) -> Collection:
    """A collection of shipped teachers over crops of the working photographs."""
    rng, photos = np.random.default_rng(seed), pool(TRAIN)
    teachers = shipped_teachers()
    for sub, count in (("photos/effects", PHOTOS), ("photos/general", GENERAL_PHOTOS)):
        for index in range(count):
            write_photo(folder / sub / f"{index:03d}.png", photos.crop(rng))
    (folder / "teachers").mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(teachers[name], folder / "teachers" / f"{name}.safetensors")
    write_text(folder / "general.txt", "\n".join(general_instructions()) + "\n")
    effects = [
        {
            "name": name,
            "teacher": f"teachers/{name}.safetensors",
            "teacher_prompt": EFFECTS[name].teacher_prompt,
            "photos": "photos/effects",
        }
        for name in names
    ]
    general = {"photos": "photos/general", "prompts": "general.txt"}
    manifest = {"base": "nano", "effects": effects, "general": general}
    write_text(folder / MANIFEST, yaml.safe_dump(manifest, sort_keys=False))
    return Collection.load(folder)


def student_method(collection: Path, steps: int) -> bench.Method:
    """The finished adapter at `steps`, without guidance."""
    editor = Editor.load(collection)

    def sample(effect: str, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return editor.sample(images, [editor.prompt([effect])] * len(images), seeds, steps)

    def general(images: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return editor.sample(images, prompts, seeds, steps)

    return bench.Method(f"student, {steps} steps", steps, sample, general)


def teacher_method(session: Session) -> bench.Method:
    """Each effect's own LoRA in many guided steps; the bare base for ordinary instructions."""
    targets, backbone = session.settings.targets, session.backbone
    prompts = {e.name: e.teacher_prompt for e in session.collection.effects}

    @torch.no_grad()
    def run(images: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        source = backbone.encode_image(images)
        noise = noise_like(source, [torch.Generator().manual_seed(seed) for seed in seeds])
        cond, uncond = (
            Condition(backbone.encode_prompt(list(t)), source) for t in (texts, [""] * len(texts))
        )
        denoiser = Denoiser(backbone, cond, uncond, targets.guidance_scale)
        return backbone.decode(sample_many_steps(denoiser, noise, targets.steps))

    def sample(effect: str, images: Tensor, seeds: Sequence[int]) -> Tensor:
        with session.teachers.use(effect):
            return run(images, [prompts[effect]] * len(images), seeds)

    def general(images: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        with session.teachers.use(BASE):
            return run(images, texts, seeds)

    return bench.Method(TEACHER, 2 * targets.steps, sample, general)


SOURCE = bench.Method(
    "source", 0, lambda effect, images, seeds: images, lambda images, prompts, seeds: images
)


def demo(
    out: Path, num_effects: int, seed: int, overrides: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Run it all into `out`; returns the content of metrics.json.

    Raises:
        UserError: more effects than teachers ship, or `out` holds a finished demo.
    """
    began = time.perf_counter()
    available = list(shipped_teachers())
    if not 1 <= num_effects <= len(available):
        raise UserError(
            "demo", "--effects", f"{num_effects} is out of range", f"choose 1 to {len(available)}"
        )
    folder = out / "collection"
    if (folder / MANIFEST).exists():
        collection = Collection.load(folder)
    else:
        collection = build_collection(folder, available[:num_effects], seed)
    names = [e.name for e in collection.effects]
    adapter = distill(collection, "demo", {**overrides}, resume=True, progress=progress)

    settings = resolve_settings(collection, overrides)
    session = Session(collection, settings, with_critics=False)
    methods = [SOURCE, teacher_method(session)]
    methods += [student_method(adapter, n) for n in settings.distill.rollout_steps]
    return judge(out, names, methods, settings.model_dump(mode="json"), seed, began, progress)


def judge(
    out: Path,
    names: Sequence[str],
    methods: Sequence[bench.Method],
    settings: dict[str, Any],
    seed: int,
    began: float,
    progress: Progress,
) -> dict[str, Any]:
    """Measure all methods on held-out photographs and write sheet.png, report.html and metrics.json."""
    cases = bench.draw_cases(pool(HELDOUT), JUDGED, seed + 1)
    crops, rng = pool(TRAIN), np.random.default_rng(seed + 2)
    classifier = train_classifier(names, lambda: crops.crop(rng), CLASSIFIER_STEPS, seed)
    made: dict[str, dict[str, list[Photo]]] = {}
    table = {}
    for index, method in enumerate(methods):
        made[method.name] = {name: bench.make(method, name, cases) for name in names}
        per_effect = bench.measure(made[method.name], cases, classifier)
        table[method.name] = bench.summarise(per_effect, method.nfe, bench.general_psnr(method, cases))
        progress("judge", index + 1, len(methods), {})
    metrics = {
        "methods": table,
        "photos": len(cases.photos),
        "effects": list(names),
        "seeds": [seed],
        "seconds": time.perf_counter() - began,
        "versions": versions(),
        "settings": settings,
    }
    sheet = draw_sheet(names, cases, made)
    write_photo(out / "sheet.png", sheet)
    curves = read_curves(out / "collection" / "runs" / "demo" / "log.jsonl")
    write_text(out / "report.html", build_report(metrics, sheet, curves))
    write_json(out / "metrics.json", metrics)
    return metrics


def draw_sheet(names: Sequence[str], cases: bench.Cases, made: dict[str, dict[str, list[Photo]]]) -> Photo:
    """Source, a truth, and each method, for the first photographs of every effect."""
    shown = [name for name in made if name != SOURCE.name]
    rows = []
    for name in names:
        for i in range(SHEET_PHOTOS):
            truth = EFFECTS[name](cases.photos[i], np.random.default_rng(i))
            rows.append((name, [cases.photos[i], truth, *(made[method][name][i] for method in shown)]))
    return contact_sheet(rows, ["source", "truth", *shown])


def versions() -> dict[str, str]:
    """What the numbers depend on."""
    packages = {name: metadata.version(name) for name in ("torch", "peft", "numpy")}
    return {"collectionlora": __version__, "python": platform.python_version(), **packages}
