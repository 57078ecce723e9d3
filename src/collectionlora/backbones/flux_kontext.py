"""FLUX.1 Kontext: one photo, T5 tokens beside one CLIP vector, distilled guidance as an input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from collectionlora.backbones.base import Condition, Prompt, Shapes
from collectionlora.backbones.comfyui import Graph, Student, escape_brackets, frame, node, show_photo
from collectionlora.backbones.diffusers_model import (
    LARGE,
    SIDE_MULTIPLE,
    UNGUIDED,
    DiffusersBackbone,
    DiffusersFamily,
    KnownBase,
    pack,
    unpack,
)
from collectionlora.backbones.family import EncoderSize, ExportFacts

DEV = {
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
DEV_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

MAX_WORDS = 512  # tokens of a prompt, padding included: the network sees it


@dataclass(frozen=True)
class KontextCondition:
    """Prompt, packed photo `[B, N, 4 * C]` and the positions `[N, 3]` of its patches."""

    tokens: Tensor
    pooled: Tensor
    photo: Tensor
    positions: Tensor


def positions(latents: Tensor, image: int) -> Tensor:
    """(image, row, column) of every patch of latents `[B, C, H, W]`, `[N, 3]`; image 0 is the noisy one."""
    rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
    return torch.cartesian_prod(torch.tensor([image]), torch.arange(rows), torch.arange(columns)).float()


class FluxVae(DiffusersBackbone):
    """A base with the VAE of FLUX.1."""

    def _encode(self, image: Tensor) -> Tensor:
        config = self.vae.config
        return (self.vae.encode(image).latent_dist.mode() - config.shift_factor) * config.scaling_factor

    def _decode(self, latent: Tensor) -> Tensor:
        config = self.vae.config
        return self.vae.decode(latent / config.scaling_factor + config.shift_factor).sample


class FluxKontext(FluxVae):
    """FLUX.1 Kontext [dev]."""

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], photos: Sequence[Tensor] = ()) -> Prompt:
        return Prompt.cat([self._encode_text(text) for text in prompts])

    def _encode_text(self, text: str) -> Prompt:
        tokens, pooled, _ = self.text_pipeline.encode_prompt(text)
        # The network was trained with T5's padding in sight: every token counts.
        return Prompt(tokens.cpu(), torch.ones(tokens.shape[:2], dtype=torch.bool), pooled.cpu())

    def shapes(self, size: tuple[int, int]) -> Shapes:
        config, (rows, columns) = self.network.config, (side // 8 for side in size)
        latents = config.in_channels // 4, rows, columns
        return Shapes(latents, (MAX_WORDS, config.joint_attention_dim), config.pooled_projection_dim)

    def prepare(self, condition: Condition) -> KontextCondition:
        if condition.references:
            raise ValueError("FLUX.1 Kontext reads one photo; FLUX.2 and Qwen-Image-Edit-2509 read several")
        assert condition.prompt.pooled is not None
        return KontextCondition(
            self._enter(condition.prompt.tokens),
            self._enter(condition.prompt.pooled),
            self._enter(pack(condition.source)),
            positions(condition.source, image=1).to(self.device),
        )

    def velocity(self, x_sigma: Tensor, sigma: Tensor, prepared: KontextCondition) -> Tensor:
        noisy = self._enter(pack(x_sigma))
        own = positions(x_sigma, image=0).to(self.device)
        out = self.network(
            hidden_states=torch.cat([noisy, prepared.photo], dim=1),
            timestep=sigma.to(self.device),
            guidance=self._guidance(len(x_sigma)),
            pooled_projections=prepared.pooled,
            encoder_hidden_states=prepared.tokens,
            txt_ids=own.new_zeros(prepared.tokens.shape[1], 3),
            img_ids=torch.cat([own, prepared.positions]),
            return_dict=False,
        )[0]
        return unpack(out[:, : noisy.shape[1]], x_sigma)


def make_workflow(student: Student) -> Graph:
    """ComfyUI's nodes. Its shift node takes mu, the logarithm of the shift, here the same at all sizes."""
    encoders = {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors", "type": "flux"}
    mu = math.log(student.shift)
    return {
        **frame(student, "flux1-dev-kontext_fp8_scaled.safetensors", "ae.safetensors", SIDE_MULTIPLE),
        "shifted": node(
            "ModelSamplingFlux",
            model=["lora", 0],
            max_shift=mu,
            base_shift=mu,
            width=student.resolution,
            height=student.resolution,
        ),
        "clip": node("DualCLIPLoader", **encoders),
        # ComfyUI pads to 256 tokens; the network sees the padding, and was trained with more of it.
        "padded": node("T5TokenizerOptions", clip=["clip", 0], min_padding=0, min_length=MAX_WORDS),
        "text": node("CLIPTextEncode", clip=["padded", 0], text=escape_brackets(student.prompt)),
        "reference": show_photo(),
        "positive": node("FluxGuidance", conditioning=["reference", 0], guidance=student.guidance),
    }


FLUX_KONTEXT = DiffusersFamily(
    name="FluxKontextPipeline",
    backbone=FluxKontext,
    network_class="FluxTransformer2DModel",
    vae_class="AutoencoderKL",
    # All 504 linear layers: LoRAs for FLUX in the wild train any of them.
    lora_roots=("",),
    name_part="kontext",
    known={
        "black-forest-labs/FLUX.1-Kontext-dev": KnownBase(
            DEV, EncoderSize(4_885_371_136, 3_708_813_312), DEV_VAE
        )
    },
    recommended={
        **LARGE,
        "model": {**LARGE["model"], "embedded_guidance": 2.5},
        "targets": {"steps": 28, "guidance_scale": 1},
        "distill": UNGUIDED,
    },
    export=ExportFacts(
        architecture="flux-1-kontext-dev",
        license="other",
        arguments="max_area=width * height, _auto_resize=False, guidance_scale={guidance:g}",
        comfyui_prefix="transformer.",
        workflow=make_workflow,
    ),
)
