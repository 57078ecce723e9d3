"""What the editing models of diffusers share: loading by parts, the border of device and dtype, the schedule.

A model is a folder as `save_pretrained` writes it, or `owner/name` on the Hugging Face Hub, with `@revision`
behind it to pin a commit, tag or branch. Choices made here:

- Transformer, VAE and text encoders are loaded when they are first needed, and the last two can be released:
  training reads caches. Weights are read from safetensors only, and no code that comes with them is run.
- Prompts are encoded and positions are made by the pipeline's own functions, so that a model reads here what
  it reads there.
- Latents outside are float32 on the CPU. They are small; the network's device and dtype end at this border.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from huggingface_hub import snapshot_download
from torch import Tensor, nn

from collectionlora.backbones.base import Backbone, Condition, free_memory
from collectionlora.backbones.known import find_known
from collectionlora.backbones.quantization import quantize
from collectionlora.collection import MANIFEST
from collectionlora.config import ModelSettings
from collectionlora.objectives import guided
from collectionlora.system.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Of all images of a forward: one edit of 1024 x 1024 pixels, its noisy image and its photo. Such a batch
# keeps a large GPU busy; a larger one needs memory in proportion and is not faster.
MAX_TOKENS = 2 * (1024 // 16) ** 2
# What a base of billions of parameters asks for, beside what its own file adds; the paper's ranks.
LARGE: dict[str, dict[str, Any]] = {
    "model": {"dtype": "bfloat16", "gradient_checkpointing": True},
    "data": {"resolution": 1024},
    "student": {"rank": 128},
    "critic": {"rank": 128},
    "distill": {"ema_on_host": True},
    # An effect LoRA of such a base takes a few thousand photos to learn, one at a time.
    "teach": {"steps": 2000, "batch_size": 1},
}


def locate(base: str) -> dict[str, Any]:
    """`base` as the arguments of `from_pretrained`: a folder, or else `owner/name[@revision]` on the hub."""
    if Path(base).is_dir():
        return {"pretrained_model_name_or_path": base}
    name, _, revision = base.partition("@")
    return {"pretrained_model_name_or_path": name, "revision": revision or None}


@contextmanager
def opening(base: str) -> Iterator[None]:
    """Files of a model are read inside the block.

    Raises:
        UserError: no such folder or model, a part is missing, or its weights are not safetensors.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "give a diffusers pipeline in safetensors: its folder, or owner/name@revision on the hub"
        raise UserError(MANIFEST, "base", f"{base!r} cannot be opened ({reason})", hint) from error


def read_pipeline_config(base: str) -> dict[str, Any]:
    """The content of a model's `model_index.json`.

    Raises:
        UserError: it cannot be opened.
    """
    if known := find_known(base):
        return {"_class_name": known.pipeline}
    with opening(base):
        return DiffusionPipeline.load_config(**locate(base))


def model_files(base: str) -> tuple[Path, list[Path]]:
    """A model's folder on this machine, for one of the hub that of its commit, and the files in it.

    Raises:
        UserError: it is not on this machine.
    """
    folder, where = Path(base), locate(base)
    if not folder.is_dir():
        name = where.pop("pretrained_model_name_or_path")
        with opening(base):
            folder = Path(snapshot_download(name, **where, local_files_only=True))
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return folder, [path for path in files if not any(p[0] == "." for p in path.relative_to(folder).parts)]


def pack(latents: Tensor) -> Tensor:
    """Latents `[B, C, H, W]` to tokens `[B, H/2 * W/2, 4 * C]`, one for each 2 x 2 patch."""
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of `pack`, with the size, dtype and device of `like` `[B, C, H, W]`."""
    rows, columns = like.shape[-2] // 2, like.shape[-1] // 2
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), 2).to(like)


class DiffusersBackbone(Backbone):
    """A diffusers editing pipeline behind the `Backbone` protocol; a subclass adapts one family.

    Args:
        base: a folder or a name on the hub, see `locate`.
        settings: dtype and what the model reads beside prompt and photo.
    """

    pipeline_class: ClassVar[Any]
    network_class: ClassVar[Any]
    vae_class: ClassVar[Any]
    # Every linear layer under these names carries LoRA.
    lora_roots: ClassVar[tuple[str, ...]]
    prompts_see_photos = False
    fuses_lora = False
    guides_in_one_batch = False
    reads_references: ClassVar[bool] = False  # several images, not the photo alone
    side_multiple = 16

    def __init__(self, base: str, settings: ModelSettings):
        self.base, self.settings = base, settings
        self.dtype = DTYPES[settings.dtype]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            # LoRAs are float32: let their products run on tensor cores.
            torch.set_float32_matmul_precision("high")

    def _load(self, component: Any, subfolder: str) -> Any:
        where = {**locate(self.base), "subfolder": subfolder}
        with opening(self.base):
            loaded = component.from_pretrained(**where, dtype=self.dtype, use_safetensors=True)
        return loaded.requires_grad_(False).eval()

    @classmethod
    def recommended_settings(cls, pipeline_config: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Settings in which a family differs from the defaults, given a model's `model_index.json`."""
        raise NotImplementedError

    @classmethod
    def empty_network(cls, base: str) -> nn.Module:
        """The network without memory, on the meta device: its names and shapes."""
        with torch.device("meta"):
            return cls.network_class.from_config(cls.transformer_config(base))

    @classmethod
    def transformer_config(cls, base: str) -> dict[str, Any]:
        """The transformer's `config.json`.

        Raises:
            UserError: it cannot be opened.
        """
        if known := find_known(base):
            return known.transformer
        with opening(base):
            return cls.network_class.load_config(**locate(base), subfolder="transformer")

    @classmethod
    def without_weights(cls, base: str, config: dict[str, Any], settings: ModelSettings) -> Self:
        """The model on the meta device, from its transformer's config: shapes without values."""
        backbone = cls(base, settings)
        backbone.device = torch.device("meta")
        with backbone.device:
            network = cls.network_class.from_config(config)
        backbone.network = nn.Module.to(network, backbone.dtype)  # diffusers' own warns of weights to lose
        return backbone

    @classmethod
    def find_lora_targets(cls, network: nn.Module) -> tuple[str, ...]:
        """Names of the linear layers that carry LoRA."""
        layers = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
        return tuple(name for name in layers if name.startswith(cls.lora_roots))

    @cached_property
    def network(self) -> Any:
        network = self._load(self.network_class, "transformer")
        if self.settings.quantization != "none":
            blocks = [name for name in self.find_lora_targets(network) if "transformer_blocks." in name]
            quantize(network, blocks, self.settings.quantization, self.dtype)
        return network.to(self.device)

    @cached_property
    def lora_targets(self) -> tuple[str, ...]:
        return self.find_lora_targets(self.network)

    @cached_property
    def vae(self) -> Any:
        return self._load(self.vae_class, "vae").to(self.device)

    @cached_property
    def text_pipeline(self) -> Any:
        """The pipeline with its text encoders and tokenizers alone."""
        absent = {"transformer": None, "vae": None}
        with opening(self.base):
            pipeline = self.pipeline_class.from_pretrained(
                **locate(self.base), **absent, dtype=self.dtype, use_safetensors=True
            )
        return pipeline.to(self.device)

    @cached_property
    def scheduler(self) -> Any:
        with opening(self.base):
            return FlowMatchEulerDiscreteScheduler.from_pretrained(**locate(self.base), subfolder="scheduler")

    def release_encoders(self) -> None:
        for name in ("vae", "text_pipeline"):
            self.__dict__.pop(name, None)
        free_memory()

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        # One at a time: the activations of a VAE are far larger than its latents.
        latents = [self._encode(self._enter(image[None] * 2 - 1)) for image in images]
        return torch.cat(latents).float().cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        images = [self._decode(self._enter(latent[None])) for latent in latents]
        return (torch.cat(images).float().cpu() / 2 + 0.5).clamp(0, 1)

    def _encode(self, image: Tensor) -> Tensor:
        """An image in [-1, 1], `[1, 3, height, width]`, to normalised latents `[1, C, H, W]`."""
        raise NotImplementedError

    def _decode(self, latent: Tensor) -> Tensor:
        """The inverse of `_encode`."""
        raise NotImplementedError

    def _enter(self, tensor: Tensor) -> Tensor:
        """A tensor in the model's dtype, on its device."""
        return tensor.to(self.device, self.dtype)

    def _guidance(self, batch: int) -> Tensor | None:
        """The guidance input `[batch]` of a guidance-distilled network."""
        if not self.network.config.guidance_embeds:
            return None
        return torch.full([batch], self.settings.embedded_guidance, device=self.device)

    def guide(self, cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
        return guided(cond, uncond, guidance_scale)

    def _shift_exponent(self, num_tokens: int, num_steps: int) -> float:
        """mu of the dynamic shift `exp(mu)`, which grows with the image; Kontext's and Qwen's rule.

        A straight line through the scheduler's two points, as `calculate_shift` of their pipelines.
        """
        config = self.scheduler.config
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        return config.base_shift + slope * (num_tokens - config.base_image_seq_len)

    def _num_tokens(self, noise: Tensor) -> int:
        """Tokens of latents `[B, C, H, W]`."""
        return noise.shape[-2] * noise.shape[-1] // 4

    def max_batch(self, condition: Condition) -> int:
        images = (
            condition.source,
            condition.source,
            *condition.references,
        )  # the noisy image is as the photo
        return max(1, MAX_TOKENS // sum(self._num_tokens(latents) for latents in images))

    def teacher_sigmas(self, num_steps: int, noise: Tensor) -> Tensor:
        if num_steps == 1:  # a schedule that is stretched to its last sigma needs two
            return torch.ones(1)
        mu = self._shift_exponent(self._num_tokens(noise), num_steps)
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps), mu=mu)
        return self.scheduler.sigmas[:-1]
