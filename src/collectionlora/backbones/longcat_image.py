"""LongCat-Image-Edit: one photo, seen by the text encoder at half its size; the VAE of FLUX.1."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from collectionlora.backbones.base import Condition, Prompt, Shapes
from collectionlora.backbones.diffusers_model import LARGE, DiffusersFamily, KnownBase, pack, unpack
from collectionlora.backbones.family import EncoderSize, ExportFacts
from collectionlora.backbones.flux_kontext import DEV_VAE, FluxVae, positions
from collectionlora.backbones.qwen_image_edit import QWEN_25_VL
from collectionlora.pictures.photos import to_photos
from collectionlora.system.errors import UserError, quote

PROMPT_TOKENS = 512
TEXT_TOKENS = PROMPT_TOKENS + 2  # padding counts, and so do the marks around the photo
TRANSFORMER = {
    "num_layers": 10,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "axes_dims_rope": [16, 56, 56],
}
# Its pipeline takes no size: it makes one of a million pixels.
SETUP = """\
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit

pipeline_longcat_image_edit.calculate_dimensions = lambda *_: (width, height)"""


@dataclass(frozen=True)
class LongCatCondition:
    """Prompt and packed photo `[B, N, 4 * C]`, with the positions `[T, 3]` and `[N, 3]` of both."""

    tokens: Tensor
    token_positions: Tensor
    photo: Tensor
    photo_positions: Tensor


class LongCatImageEdit(FluxVae):
    """LongCat-Image-Edit."""

    prompts_see_photos = True

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], photos: Sequence[Tensor] = ()) -> Prompt:
        # Its template holds a photo: texts alone are read beside a blank one.
        photo = photos[0] if photos else torch.ones(len(prompts), 3, 64, 64)
        seen = [self._as_seen(one) for one in photo]
        return Prompt.cat([self._encode_text(text, one) for text, one in zip(prompts, seen, strict=True)])

    def _as_seen(self, photo: Tensor) -> Image.Image:
        """A photo `[3, height, width]` in [0, 1] at half its size."""
        image = Image.fromarray(to_photos(photo[None])[0])
        return self.text_pipeline.image_processor.resize(image, image.height // 2, image.width // 2)

    def _encode_text(self, text: str, photo: Image.Image) -> Prompt:
        self._check_length(text)
        tokens, _ = self.text_pipeline.encode_prompt([text], image=photo)
        # The network reads the padding too: every token counts.
        return Prompt(tokens.cpu(), torch.ones(tokens.shape[:2], dtype=torch.bool))

    def _check_length(self, text: str) -> None:
        """Refuse a prompt that the pipeline would have to cut, at which it fails.

        Raises:
            UserError: the prompt has more than `PROMPT_TOKENS` tokens.
        """
        from diffusers.pipelines.longcat_image.pipeline_longcat_image_edit import split_quotation

        # Quoted text is read letter by letter.
        pieces = [
            piece for words, quoted in split_quotation(text) for piece in (words if quoted else [words])
        ]
        read = self.text_pipeline.tokenizer
        count = sum(len(read(piece, add_special_tokens=False)["input_ids"]) for piece in pieces)
        if count > PROMPT_TOKENS:
            message = f"{quote(text)} has {count} tokens, of which the base reads {PROMPT_TOKENS}"
            raise UserError("", "prompt", message, "write a shorter one")

    def shapes(self, size: tuple[int, int]) -> Shapes:
        config, (rows, columns) = self.network.config, (side // 8 for side in size)
        photo = round(size[0] / 56) * round(size[1] / 56)  # at half its size one token for 28 x 28 pixels
        latents = config.in_channels // 4, rows, columns
        return Shapes(latents, (TEXT_TOKENS + photo, config.joint_attention_dim))

    def prepare(self, condition: Condition) -> LongCatCondition:
        if condition.references:
            raise ValueError("LongCat-Image-Edit reads one photo; FLUX.2 and Qwen-Image-2.1 read several")
        prompt = condition.prompt.trim()
        assert prompt.mask.all(), "photos of one batch have one size, and so have their prompts"
        length = prompt.mask.shape[1]
        along = torch.arange(length, device=self.device).float()
        return LongCatCondition(
            self._enter(prompt.tokens),
            torch.stack([torch.zeros_like(along), along, along], dim=1),
            self._enter(pack(condition.source)),
            self._positions(condition.source, 2, length),
        )

    def _positions(self, latents: Tensor, image: int, length: int) -> Tensor:
        """(image, row, column) of every patch of latents behind a prompt of `length` tokens, `[N, 3]`."""
        behind = torch.tensor([0, length, length])
        return (positions(latents, image) + behind).to(self.device)

    def velocity(self, x_sigma: Tensor, sigma: Tensor, prepared: LongCatCondition) -> Tensor:
        noisy = self._enter(pack(x_sigma))
        own = self._positions(x_sigma, 1, len(prepared.token_positions))
        out = self.network(
            hidden_states=torch.cat([noisy, prepared.photo], dim=1),
            timestep=sigma.to(self.device),
            encoder_hidden_states=prepared.tokens,
            txt_ids=prepared.token_positions,
            img_ids=torch.cat([own, prepared.photo_positions]),
            return_dict=False,
        )[0]
        return unpack(out[:, : noisy.shape[1]], x_sigma)


# No prefix and no workflow for ComfyUI: it has LongCat-Image, and no text encoder's node that sees the photo.
LONGCAT_IMAGE_EDIT = DiffusersFamily(
    name="LongCatImageEditPipeline",
    backbone=LongCatImageEdit,
    network_class="LongCatImageTransformer2DModel",
    vae_class="AutoencoderKL",
    lora_roots=("transformer_blocks.", "single_transformer_blocks."),
    name_part="longcat-image-edit",
    known={
        "meituan-longcat/LongCat-Image-Edit": KnownBase(
            TRANSFORMER, EncoderSize(8_292_166_656, 7_155_253_248), DEV_VAE
        )
    },
    speech=replace(QWEN_25_VL, processor="text_processor"),
    recommended={**LARGE, "targets": {"steps": 50, "guidance_scale": 4.5}},
    export=ExportFacts(
        architecture="longcat-image-edit",
        license="apache-2.0",
        arguments="guidance_scale=1.0",
        size_arguments="",
        # Its pipeline has no loader of LoRAs, its transformer has one.
        lora_loader='pipe.transformer.load_lora_adapter(folder, prefix="transformer", weight_name=LORA)',
        setup=SETUP,
    ),
)
