"""FLUX.2: [dev] with distilled guidance as an input, and Klein without; several reference images.

The VAE's patches of 2 x 2 are latents of their own here, `[B, 128, height / 16, width / 16]`, normalised by
its running statistics: one latent position is one token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Pipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from collectionlora.backbones.base import Condition, Prompt, Shapes
from collectionlora.backbones.diffusers_model import LARGE, DiffusersBackbone


@dataclass(frozen=True)
class Flux2Condition:
    """Prompt and images as tokens `[B, N, C]`, with the positions `[1, N, 4]` of both."""

    tokens: Tensor
    token_positions: Tensor
    images: Tensor
    image_positions: Tensor


def to_tokens(latents: Tensor) -> Tensor:
    """Latents `[B, C, H, W]` to `[B, H * W, C]`."""
    return latents.flatten(2).transpose(1, 2)


class Flux2(DiffusersBackbone):
    """FLUX.2 [dev]."""

    pipeline_class = Flux2Pipeline
    network_class = Flux2Transformer2DModel
    vae_class = AutoencoderKLFlux2
    reads_references = True
    lora_roots = ("transformer_blocks.", "single_transformer_blocks.")

    @classmethod
    def recommended_settings(cls, pipeline_config: dict[str, Any]) -> dict[str, dict[str, Any]]:
        model = {**LARGE["model"], "embedded_guidance": 4.0}
        return {**LARGE, "model": model, "targets": {"steps": 50, "guidance_scale": 1}}

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

    def shapes(self, resolution: int) -> Shapes:
        config, side = self.network.config, resolution // 16
        return Shapes((config.in_channels, side, side), (512, config.joint_attention_dim))

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
        return out[:, : noisy.shape[1]].transpose(1, 2).reshape(x_sigma.shape).to(x_sigma)

    def _num_tokens(self, noise: Tensor) -> int:
        return noise.shape[-2] * noise.shape[-1]

    def _shift_exponent(self, num_tokens: int, num_steps: int) -> float:
        return compute_empirical_mu(num_tokens, num_steps)


class Flux2Klein(Flux2):
    """FLUX.2 Klein: the base with guidance proper, or the step-distilled one without."""

    pipeline_class = Flux2KleinPipeline

    @classmethod
    def recommended_settings(cls, pipeline_config: dict[str, Any]) -> dict[str, dict[str, Any]]:
        distilled = pipeline_config.get("is_distilled", False)
        targets = {"steps": 4, "guidance_scale": 1} if distilled else {"steps": 50, "guidance_scale": 4}
        return {**LARGE, "targets": targets}
