"""FLUX.2: [dev] with distilled guidance as an input, and Klein without; several reference images.

The VAE's patches of 2 x 2 are latents of their own here, `[B, 128, height / 16, width / 16]`, normalised by
its running statistics: one latent position is one token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from collectionlora.backbones.base import Condition, Prompt, Shapes
from collectionlora.backbones.comfyui import Graph, Student, frame, node, show_photo
from collectionlora.backbones.diffusers_files import read_index
from collectionlora.backbones.diffusers_model import (
    LARGE,
    SIDE_MULTIPLE,
    UNGUIDED,
    DiffusersBackbone,
    DiffusersFamily,
    KnownBase,
    from_tokens,
    to_tokens,
)
from collectionlora.backbones.family import EncoderSize, ExportFacts, SectionValues, Speech

# What ComfyUI knows by the names of Black Forest Labs' own code alone.
COMFYUI_NAMES = {
    "time_guidance_embed.timestep_embedder.linear_1": "diffusion_model.time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "diffusion_model.time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "diffusion_model.guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "diffusion_model.guidance_in.out_layer",
    "double_stream_modulation_img.linear": "diffusion_model.double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "diffusion_model.double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "diffusion_model.single_stream_modulation.lin",
}
DEV = {
    "num_layers": 8,
    "num_single_layers": 48,
    "num_attention_heads": 48,
    "attention_head_dim": 128,
    "in_channels": 128,
    "joint_attention_dim": 15360,
    "guidance_embeds": True,
    "axes_dims_rope": [32, 32, 32, 32],
}
KLEIN_4B = {
    **DEV,
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
KLEIN_9B = {
    **KLEIN_4B,
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
}
# Klein's text encoders.
QWEN3_4B = EncoderSize(4_022_468_096, 3_633_315_840)
QWEN3_8B = EncoderSize(8_190_735_360, 6_945_767_424)


@dataclass(frozen=True)
class Flux2Condition:
    """Prompt and images as tokens `[B, N, C]`, with the positions `[1, N, 4]` of both."""

    tokens: Tensor
    token_positions: Tensor
    images: Tensor
    image_positions: Tensor


class Flux2(DiffusersBackbone):
    """FLUX.2 [dev] and Klein."""

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], photos: Sequence[Tensor] = ()) -> Prompt:
        return Prompt.cat([self._encode_text(text) for text in prompts])

    def _encode_text(self, text: str) -> Prompt:
        tokens, _ = self.text_pipeline.encode_prompt(text)
        # The network reads the padding too: every token counts.
        return Prompt(tokens.cpu(), torch.ones(tokens.shape[:2], dtype=torch.bool))

    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each latent channel, `[1, C, 1, 1]`."""
        norm, epsilon = self.vae.bn, self.vae.config.batch_norm_eps
        return norm.running_mean.view(1, -1, 1, 1), (norm.running_var + epsilon).sqrt().view(1, -1, 1, 1)

    def _encode(self, image: Tensor) -> Tensor:
        mean, std = self._scale()
        return (F.pixel_unshuffle(self.vae.encode(image).latent_dist.mode(), 2) - mean) / std

    def _decode(self, latent: Tensor) -> Tensor:
        mean, std = self._scale()
        return self.vae.decode(F.pixel_shuffle(latent * std + mean, 2)).sample

    def shapes(self, size: tuple[int, int]) -> Shapes:
        config, (rows, columns) = self.network.config, (side // 16 for side in size)
        return Shapes((config.in_channels, rows, columns), (512, config.joint_attention_dim))

    def prepare(self, condition: Condition) -> Flux2Condition:
        images = [condition.source, *condition.references]
        return Flux2Condition(
            self._enter(condition.prompt.tokens),
            self.pipeline_class._prepare_text_ids(condition.prompt.tokens[:1]).to(self.device),
            self._enter(torch.cat([to_tokens(image) for image in images], dim=1)),
            self.pipeline_class._prepare_image_ids([image[:1] for image in images]).to(self.device),
        )

    def velocity(self, x_sigma: Tensor, sigma: Tensor, prepared: Flux2Condition) -> Tensor:
        noisy = self._enter(to_tokens(x_sigma))
        own = self.pipeline_class._prepare_latent_ids(x_sigma[:1]).to(self.device)
        out = self.network(
            hidden_states=torch.cat([noisy, prepared.images], dim=1),
            timestep=sigma.to(self.device),
            guidance=self._guidance(len(x_sigma)),
            encoder_hidden_states=prepared.tokens,
            txt_ids=prepared.token_positions,
            img_ids=torch.cat([own, prepared.image_positions], dim=1),
            return_dict=False,
        )[0]
        return from_tokens(out[:, : noisy.shape[1]], x_sigma)

    def _num_tokens(self, noise: Tensor) -> int:
        return noise.shape[-2] * noise.shape[-1]

    def _shift_exponent(self, num_tokens: int, num_steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return compute_empirical_mu(num_tokens, num_steps)


class KleinFamily(DiffusersFamily):
    """FLUX.2 Klein: the base with guidance proper, or the step-distilled one without."""

    def recommended_settings(self, base: str) -> SectionValues:
        known = self.find_known(base)
        distilled = known.is_distilled if known else read_index(base).get("is_distilled", False)
        unguided = {"targets": {"steps": 4, "guidance_scale": 1}, "distill": UNGUIDED}
        return {**LARGE, **unguided} if distilled else self.recommended


def make_graph(student: Student, file: str, encoder: str) -> Graph:
    """ComfyUI's nodes over the base's `file`; its tokenizers of these encoders take brackets as they are."""
    return {
        **frame(student, file, "flux2-vae.safetensors", SIDE_MULTIPLE),
        "shifted": node("ModelSamplingAuraFlow", model=["lora", 0], shift=student.shift),
        "clip": node("CLIPLoader", clip_name=encoder, type="flux2"),
        "text": node("CLIPTextEncode", clip=["clip", 0], text=student.prompt),
        "positive": show_photo(),
    }


def make_workflow(student: Student) -> Graph:
    """ComfyUI's nodes for FLUX.2 [dev]."""
    graph = make_graph(student, "flux2_dev_fp8mixed.safetensors", "mistral_3_small_flux2_bf16.safetensors")
    guided = node("FluxGuidance", conditioning=["reference", 0], guidance=student.guidance)
    return {**graph, "reference": graph["positive"], "positive": guided}


def make_klein_workflow(student: Student) -> Graph:
    """ComfyUI's nodes for FLUX.2 Klein, whose files are named like its bases on the hub."""
    name = Path(student.base.partition("@")[0]).name.lower()
    size = "9b" if "9b" in name else "4b"
    kind = "base-" if "base" in name else ""
    encoder = {"4b": "qwen_3_4b.safetensors", "9b": "qwen_3_8b_fp8mixed.safetensors"}[size]
    return make_graph(student, f"flux-2-klein-{kind}{size}.safetensors", encoder)


# Its pipeline makes photos of more than a million pixels smaller, which some working sizes have.
SETUP = "pipe.image_processor._resize_to_target_area = lambda image, *_: image"
FLUX_2 = DiffusersFamily(
    name="Flux2Pipeline",
    backbone=Flux2,
    network_class="Flux2Transformer2DModel",
    vae_class="AutoencoderKLFlux2",
    lora_roots=("",),
    name_part="flux.2",
    known={"black-forest-labs/FLUX.2-dev": KnownBase(DEV, EncoderSize(24_011_361_280, 22_632_464_384))},
    reads_references=True,
    # Its tokenizer is a PixtralProcessor; [klein]'s encoder is a Qwen3, which does not see.
    speech=Speech(
        encoder="Mistral3ForConditionalGeneration",
        processor="tokenizer",
        picture="[IMG]",
        turn="<s>[INST]{pictures}{text}[/INST]",
        ends=("</s>",),
    ),
    recommended={
        **LARGE,
        "model": {**LARGE["model"], "embedded_guidance": 4.0},
        "targets": {"steps": 50, "guidance_scale": 1},
        "distill": UNGUIDED,
    },
    export=ExportFacts(
        architecture="flux-2-dev",
        license="other",
        arguments="guidance_scale={guidance:g}",
        setup=SETUP,
        comfyui_prefix="transformer.",
        comfyui_names=COMFYUI_NAMES,
        workflow=make_workflow,
    ),
)
FLUX_2_KLEIN = KleinFamily(
    name="Flux2KleinPipeline",
    backbone=Flux2,
    network_class="Flux2Transformer2DModel",
    vae_class="AutoencoderKLFlux2",
    lora_roots=("",),
    name_part="flux.2-klein",
    known={
        "black-forest-labs/FLUX.2-klein-base-4B": KnownBase(KLEIN_4B, QWEN3_4B),
        "black-forest-labs/FLUX.2-klein-base-9B": KnownBase(KLEIN_9B, QWEN3_8B),
        "black-forest-labs/FLUX.2-klein-4B": KnownBase(KLEIN_4B, QWEN3_4B, is_distilled=True),
        "black-forest-labs/FLUX.2-klein-9B": KnownBase(KLEIN_9B, QWEN3_8B, is_distilled=True),
    },
    reads_references=True,
    recommended={**LARGE, "targets": {"steps": 50, "guidance_scale": 4}},
    export=ExportFacts(
        architecture="flux-2-klein",
        license="other",
        arguments="guidance_scale=1.0",
        setup=SETUP,
        comfyui_prefix="transformer.",
        comfyui_names=COMFYUI_NAMES,
        workflow=make_klein_workflow,
    ),
)
