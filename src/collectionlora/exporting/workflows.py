"""ComfyUI workflows in its API format, as `POST /prompt` and the menu's Load take them: nodes by id.

The student re-noises between its steps. In ComfyUI that is the sampler `lcm`, and the scheduler `simple`
takes the sigmas `shift(1 - i/n)` from the table of the shift node: the few-step schedule of `flow.py`.
"""

import math
from typing import Any

from collectionlora.adapters.recipe import Recipe

Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node; an input `["id", 0]` is the first output of another node."""
    return {"class_type": class_type, "inputs": inputs}


def frame(lora_name: str, recipe: Recipe, unet_name: str, vae_name: str) -> Graph:
    """What all families share; `shifted`, `positive`, `negative` and `clip` are left to the family."""
    return {
        "unet": node("UNETLoader", unet_name=unet_name, weight_dtype="default"),
        "lora": node("LoraLoaderModelOnly", model=["unet", 0], lora_name=lora_name, strength_model=1.0),
        "vae": node("VAELoader", vae_name=vae_name),
        "photo": node("LoadImage", image="photo.png"),
        "scaled": node(
            "ImageScaleToTotalPixels",
            image=["photo", 0],
            upscale_method="area",
            megapixels=round(recipe.resolution**2 / 1024**2, 4),
            resolution_steps=16,
        ),
        "latent": node("VAEEncode", pixels=["scaled", 0], vae=["vae", 0]),
        "sample": node(
            "KSampler",
            model=["shifted", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=0,
            steps=recipe.steps,
            cfg=1.0,
            sampler_name="lcm",
            scheduler="simple",
            denoise=1.0,
        ),
        "decoded": node("VAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "saved": node("SaveImage", images=["decoded", 0], filename_prefix="collection"),
        # Without guidance the negative prompt is not read, but the sampler asks for one.
        "negative": node("ConditioningZeroOut", conditioning=["positive", 0]),
    }


def escape_brackets(prompt: str) -> str:
    """A prompt for ComfyUI's tokenizers of CLIP and T5, which take plain brackets for emphasis and drop them.

    Qwen's takes the text as it is.
    """
    return prompt.replace("(", "\\(").replace(")", "\\)")


def qwen_image_edit(lora_name: str, prompt: str, recipe: Recipe) -> Graph:
    """Qwen-Image-Edit: the text encoder sees the photo."""
    names = "qwen_image_edit_bf16.safetensors", "qwen_image_vae.safetensors"
    encoder = "qwen_2.5_vl_7b_fp8_scaled.safetensors"
    return {
        **frame(lora_name, recipe, *names),
        "shifted": node("ModelSamplingAuraFlow", model=["lora", 0], shift=recipe.shift),
        "clip": node("CLIPLoader", clip_name=encoder, type="qwen_image"),
        "positive": node(
            "TextEncodeQwenImageEdit",
            clip=["clip", 0],
            vae=["vae", 0],
            image=["scaled", 0],
            prompt=prompt,
        ),
    }


def qwen_image_edit_plus(lora_name: str, prompt: str, recipe: Recipe) -> Graph:
    """Qwen-Image-Edit-2509 and later, which read several photos."""
    graph = qwen_image_edit(lora_name, prompt, recipe)
    graph["unet"]["inputs"]["unet_name"] = "qwen_image_edit_2509_bf16.safetensors"
    inputs = {"clip": ["clip", 0], "vae": ["vae", 0], "image1": ["scaled", 0], "prompt": prompt}
    return {**graph, "positive": node("TextEncodeQwenImageEditPlus", **inputs)}


def flux_kontext(lora_name: str, prompt: str, recipe: Recipe) -> Graph:
    """FLUX.1 Kontext. Its shift node takes mu, the logarithm of the shift, here the same at all sizes."""
    names = "flux1-dev-kontext_fp8_scaled.safetensors", "ae.safetensors"
    encoders = {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux"}
    mu, guidance = math.log(recipe.shift), recipe.model.embedded_guidance
    return {
        **frame(lora_name, recipe, *names),
        "shifted": node(
            "ModelSamplingFlux",
            model=["lora", 0],
            max_shift=mu,
            base_shift=mu,
            width=recipe.resolution,
            height=recipe.resolution,
        ),
        "clip": node("DualCLIPLoader", **encoders),
        "text": node("CLIPTextEncode", clip=["clip", 0], text=escape_brackets(prompt)),
        "reference": node("ReferenceLatent", conditioning=["text", 0], latent=["latent", 0]),
        "positive": node("FluxGuidance", conditioning=["reference", 0], guidance=guidance),
    }
