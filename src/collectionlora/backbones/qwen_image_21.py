"""Qwen-Image-2.1: text and images are one causal sequence, at whose end stands the image that is made.

The photos stand inside the text, and neither ever looks at the noisy image or at its sigma. Their keys and
values are therefore the same in all steps of a trajectory, and are kept after its first one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from collectionlora.backbones.base import Condition, Prompt, Shapes
from collectionlora.backbones.comfyui import Graph, Student, frame, node
from collectionlora.backbones.diffusers_files import read_index
from collectionlora.backbones.diffusers_model import (
    LARGE,
    UNGUIDED,
    DiffusersFamily,
    KnownBase,
    from_tokens,
    to_tokens,
)
from collectionlora.backbones.family import EncoderSize, ExportFacts, Speech
from collectionlora.backbones.qwen_image_edit import TEXT_TOKENS, QwenBackbone
from collectionlora.collection import MANIFEST
from collectionlora.pictures.photos import to_photos
from collectionlora.system.errors import UserError

SIDE_MULTIPLE = 32  # pixels of a slot, where the text encoder has one token and the network 2 x 2 latents
SLOT = 4  # latents
TRANSFORMER = {
    "num_layers": 32,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "in_channels": 64,
    "out_channels": 64,
    "context_in_dim": 4096,
    "axes_dims_rope": [16, 56, 56],
}


@dataclass(frozen=True)
class QwenPrefix:
    """What stands before the noisy image, for samples whose texts have one length.

    Attributes:
        rows: the samples, of a batch.
        tokens: text with an empty token at each slot of an image, `[B, T, D]`.
        slots: True there, `[T]`, on the CPU.
        images: latents as tokens, `[B, N, C]`.
        grids: frames, rows and columns of each image.
        kept: keys and values of the trajectory's first step, in each block.
    """

    rows: Tensor
    tokens: Tensor
    slots: Tensor
    images: Tensor
    grids: list[tuple[int, int, int]]
    kept: Any = None


def grid(latents: Tensor) -> tuple[int, int, int]:
    """Frames, rows and columns of latents `[B, C, H, W]`."""
    return 1, latents.shape[-2], latents.shape[-1]


def find_slots(places: Sequence[int], sizes: Sequence[int], length: int) -> Tensor:
    """Images of `sizes` slots in a text of `length` tokens, each after `places` of them: `[T]`"""
    texts = [after - before for before, after in pairwise([0, *places, length])]
    runs = [False] * texts[0]
    for size, text in zip(sizes, texts[1:], strict=True):
        runs += [True] * size + [False] * text
    return torch.tensor(runs, device="cpu")


class QwenImage21(QwenBackbone):
    """Qwen-Image-2.1, with several reference images."""

    # Text attends to what stands before it.
    masks_attention = True

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], photos: Sequence[Tensor] = ()) -> Prompt:
        rows = []
        for index, text in enumerate(prompts):
            seen = [Image.fromarray(to_photos(photo[index][None])[0]) for photo in photos]
            tokens, _, slots = self.text_pipeline.encode_prompt(text, image=seen or None)
            rows.append(self._without_slots(tokens.cpu(), slots[0].cpu()))
        return Prompt.cat(rows)

    @staticmethod
    def _without_slots(tokens: Tensor, slots: Tensor) -> Prompt:
        """A prompt without the tokens at images, `slots` `[T]`, which the network replaces by latents."""
        starts = slots & ~F.pad(slots[:-1], (1, 0))
        kept = tokens[:, ~slots]
        places = (~slots).cumsum(0)[starts][None] if starts.any() else None
        return Prompt(kept, torch.ones(kept.shape[:2], dtype=torch.bool), places=places)

    def _encode(self, image: Tensor) -> Tensor:
        return super()._encode(F.pad(image, (0, 0, 0, 0, 0, 1), value=1.0))  # a photo is opaque

    def _decode(self, latent: Tensor) -> Tensor:
        return super()._decode(latent)[:, :3]

    def shapes(self, size: tuple[int, int]) -> Shapes:
        config, (rows, columns) = self.network.config, (side // 16 for side in size)
        return Shapes((config.in_channels, rows, columns), (TEXT_TOKENS, config.context_in_dim))

    def prepare(self, condition: Condition) -> list[QwenPrefix]:
        # Padding would move the noisy image away from the text, so each length is a batch of its own.
        lengths = condition.prompt.mask.sum(dim=1)
        groups = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
        return [self._prepare(condition[rows], rows) for rows in groups]

    def _prepare(self, condition: Condition, rows: Tensor) -> QwenPrefix:
        prompt, images = condition.prompt.trim(), (condition.source, *condition.references)
        places = [0] * len(images) if prompt.places is None else prompt.places[0].tolist()
        grids = [grid(image) for image in images]
        slots = find_slots(places, [prod(shape) // SLOT for shape in grids], prompt.mask.shape[1])
        text = self._enter(prompt.tokens)
        tokens = text.new_zeros(len(text), len(slots), text.shape[2])
        tokens[:, ~slots] = text
        latents = self._enter(torch.cat([to_tokens(image) for image in images], dim=1))
        return QwenPrefix(rows, tokens, slots, latents, grids)

    def begin_trajectory(self, prepared: list[QwenPrefix]) -> list[QwenPrefix]:
        from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

        if not self.network.config.causal_condition:
            return prepared
        depth = len(self.network.transformer_blocks)
        return [replace(prefix, kept=QwenImage21KVCache(depth)) for prefix in prepared]

    def velocity(self, x_sigma: Tensor, sigma: Tensor, prepared: list[QwenPrefix]) -> Tensor:
        found = [self._velocity(x_sigma[prefix.rows], sigma[prefix.rows], prefix) for prefix in prepared]
        order = torch.cat([prefix.rows for prefix in prepared]).argsort()
        return torch.cat(found)[order]

    def _velocity(self, x_sigma: Tensor, sigma: Tensor, prefix: QwenPrefix) -> Tensor:
        noisy, shape = self._enter(to_tokens(x_sigma)), grid(x_sigma)
        slots = F.pad(prefix.slots, (0, prod(shape) // SLOT), value=True).expand(len(x_sigma), -1)
        kept = None if torch.is_grad_enabled() else prefix.kept
        mode = None if kept is None else "extract" if kept.get_layer(0).k is None else "cached"
        out = self.network(
            hidden_states=torch.cat([prefix.images, noisy], dim=1),
            timestep=sigma.to(self.device),
            encoder_hidden_states=prefix.tokens,
            img_shapes=[[*prefix.grids, shape]],
            # The network looks at its values, so it has some even on the meta device.
            img_mask=slots if self.device.type == "meta" else slots.to(self.device),
            kv_cache=kept,
            kv_cache_mode=mode,
            return_dict=False,
        )[0]
        return from_tokens(out[:, -noisy.shape[1] :], x_sigma)

    def _num_tokens(self, noise: Tensor) -> int:
        return noise.shape[-2] * noise.shape[-1]

    @cached_property
    def own_sigmas(self) -> list[float] | None:
        """The sigmas that a Turbo checkpoint is sampled at; the known base has none."""
        known = self.family.find_known(self.base)
        return None if known else read_index(self.base).get("sample_sigmas")

    def _space_sigmas(self, num_steps: int) -> Sequence[float]:
        if self.own_sigmas is None:
            return super()._space_sigmas(num_steps)
        if num_steps != len(self.own_sigmas):
            message = f"is {num_steps}, but {self.base} is sampled in {len(self.own_sigmas)} steps"
            raise UserError(MANIFEST, "settings.targets.steps", message, f"write {len(self.own_sigmas)}")
        return self.own_sigmas


def make_workflow(student: Student) -> Graph:
    """ComfyUI's nodes; one of them reads prompt and photo together, and says the size of the image."""
    graph = frame(
        student, "qwen_image_2.1_bf16.safetensors", "qwen_image_2.1_vae_bf16.safetensors", SIDE_MULTIPLE
    )
    del graph["latent"]
    graph["sample"]["inputs"]["latent_image"] = ["positive", 2]
    return {
        **graph,
        "shifted": node("ModelSamplingAuraFlow", model=["lora", 0], shift=student.shift),
        "clip": node("CLIPLoader", clip_name="qwen3vl_8b_bf16.safetensors", type="qwen_image"),
        "positive": node(
            "TextEncodeQwenImage21",
            clip=["clip", 0],
            prompt=student.prompt,
            negative_prompt="",
            vae=["vae", 0],
            resolution=0,  # that of the image
            **{"images.image_1": ["scaled", 0]},
        ),
    }


QWEN_IMAGE_21 = DiffusersFamily(
    name="QwenImage21Pipeline",
    backbone=QwenImage21,
    network_class="QwenImage21Transformer2DModel",
    vae_class="AutoencoderKLQwenImage21",
    lora_roots=("transformer_blocks.",),
    name_part="qwen-image-2.1",
    side_multiple=SIDE_MULTIPLE,
    known={"Qwen/Qwen-Image-2.1": KnownBase(TRANSFORMER, EncoderSize(8_767_123_696, 7_477_161_984))},
    reads_references=True,
    splits_batches=True,
    # Its processor is a Qwen3VLProcessor, whose chat template sets no system before the turn.
    speech=Speech(
        encoder="Qwen3VLForConditionalGeneration",
        processor="processor",
        picture="<|vision_start|><|image_pad|><|vision_end|>",
        turn="<|im_start|>user\n{pictures}{text}<|im_end|>\n<|im_start|>assistant\n",
        ends=("<|im_end|>", "<|endoftext|>"),
    ),
    recommended={
        **LARGE,
        "targets": {"steps": 40, "guidance_scale": 1},
        "distill": UNGUIDED,
    },
    export=ExportFacts(
        architecture="qwen-image-2.1",
        license="other",
        # Its pipeline scales photos to this many pixels: it is to leave them as they are.
        arguments="true_cfg_scale=1.0, output_resolution=(width * height) ** 0.5",
        # ComfyUI has two modules of a block as one, whose halves it knows by this prefix and no other.
        comfyui_prefix="transformer.",
        workflow=make_workflow,
    ),
)
