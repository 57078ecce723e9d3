"""The models behind the method; this file is the only place that knows their names."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from collectionlora.backbones.base import Backbone
from collectionlora.collection import MANIFEST
from collectionlora.config import ModelSettings
from collectionlora.errors import UserError

if TYPE_CHECKING:
    from collectionlora.backbones.diffusers_model import DiffusersBackbone

NANO = "nano"


def load_backbone(base: str, settings: ModelSettings) -> Backbone:
    """The backbone that `base:` names: `nano`, a folder, or `owner/name[@revision]` on the hub.

    Raises:
        UserError: no such base, or settings that it does not have.
    """
    if base != NANO:
        return diffusers_class(base)[0](base, settings)
    from collectionlora.backbones.nano import NanoBackbone, fastest

    check_nano_settings(settings)
    nano = NanoBackbone.load()
    nano.network.to(*fastest())
    return nano


def base_files(base: str) -> tuple[Path, list[Path]]:
    """The folder that a base is read from, and the files in it.

    Raises:
        UserError: no such base, or it is not on this machine yet.
    """
    if base == NANO:
        from collectionlora.backbones.nano import WEIGHTS

        return WEIGHTS.parent, [WEIGHTS]
    from collectionlora.backbones.diffusers_model import model_files

    return model_files(base)


def check_nano_settings(settings: ModelSettings) -> None:
    """Refuse what the nano base does not have.

    Raises:
        UserError: any setting that is not its default.
    """
    if settings != ModelSettings():
        message = "are for large bases; the nano base is small and takes the dtype that is fastest here"
        raise UserError(MANIFEST, "settings.model", message, "leave them out")


def empty_network(base: str) -> tuple[nn.Module, tuple[str, ...]]:
    """The base's network and its LoRA targets; a large one on the meta device, names and shapes alone.

    Raises:
        UserError: no such base.
    """
    if base == NANO:
        from collectionlora.backbones.nano import NanoBackbone

        nano = NanoBackbone.load()
        return nano.network, nano.lora_targets
    family = diffusers_class(base)[0]
    network = family.empty_network(base)
    return network, family.find_lora_targets(network)


def backbone_without_weights(base: str, settings: ModelSettings, depths: Mapping[str, int]) -> Backbone:
    """The backbone on the meta device; `depths` gives its stacks of blocks other numbers, see `block_stacks`.

    Raises:
        UserError: no such base, or settings that it does not have.
    """
    if base == NANO:
        from collectionlora.backbones.nano import NanoBackbone

        check_nano_settings(settings)
        with torch.device("meta"):
            return NanoBackbone()
    family = diffusers_class(base)[0]
    return family.without_weights(base, {**family.transformer_config(base), **depths}, settings)


def block_stacks(base: str) -> dict[str, int]:
    """Numbers of like blocks, by their names in the transformer's config; none for the shallow nano.

    Raises:
        UserError: no such base.
    """
    if base == NANO:
        return {}
    config = diffusers_class(base)[0].transformer_config(base)
    return {name: config[name] for name in ("num_layers", "num_single_layers") if name in config}


def reads_references(base: str) -> bool:
    """Whether a base reads reference images beside the photo.

    Raises:
        UserError: no such base.
    """
    return base != NANO and diffusers_class(base)[0].reads_references


def recommended_settings(base: str) -> dict[str, dict[str, Any]]:
    """Settings in which a base differs from the paper's recipe; they lie under the manifest's own.

    Raises:
        UserError: no such base.
    """
    if base == NANO:
        from collectionlora.backbones.nano import RECOMMENDED

        return RECOMMENDED
    family, pipeline_config = diffusers_class(base)
    return family.recommended_settings(pipeline_config)


def diffusers_class(base: str) -> tuple[type["DiffusersBackbone"], dict[str, Any]]:
    """The class that adapts a diffusers pipeline, and the pipeline's `model_index.json`.

    Raises:
        UserError: diffusers is not installed, there is no such model, or its pipeline is not supported.
    """
    try:
        from collectionlora.backbones import diffusers_model, flux2, flux_kontext, qwen_image_edit
    except ImportError as error:
        mend = "write nano, or install it: pip install 'collectionlora[diffusers]'"
        raise UserError(MANIFEST, "base", f"{base!r} needs diffusers ({error})", mend) from None

    families: dict[str, type[DiffusersBackbone]] = {
        "QwenImageEditPlusPipeline": qwen_image_edit.QwenImageEditPlus,
        "QwenImageEditPipeline": qwen_image_edit.QwenImageEdit,
        "FluxKontextPipeline": flux_kontext.FluxKontext,
        "Flux2Pipeline": flux2.Flux2,
        "Flux2KleinPipeline": flux2.Flux2Klein,
    }
    pipeline_config = diffusers_model.read_pipeline_config(base)
    name = str(pipeline_config.get("_class_name"))  # a custom pipeline's is a pair, and never loaded
    if name not in families:
        mend = f"use nano or a pipeline of {', '.join(families)}"
        raise UserError(MANIFEST, "base", f"{base!r} is a {name}, which is not supported", mend)
    return families[name], pipeline_config
