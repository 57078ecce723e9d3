"""A finished adapter for use elsewhere: diffusers, PEFT, ComfyUI or LightX2V, with what its users need."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from collectionlora.adapters.alpha import DIFFUSERS_FILE, PEFT_CONFIG, PEFT_FILE
from collectionlora.adapters.formats import LoraFile, read_header
from collectionlora.adapters.low_rank import change_norm, distance, pad, shrink
from collectionlora.adapters.recipe import KEY, Recipe, adapter_path, read_adapter
from collectionlora.adapters.roles import LoraWeights
from collectionlora.backbones import guess_family
from collectionlora.backbones.comfyui import COMFYUI_SAMPLERS, Student
from collectionlora.backbones.family import ExportFacts
from collectionlora.config import Sampler
from collectionlora.exporting.model_card import TITLE, Card, Reduction
from collectionlora.pictures.folders import PHOTO_SUFFIXES
from collectionlora.system.errors import UserError
from collectionlora.system.files import copy_whole, write_json, write_tensors, write_text

KEYS = {
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "comfyui": ("{}.lora_down.weight", "{}.lora_up.weight"),
    "lightx2v": ("{}.lora_A.weight", "{}.lora_B.weight"),
}
FILES = {"diffusers": DIFFUSERS_FILE, "peft": PEFT_FILE}
UNKNOWN = ExportFacts("unknown", "other", arguments="")
COMMON_MULTIPLE = 32  # of the sides that all known bases take


def export(
    collection: Path | str,
    format: str,
    out: Path | str,
    rank: int | None = None,
    previews: Sequence[Path | str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a finished adapter into the folder `out` as others read it.

    Args:
        collection: the collection's folder, or the one file.
        format: "diffusers", "peft", "comfyui" or "lightx2v".
        rank: reduce the adapter to this rank by singular values.
        previews: images for the model card, named after their effects.
        overwrite: replace files that exist in `out`; those of an earlier export of this collection are
            replaced anyway.

    Returns:
        `{"format", "files", "rank", "reduction"}`, the last the fields of `Reduction`, or None.

    Raises:
        UserError: no finished adapter, a format that is unknown or not for its base, a rank above the
            adapter's, a preview of no effect, a file that exists, or the adapter itself in place of a file.
    """
    source, out = adapter_path(Path(collection)), Path(out)
    if format not in KEYS:
        raise UserError("", "format", f"{format!r} is not known", f"choose from {', '.join(KEYS)}")
    lora, recipe = read_adapter(source)
    family = guess_family(recipe.base)
    facts = family.export if family else UNKNOWN
    if format == "comfyui" and facts.comfyui_prefix is None:
        message = f"ComfyUI is not known to read every module of {recipe.base}"
        raise UserError(source, "format", message, "export for diffusers or peft")
    weights, reduction = at_rank(source, lora, rank)
    title = (source.parent if Path(collection).is_dir() else source.with_suffix("")).resolve().name
    images = preview_names(previews, recipe)
    card = Card(
        title,
        format,
        file=FILES.get(format, f"{title}.safetensors"),
        recipe=recipe,
        facts=facts,
        side_multiple=family.side_multiple if family else COMMON_MULTIPLE,
        reduction=reduction,
        previews={effect: f"images/{path.name}" for effect, path in images.items()},
    )
    writers = plan_files(card, weights)
    writers |= {f"images/{path.name}": partial(copy_whole, path) for path in images.values()}
    refuse_taken(out, list(writers), source, overwrite or is_export(out / card.file, title))
    for name, write in writers.items():
        write(out / name)
    size = lora.rank if rank is None else rank
    return {
        "format": format,
        "files": [str(out / name) for name in writers],
        "rank": size,
        "reduction": asdict(reduction) if reduction else None,
    }


def at_rank(source: Path, lora: LoraFile, rank: int | None) -> tuple[LoraWeights, Reduction | None]:
    """An adapter in half precision, every module padded or reduced to one rank; by default to its own.

    Raises:
        UserError: the rank is above the adapter's.
    """
    if rank is None:
        return {name: pad((a.half(), b.half()), lora.rank) for name, (a, b) in lora.weights.items()}, None
    if 1 <= rank <= lora.rank:
        return reduce_rank(lora.weights, rank)
    raise UserError(source, "rank", f"is {lora.rank}, so it cannot become {rank}", "give a smaller rank")


def refuse_taken(out: Path, names: Sequence[str], source: Path, replace: bool) -> None:
    """Refuse a folder in which the files of an export would take the place of others.

    Raises:
        UserError: one of them is there and not to be replaced, or is the adapter that is exported.
    """
    if any((out / name).exists() and (out / name).samefile(source) for name in names):
        raise UserError(source, "--out", "would be replaced by its own export", "give another folder")
    taken = [out / name for name in names if os.path.lexists(out / name)]
    if taken and not replace:
        raise UserError(taken[0], "--out", "exists already", "give --overwrite, or another folder")


def is_export(path: Path, title: str) -> bool:
    """Whether a file is an export of the collection of this title, which can be made again."""
    try:
        header = read_header(path)
    except UserError:
        return False
    return KEY in header and header.get(TITLE) == title


def plan_files(card: Card, weights: LoraWeights) -> dict[str, Callable[[Path], None]]:
    """How the adapter, and each file that goes with it, is written to a path, by its name in the folder."""
    rank = len(next(iter(weights.values()))[0])
    writers: dict[str, Callable[[Path], None]] = {
        card.file: lambda path: write_tensors(path, spell(card, weights, rank), card.header()),
        "README.md": lambda path: write_text(path, card.text()),
    }
    if card.format == "comfyui":
        if make_workflow := card.facts.workflow:
            writers["workflow.json"] = lambda path: write_json(path, make_workflow(describe_student(card)))
        return writers
    if card.format == "lightx2v":
        return writers
    scheduler = scheduler_config(card.recipe.shift, card.recipe.sampler)
    writers["scheduler/scheduler_config.json"] = lambda path: write_json(path, scheduler)
    if card.format == "peft":
        writers[PEFT_CONFIG] = lambda path: write_json(path, peft_config(card, list(weights), rank))
    elif card.facts.arguments is not None:
        writers["example.py"] = lambda path: write_text(path, card.example())
    return writers


def describe_student(card: Card) -> Student:
    """What a workflow shows of an adapter, with the prompt of its first effect."""
    recipe = card.recipe
    prompt = next(iter(recipe.effects.values()))
    guidance = recipe.model.embedded_guidance
    return Student(
        card.file,
        prompt,
        recipe.base,
        recipe.steps,
        recipe.shift,
        COMFYUI_SAMPLERS[recipe.sampler],
        recipe.resolution,
        guidance,
    )


def spell(card: Card, weights: LoraWeights, rank: int) -> dict[str, Tensor]:
    """The tensors under the names of a format; alpha is the rank, and ComfyUI is told so."""
    down, up = KEYS[card.format]
    tensors: dict[str, Tensor] = {}
    for module, (a, b) in weights.items():
        if card.format == "comfyui":
            module = comfyui_name(card.facts, module)
            tensors[f"{module}.alpha"] = torch.tensor(float(rank))
        tensors |= {down.format(module): a, up.format(module): b}
    return tensors


def comfyui_name(facts: ExportFacts, module: str) -> str:
    """A module's name in ComfyUI, with its prefix."""
    return facts.comfyui_names.get(module, f"{facts.comfyui_prefix}{module}")


def scheduler_config(shift: float, sampler: Sampler) -> dict[str, Any]:
    """The student's schedule in diffusers, which spaces the steps as its pipelines' `sigmas` say."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": shift,
        "shift_terminal": None,
        "stochastic_sampling": sampler == "stochastic",
        "use_dynamic_shifting": False,
    }


def peft_config(card: Card, modules: list[str], rank: int) -> dict[str, Any]:
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=modules,
        base_model_name_or_path=card.base,
        inference_mode=True,
    ).to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}


def reduce_rank(weights: LoraWeights, rank: int) -> tuple[LoraWeights, Reduction]:
    """Every module at `rank` in half precision, and the relative error of the numbers that are written."""
    smaller, errors, norms = {}, {}, {}
    for name, pair in weights.items():
        (a, b), _ = shrink(pair, rank)
        smaller[name] = pad((a.half(), b.half()), rank)
        norms[name] = change_norm(pair)
        errors[name] = distance(pair, smaller[name])
    relative = {name: errors[name] / norms[name] if norms[name] else 0.0 for name in weights}
    worst = max(relative, key=lambda name: relative[name])
    whole = sum(norm**2 for norm in norms.values()) ** 0.5
    overall = sum(error**2 for error in errors.values()) ** 0.5 / whole if whole else 0.0
    from_rank = max(len(a) for a, _ in weights.values())
    return smaller, Reduction(from_rank, rank, overall, relative[worst], worst)


def preview_names(previews: Sequence[Path | str], recipe: Recipe) -> dict[str, Path]:
    """Preview images by the effect that each is named after.

    Raises:
        UserError: an image is missing, is not an image, is named after no effect, or is not the only one.
    """
    found: dict[str, Path] = {}
    for path in map(Path, previews):
        if not path.is_file() or path.suffix.lower() not in PHOTO_SUFFIXES:
            raise UserError(path, "preview", "is not an image file", f"give {', '.join(PHOTO_SUFFIXES)}")
        if path.stem not in recipe.effects:
            hint = f"name it after one of {', '.join(recipe.effects)}"
            raise UserError(path, "preview", "is named after no effect of this collection", hint)
        if path.stem in found:
            message = f"is a second image of {path.stem}, beside {found[path.stem]}"
            raise UserError(path, "preview", message, "give one image for each effect")
        found[path.stem] = path
    return found
