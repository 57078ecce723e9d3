"""What programs outside need to know of a kind of base: its licence, keys, arguments and nodes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collectionlora.adapters.recipe import Recipe
from collectionlora.backbones import NANO
from collectionlora.exporting.workflows import Graph, flux_kontext, qwen_image_edit, qwen_image_edit_plus


@dataclass(frozen=True)
class Family:
    """One kind of base.

    Attributes:
        architecture: as `modelspec.architecture` spells it.
        license: of the base, and so of what derives from it, as a model card spells it.
        call: arguments of the diffusers pipeline for a student, which takes no guidance; `{guidance}` is
            the input of guidance-distilled bases.
        comfyui_prefix: under which ComfyUI finds every module by its name in diffusers, if it does. Of FLUX.2
            it maps only what FLUX.1 has too and leaves out the rest in silence.
        workflow: makes a ComfyUI workflow for a LoRA file and a prompt, if the base has nodes there.
    """

    architecture: str
    license: str
    call: str
    comfyui_prefix: str | None = None
    workflow: Callable[[str, str, Recipe], Graph] | None = None


SIZE = "width=width, height=height"
QWEN = "apache-2.0", f"{SIZE}, true_cfg_scale=1.0", "diffusion_model."
PIPELINES = {
    "QwenImageEditPipeline": Family("qwen-image-edit", *QWEN, qwen_image_edit),
    "QwenImageEditPlusPipeline": Family("qwen-image-edit-plus", *QWEN, qwen_image_edit_plus),
    "FluxKontextPipeline": Family(
        "flux-1-kontext-dev",
        "other",
        f"{SIZE}, max_area=width * height, _auto_resize=False, guidance_scale={{guidance:g}}",
        "transformer.",
        flux_kontext,
    ),
    "Flux2Pipeline": Family("flux-2-dev", "other", f"{SIZE}, guidance_scale={{guidance:g}}"),
    "Flux2KleinPipeline": Family("flux-2-klein", "other", f"{SIZE}, guidance_scale=1.0"),
}
# By a part of the name on the hub, the more special ones first.
ON_THE_HUB = {
    "qwen-image-edit-25": "QwenImageEditPlusPipeline",
    "qwen-image-edit": "QwenImageEditPipeline",
    "kontext": "FluxKontextPipeline",
    "flux.2-klein": "Flux2KleinPipeline",
    "flux.2": "Flux2Pipeline",
}
UNKNOWN = Family("unknown", "other", SIZE)


def find_family(base: str) -> Family:
    """The family of a base: of a folder by its `model_index.json`, of a name on the hub by the name."""
    if base == NANO:
        return Family("collectionlora-nano", "apache-2.0", "", "diffusion_model.")
    index = Path(base) / "model_index.json"
    if index.is_file():
        return PIPELINES.get(json.loads(index.read_text(encoding="utf-8"))["_class_name"], UNKNOWN)
    names = (pipeline for part, pipeline in ON_THE_HUB.items() if part in base.lower())
    return PIPELINES.get(next(names, ""), UNKNOWN)
