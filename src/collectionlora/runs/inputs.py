"""What a run was made from: `inputs.json` in its folder, the SHA-256 of every file that it reads."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from collectionlora.adapters.alpha import lora_files
from collectionlora.backbones import family_of
from collectionlora.collection import MANIFEST, PROMPTS, Collection, Effect
from collectionlora.system.files import fingerprint, sha256_once, write_json
from collectionlora.system.version import __version__

INPUTS = "inputs.json"


def hashes(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 by path; relative to `folder` where it lies there."""
    unique = sorted(set(paths))
    with ThreadPoolExecutor() as pool:
        found = pool.map(sha256_once, unique)
    names = [p.relative_to(folder) if p.is_relative_to(folder) else p for p in unique]
    return {name.as_posix(): digest for name, digest in zip(names, found, strict=True)}


def teaching_inputs(collection: Collection, effect: Effect) -> list[Path]:
    """What the training of an effect LoRA reads of a collection, beside the manifest.

    Raises:
        UserError: image pairs are missing or do not match.
    """
    return [*chain.from_iterable(collection.pair_paths(effect)), *collection.reference_paths(effect)]


def distillation_inputs(collection: Collection) -> list[Path]:
    """What a distillation reads of a collection, beside the manifest.

    Raises:
        UserError: a folder or file of the manifest is missing.
    """
    paths = [collection.general_file(), *collection.general_photo_paths()]
    for effect in collection.effects:
        paths += [*lora_files(collection.teacher_path(effect)), *collection.photo_paths(effect)]
        paths += collection.reference_paths(effect)
    written = collection.folder / PROMPTS
    return [*paths, written] if written.exists() else paths


def data_facts(collection: Collection, student_prompts: Mapping[str, str]) -> dict[str, str]:
    """What tells the files and prompts of a distillation from others, by name.

    Args:
        student_prompts: by effect, as far as they are known.

    Raises:
        UserError: a folder or file of the manifest is missing.
    """
    facts = {f"student prompt of {name}": prompt for name, prompt in student_prompts.items()}
    for effect in collection.effects:
        files = [*lora_files(collection.teacher_path(effect)), *collection.photo_paths(effect)]
        facts[f"teacher prompt of {effect.name}"] = effect.teacher_prompt
        facts[f"files of {effect.name}"] = fingerprint(*files, *collection.reference_paths(effect))
    general = collection.general_file(), *collection.general_photo_paths()
    return facts | {"files of general": fingerprint(*general)}


def record_inputs(folder: Path, collection: Collection, paths: Iterable[Path]) -> None:
    """Write `folder/inputs.json`: hashes of the manifest, of `paths` and of the base's files.

    The base's own folder is named too: of a model from the hub that is the commit.
    """
    name = collection.manifest.base
    base_folder, files = family_of(name).list_files(name)
    base = {"name": name, "folder": base_folder.name, "files": hashes(base_folder, files)}
    own = hashes(collection.folder, [collection.folder / MANIFEST, *paths])
    write_json(folder / INPUTS, {"version": __version__, "base": base, "files": own})
