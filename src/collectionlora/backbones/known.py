"""True configurations of public bases, so that a plan needs no download."""

from pathlib import Path
from typing import Any, NamedTuple

QWEN = {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 64,
    "out_channels": 16,
    "joint_attention_dim": 3584,
    "axes_dims_rope": [16, 56, 56],
}
KONTEXT = {
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}
FLUX2 = {
    "num_layers": 8,
    "num_single_layers": 48,
    "num_attention_heads": 48,
    "attention_head_dim": 128,
    "in_channels": 128,
    "joint_attention_dim": 15360,
    "guidance_embeds": True,
    "axes_dims_rope": [32, 32, 32, 32],
}


class Known(NamedTuple):
    """Class of the pipeline, config of the transformer, parameters of the text encoders."""

    pipeline: str
    transformer: dict[str, Any]
    encoder_parameters: int


KNOWN = {
    "Qwen/Qwen-Image-Edit": Known("QwenImageEditPipeline", QWEN, 8_292_166_656),
    "Qwen/Qwen-Image-Edit-2509": Known("QwenImageEditPlusPipeline", QWEN, 8_292_166_656),
    "black-forest-labs/FLUX.1-Kontext-dev": Known("FluxKontextPipeline", KONTEXT, 4_885_371_136),
    "black-forest-labs/FLUX.2-dev": Known("Flux2Pipeline", FLUX2, 24_011_361_280),
}


def find_known(base: str) -> Known | None:
    """The facts of a name on the hub, of any revision; a folder speaks for itself."""
    return None if Path(base).is_dir() else KNOWN.get(base.partition("@")[0])
