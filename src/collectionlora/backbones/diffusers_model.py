"""What the editing models of diffusers share: loading by parts, the border of device and dtype, the schedule.

Choices made here:

- Transformer, VAE and text encoders are loaded when they are first needed, and the last two can be released:
  training reads caches. Weights are read from safetensors only, and no code that comes with them is run.
- Prompts are encoded and positions are made by the pipeline's own functions, so that a model reads here what
  it reads there.
- Latents outside are float32, on whichever device; the network's device and dtype end at this border. What is
  encoded comes to the CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collectionlora.backbones.attention import set_attention
from collectionlora.backbones.base import Backbone, Condition, free_memory
from collectionlora.backbones.diffusers_files import (
    find_class,
    list_files,
    locate,
    measure_encoders,
    opening,
    read_weight,
)
from collectionlora.backbones.family import EncoderSize, Family, SectionValues
from collectionlora.backbones.quantization import block_layers, encoder_layers, quantize
from collectionlora.backbones.speaking import Speaker
from collectionlora.config import ModelSettings
from collectionlora.objectives import guided

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Of all images of a forward: one edit of 1024 x 1024 pixels, its noisy image and its photo. Such a batch
# keeps a large GPU busy; a larger one needs memory in proportion and is not faster.
MAX_TOKENS = 2 * (1024 // 16) ** 2
SIDE_MULTIPLE = 16  # pixels of a token: 2 x 2 latents of 8 x 8 pixels
# What a base of billions of parameters asks for, beside what its own file adds; the paper's ranks.
LARGE: SectionValues = {
    "model": {"dtype": "bfloat16", "gradient_checkpointing": True},
    "data": {"resolution": 1024},
    "student": {"rank": 128},
    "critic": {"rank": 128},
    "distill": {"ema_on_host": True, "checkpoint_minutes": 20},
    "log": {"preview_every": 500},
    # An effect LoRA of such a base takes a few thousand photos to learn, one at a time.
    "teach": {"steps": 2000, "batch_size": 1},
}
# The distillation of a base that is sampled without guidance, or has it distilled into its weights.
UNGUIDED = {**LARGE["distill"], "guidance_scale": 1}


class KnownBase(NamedTuple):
    """True facts of a base on the hub, so that a plan needs no download.

    The transformer's config, the text encoders' size, what of the VAE's config its class has otherwise, and
    whether it is distilled to few steps without guidance.
    """

    transformer: dict[str, Any]
    encoders: EncoderSize
    vae: Mapping[str, Any] = MappingProxyType({})
    is_distilled: bool = False


@dataclass(frozen=True, kw_only=True)
class DiffusersFamily(Family):
    """The bases of one pipeline of diffusers, whose classes are given by their names there.

    Attributes:
        backbone: runs a base of this family.
        lora_roots: every linear layer under these names carries LoRA.
        name_part: a part of its bases' names, in lower case.
        known: bases on the hub by name, of any revision.
    """

    backbone: "type[DiffusersBackbone]"
    network_class: str
    vae_class: str
    lora_roots: tuple[str, ...]
    name_part: str
    side_multiple: int = SIDE_MULTIPLE
    known: Mapping[str, KnownBase] = field(default_factory=dict)

    def find_known(self, base: str) -> KnownBase | None:
        """The facts of a known name on the hub; a folder speaks for itself."""
        return None if Path(base).is_dir() else self.known.get(base.partition("@")[0])

    def load(self, base: str, settings: ModelSettings) -> "DiffusersBackbone":
        find_class(base, self.name)  # whoever lacks diffusers is told before any work begins
        return self.backbone(self, base, settings)

    def list_files(self, base: str) -> tuple[Path, list[Path]]:
        return list_files(base)

    def transformer_config(self, base: str) -> dict[str, Any]:
        """The transformer's `config.json`."""
        if known := self.find_known(base):
            return known.transformer
        network_class = find_class(base, self.network_class)
        with opening(base):
            return network_class.load_config(**locate(base), subfolder="transformer")

    def empty_vae(self, base: str) -> nn.Module:
        """The VAE on the meta device."""
        vae_class = find_class(base, self.vae_class)
        if known := self.find_known(base):
            config = dict(known.vae)
        else:
            with opening(base):
                config = vae_class.load_config(**locate(base), subfolder="vae")
        with torch.device("meta"):
            vae: nn.Module = vae_class.from_config(config)
        return vae.eval()

    def find_lora_targets(self, network: nn.Module) -> tuple[str, ...]:
        """Names of the linear layers that carry LoRA."""
        layers = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
        return tuple(name for name in layers if name.startswith(self.lora_roots))

    def empty_network(self, base: str) -> tuple[nn.Module, tuple[str, ...]]:
        with torch.device("meta"):
            network = find_class(base, self.network_class).from_config(self.transformer_config(base))
        return network, self.find_lora_targets(network)

    def weight_reader(self, base: str) -> Callable[[str], Tensor]:
        return partial(read_weight, base, "transformer")

    def without_weights(
        self, base: str, settings: ModelSettings, depths: Mapping[str, int]
    ) -> "DiffusersBackbone":
        backbone = self.load(base, settings)
        backbone.device = torch.device("meta")
        with backbone.device:
            config = {**self.transformer_config(base), **depths}
            network = find_class(base, self.network_class).from_config(config)
        backbone.network = nn.Module.to(network, backbone.dtype)  # diffusers' own warns of weights to lose
        return backbone

    def block_stacks(self, base: str) -> dict[str, int]:
        config = self.transformer_config(base)
        return {name: config[name] for name in ("num_layers", "num_single_layers") if name in config}

    def encoder_size(self, base: str) -> EncoderSize | None:
        if known := self.find_known(base):
            return known.encoders
        return measure_encoders(base) if Path(base).is_dir() else None


def pack(latents: Tensor) -> Tensor:
    """Latents `[B, C, H, W]` to tokens `[B, H/2 * W/2, 4 * C]`, one for each 2 x 2 patch."""
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def to_tokens(latents: Tensor) -> Tensor:
    """Latents `[B, C, H, W]` to `[B, H * W, C]`, where a network reads them one by one."""
    return latents.flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of `to_tokens`, with the size, dtype and device of `like` `[B, C, H, W]`."""
    return tokens.transpose(1, 2).reshape(like.shape).to(like)


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

    prompts_see_photos = False
    fuses_lora = False
    guides_in_one_batch = False
    masks_attention = False  # in every forward, also of one sample
    device = torch.device("cpu")

    def __init__(self, family: DiffusersFamily, base: str, settings: ModelSettings):
        self.family, self.base, self.settings = family, base, settings
        self.side_multiple = family.side_multiple
        self.dtype = DTYPES[settings.dtype]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            # Let the products of a float32 base run on tensor cores.
            torch.set_float32_matmul_precision("high")

    @property
    def pipeline_class(self) -> Any:
        return find_class(self.base, self.family.name)

    def _load(self, name: str, subfolder: str, device: torch.device | None = None) -> Any:
        """A part on the CPU, where its weights stay in the mapped file, or tensor by tensor on a device.

        Mapped is what has the file's dtype, as the weights of all known bases: one copy for all processes.
        """
        part, where = find_class(self.base, name), {**locate(self.base), "subfolder": subfolder}
        with opening(self.base):
            loaded = part.from_pretrained(**where, dtype=self.dtype, use_safetensors=True, device_map=device)
        return loaded.requires_grad_(False).eval()

    @property
    def computes_in(self) -> torch.dtype:
        return self.dtype

    @cached_property
    def network(self) -> Any:
        whole = self.settings.quantization == "none"
        network = self._load(self.family.network_class, "transformer", self.device if whole else None)
        if not whole:
            quantize(network, block_layers(network), self.settings.quantization, self.dtype)
            network.to(self.device)
        if self.settings.attention != "native":
            set_attention(network, self.settings.attention, self.device, self.dtype, self.masks_attention)
        return network

    @cached_property
    def lora_targets(self) -> tuple[str, ...]:
        return self.family.find_lora_targets(self.network)

    @cached_property
    def vae(self) -> Any:
        if self.device.type == "meta":  # diffusers' own `to` warns of weights to lose
            return nn.Module.to(self.family.empty_vae(self.base), self.dtype)
        return self._load(self.family.vae_class, "vae").to(self.device)

    @cached_property
    def text_pipeline(self) -> Any:
        """The pipeline with its text encoders, quantised as the network is, and tokenizers alone."""
        pipeline_class, absent = self.pipeline_class, {"transformer": None, "vae": None}
        with opening(self.base):
            pipeline = pipeline_class.from_pretrained(
                **locate(self.base), **absent, dtype=self.dtype, use_safetensors=True
            )
        if self.settings.quantization != "none":
            for part in pipeline.components.values():
                if isinstance(part, nn.Module):
                    quantize(part, encoder_layers(part), self.settings.quantization, self.dtype)
        return pipeline.to(self.device)

    @cached_property
    def scheduler(self) -> Any:
        scheduler_class = find_class(self.base, "FlowMatchEulerDiscreteScheduler")
        with opening(self.base):
            return scheduler_class.from_pretrained(**locate(self.base), subfolder="scheduler")

    @cached_property
    def speaker(self) -> Speaker:
        """Its text encoder to be asked about pictures; `find_silence` says where there is none."""
        assert self.family.speech is not None
        return Speaker(self.text_pipeline, self.family.speech)

    def release_encoders(self) -> None:
        for name in ("vae", "text_pipeline", "speaker"):
            self.__dict__.pop(name, None)
        free_memory()

    def release_network(self) -> None:
        self.__dict__.pop("network", None)
        free_memory()

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        # One at a time: the activations of a VAE are far larger than its latents.
        latents = [self._encode(self._enter(image[None] * 2 - 1)) for image in images]
        return self._leave(torch.cat(latents))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        images = [self._decode(self._enter(latent[None])) for latent in latents]
        return (self._leave(torch.cat(images)) / 2 + 0.5).clamp(0, 1)

    def _encode(self, image: Tensor) -> Tensor:
        """An image in [-1, 1], `[1, 3, height, width]`, to normalised latents `[1, C, H, W]`."""
        raise NotImplementedError

    def _decode(self, latent: Tensor) -> Tensor:
        """The inverse of `_encode`."""
        raise NotImplementedError

    def _enter(self, tensor: Tensor) -> Tensor:
        """A tensor in the model's dtype, on its device."""
        return tensor.to(self.device, self.dtype)

    def _leave(self, tensor: Tensor) -> Tensor:
        """A tensor in float32 on the CPU; what has no values stays on the meta device."""
        return tensor.float() if tensor.is_meta else tensor.float().cpu()

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
        noisy = condition.source  # it has the photo's size
        images = noisy, condition.source, *condition.references
        return max(1, MAX_TOKENS // sum(map(self._num_tokens, images)))

    def teacher_sigmas(self, num_steps: int, noise: Tensor) -> Tensor:
        spaced = self._space_sigmas(num_steps)
        if num_steps == 1:  # a schedule that is stretched to its last sigma needs two
            return torch.ones(1)
        mu = self._shift_exponent(self._num_tokens(noise), num_steps)
        self.scheduler.set_timesteps(sigmas=spaced, mu=mu)
        return self.scheduler.sigmas[:-1]

    def _space_sigmas(self, num_steps: int) -> Sequence[float]:
        """The sigmas of the steps before the shift, without the 0 at the end."""
        spaced: list[float] = np.linspace(1, 1 / num_steps, num_steps).tolist()
        return spaced
