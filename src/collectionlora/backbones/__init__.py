"""The bases behind the method: each in a file of its own with all its facts, found here by name."""

from pathlib import Path

from collectionlora.backbones.base import Backbone
from collectionlora.backbones.diffusers_files import INDEX, read_index
from collectionlora.backbones.diffusers_model import DiffusersFamily
from collectionlora.backbones.family import Family
from collectionlora.backbones.flux2 import FLUX_2, FLUX_2_KLEIN
from collectionlora.backbones.flux_kontext import FLUX_KONTEXT
from collectionlora.backbones.longcat_image import LONGCAT_IMAGE_EDIT
from collectionlora.backbones.nano import NANO
from collectionlora.backbones.qwen_image_21 import QWEN_IMAGE_21
from collectionlora.backbones.qwen_image_edit import QWEN_IMAGE_EDIT, QWEN_IMAGE_EDIT_PLUS
from collectionlora.collection import MANIFEST
from collectionlora.config import ModelSettings
from collectionlora.system.errors import UserError

PIPELINES: tuple[DiffusersFamily, ...] = (
    QWEN_IMAGE_EDIT_PLUS,
    QWEN_IMAGE_EDIT,
    QWEN_IMAGE_21,
    LONGCAT_IMAGE_EDIT,
    FLUX_KONTEXT,
    FLUX_2,
    FLUX_2_KLEIN,
)
FAMILIES: tuple[Family, ...] = (NANO, *PIPELINES)


def family_of(base: str) -> Family:
    """The family of what `base:` names: `nano`, a folder, or `owner/name[@revision]` on the hub.

    Of a name on the hub that no family knows `model_index.json` is fetched.

    Raises:
        UserError: there is no such base, or its pipeline is not supported.
    """
    if named := find_named(base):
        return named
    name = str(read_index(base).get("_class_name"))  # a custom pipeline's is a pair, and never loaded
    for family in PIPELINES:
        if family.name == name:
            return family
    hint = f"use nano or a pipeline of {', '.join(family.name for family in PIPELINES)}"
    raise UserError(MANIFEST, "base", f"{base!r} is a {name}, which is not supported", hint)


def find_named(base: str) -> Family | None:
    """The family of `nano` or of a known name on the hub."""
    if base == NANO.name:
        return NANO
    return next((family for family in PIPELINES if family.find_known(base)), None)


def list_files(base: str) -> tuple[Path, list[Path]]:
    """The folder on this machine that a base is read from, and the files in it; asks no network.

    Raises:
        UserError: the base is not on this machine.
    """
    # All pipelines of diffusers lie in folders of one kind.
    return (find_named(base) or PIPELINES[0]).list_files(base)


def find_base(base: str) -> str:
    """A base as a manifest names it: a folder by its absolute path, so that it is found from everywhere.

    Raises:
        UserError: it is written as a path, and there is no such folder.
    """
    if find_named(base):
        return base
    if Path(base).is_dir():
        return str(Path(base).resolve())
    if base.startswith((".", "/", "~")):
        hint = "give the folder of a diffusers pipeline, or owner/name on the hub"
        raise UserError("", "--base", f"there is no folder {base}", hint)
    return base


def guess_family(base: str) -> Family | None:
    """The family of a base without network or diffusers; None if nothing tells.

    Without a folder on this machine a part of the name must do, so nothing is loaded by this answer.
    """
    if (Path(base) / INDEX).is_file():
        try:
            return family_of(base)
        except UserError:
            return None
    alike = [family for family in PIPELINES if family.name_part in base.lower()]
    return find_named(base) or max(alike, key=lambda family: len(family.name_part), default=None)


def load_backbone(base: str, settings: ModelSettings) -> Backbone:
    """The model that `base:` names.

    Raises:
        UserError: no such base, or settings that it does not have.
    """
    return family_of(base).load(base, settings)
