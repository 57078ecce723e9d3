"""ComfyUI workflows in its API format, as `POST /prompt` and the menu's Load take them: nodes by id.

A student that puts fresh noise in after each step has the sampler `lcm` in ComfyUI. The scheduler `simple`
takes the sigmas `shift(1 - i/n)` from the table of the shift node: the few-step schedule of `flow.py`.
"""

import math
from dataclasses import dataclass
from typing import Any

from collectionlora.config import Sampler

Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Student:
    """What a workflow shows of an exported adapter.

    Attributes:
        file: the adapter's, in `models/loras`.
        prompt: of one of its effects.
        base: its name as the manifest gave it.
        resolution: side of a square photo in pixels.
        sampler: its name in ComfyUI.
        guidance: the guidance input of guidance-distilled bases.
    """

    file: str
    prompt: str
    base: str
    steps: int
    shift: float
    sampler: str
    resolution: int
    guidance: float


MIN_SIDE = 103  # of a square photo, below which `ImageScaleToTotalPixels` takes no number
COMFYUI_SAMPLERS: dict[Sampler, str] = {"stochastic": "lcm", "euler": "euler"}


def escape_brackets(prompt: str) -> str:
    """A prompt for ComfyUI's tokenizers of CLIP and T5, which take plain brackets for emphasis and drop them.

    Qwen's takes the text as it is.
    """
    return prompt.replace("(", "\\(").replace(")", "\\)")


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node; an input `["id", 0]` is the first output of another node."""
    return {"class_type": class_type, "inputs": inputs}


def scale_photo(resolution: int, side_multiple: int) -> Graph:
    """The photo at its working size: the node rounds both sides as `pictures.sizes` does.

    It takes no size below `MIN_SIDE`: a smaller one is made so many times as large, and divided by that.
    """
    times = math.ceil(MIN_SIDE / resolution)
    large = node(
        "ImageScaleToTotalPixels",
        image=["photo", 0],
        upscale_method="lanczos",
        megapixels=(resolution * times / 1024) ** 2,
        resolution_steps=side_multiple * times,
    )
    if times == 1:
        return {"scaled": large}
    small = node("ImageScaleBy", image=["large", 0], upscale_method="lanczos", scale_by=1 / times)
    return {"large": large, "scaled": small}


def show_photo() -> dict[str, Any]:
    """The node that puts the photo beside the prompt of the node `text`, at the size of the image.

    The nodes that read prompt and photo together would encode the photo at a million pixels.
    """
    return node("ReferenceLatent", conditioning=["text", 0], latent=["latent", 0])


def frame(student: Student, unet_name: str, vae_name: str, side_multiple: int) -> Graph:
    """What all families share; `shifted`, `positive` and `clip` are left to the family."""
    return {
        "unet": node("UNETLoader", unet_name=unet_name, weight_dtype="default"),
        "lora": node("LoraLoaderModelOnly", model=["unet", 0], lora_name=student.file, strength_model=1.0),
        "vae": node("VAELoader", vae_name=vae_name),
        "photo": node("LoadImage", image="photo.png"),
        **scale_photo(student.resolution, side_multiple),
        "latent": node("VAEEncode", pixels=["scaled", 0], vae=["vae", 0]),
        "sample": node(
            "KSampler",
            model=["shifted", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=0,
            steps=student.steps,
            cfg=1.0,
            sampler_name=student.sampler,
            scheduler="simple",
            denoise=1.0,
        ),
        "decoded": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "saved": node("SaveImage", images=["decoded", 0], filename_prefix="collection"),
        # Without guidance the negative prompt is not read, but the sampler asks for one.
        "negative": node("ConditioningZeroOut", conditioning=["positive", 0]),
    }
