"""The nano network: a small edit transformer of the kind of Qwen-Image-Edit, on pixels.

Choices, and what they buy:

- Joint attention over text, source and noisy tokens in double-stream blocks with Qwen's projection names, so
  LoRA targets carry over. Patches of 8 pixels.
- Condition tokens (text and source) never attend to noisy ones and never see sigma, so what they contribute
  is a function of the condition alone: `encode_condition` runs once for a whole trajectory.
- The mean of the words joins the time embedding (as in SD3 and FLUX), so that an instruction turns every
  modulation without a round of attention.
- Queries and keys carry sinusoids of their patch's place, free of content, and the modulation turns those of
  the queries: a mirror image is a change of signs, a shift a rotation. Places read off the tokens alone drown
  in the noise that a flip starts from.
- Preconditioning around the photo: an edit starts from the source, so the network only predicts what a linear
  estimate from `x_sigma` and the source leaves over, scaled to unit variance (EDM, arXiv 2206.00364, carried
  over to velocity with the source as prior mean).
- A pixel head: 3x3 convolutions over the pixels, modulated by the patch tokens, so that fine detail needs no
  room in the tokens.
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collectionlora.backbones.nano_places import Places, patch_positions, sinusoids
from collectionlora.flow import expand_sigma

RESIDUAL_STD = 0.5  # typical deviation of an edited image from its source, both in [-1, 1]
KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class NanoConfig:
    """Sizes of the network; the defaults are the shipped base."""

    width: int = 192
    depth: int = 6
    num_heads: int = 6
    patch: int = 8
    text_width: int = 96
    pixel_width: int = 32
    pixel_depth: int = 2

    def asdict(self) -> dict[str, int]:
        return asdict(self)


class GELUProjection(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    def __init__(self, width: int, ratio: int):
        super().__init__()
        # Three entries, so that the second projection is named `net.2` as in diffusers.
        self.net = nn.Sequential(GELUProjection(width, ratio * width), nn.Identity())
        self.net.append(nn.Linear(ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class JointAttention(nn.Module):
    """Projections of both streams; the attention itself is composed in `NanoBlock`."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_add_out = nn.Linear(width, width)
        head = width // num_heads
        self.norm_q, self.norm_k = nn.RMSNorm(head), nn.RMSNorm(head)
        self.norm_added_q, self.norm_added_k = nn.RMSNorm(head), nn.RMSNorm(head)

    def image_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.heads(project(x)) for project in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v

    def text_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.heads(project(x)) for project in (self.add_q_proj, self.add_k_proj, self.add_v_proj))
        return self.norm_added_q(q), self.norm_added_k(k), v

    def heads(self, x: Tensor) -> Tensor:
        """Tokens `[B, N, D]` to `[B, heads, N, D / heads]`."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Heads `[B, heads, N, D]` to tokens `[B, N, heads * D]`; `bias` `[B, 1, 1, keys]`, -inf if forbidden.

    Written out: for so few tokens torch's fused attention takes longer on a CPU.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


class Modulation(NamedTuple):
    """What time and instruction tell a block, each `[B, 1, D]`; sine and cosine turn the queries' places."""

    scale1: Tensor
    shift1: Tensor
    gate1: Tensor
    scale2: Tensor
    shift2: Tensor
    gate2: Tensor
    sine: Tensor
    cosine: Tensor


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Tokens `[B, N, D]`, normalised, scaled and shifted."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


class NanoBlock(nn.Module):
    def __init__(self, config: NanoConfig):
        super().__init__()
        width = config.width
        self.attn = JointAttention(width, config.num_heads)
        self.img_mod = nn.Sequential(nn.SiLU(), nn.Linear(width, 8 * width))
        self.img_mlp = FeedForward(width, 4)
        self.txt_norm1, self.txt_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.txt_mlp = FeedForward(width, 2)

    def modulation(self, time: Tensor) -> Modulation:
        """Of tokens at `time` `[B, D]`."""
        return Modulation(*self.img_mod(time)[:, None].chunk(8, dim=-1))

    def read_condition(
        self, text: Tensor, source: Tensor, modulation: Modulation, places: Places
    ) -> tuple[Tensor, KeysValues]:
        """Queries, and keys and values, of text `[B, T, D]` and source tokens `[B, N, D]`."""
        text_qkv = self.attn.text_qkv(self.txt_norm1(text))
        image_qkv = self._image_qkv(source, modulation, places)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(text_qkv, image_qkv, strict=True))
        return q, (k, v)

    def advance_condition(
        self, text: Tensor, source: Tensor, modulation: Modulation, mixed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Text and source tokens after the block; `mixed` `[B, T + N, D]` is what they attended to."""
        mixed_text, mixed_source = mixed.split([text.shape[1], source.shape[1]], dim=1)
        text = text + self.attn.to_add_out(mixed_text)
        text = text + self.txt_mlp(self.txt_norm2(text))
        return text, self._advance_image(source, modulation, mixed_source)

    def forward(
        self, noisy: Tensor, time: Tensor, places: Places, keys_values: KeysValues, bias: Tensor
    ) -> Tensor:
        """Advance noisy tokens `[B, N, D]` at `time` `[B, D]`; `bias` is of all keys."""
        modulation = self.modulation(time)
        q, *own = self._image_qkv(noisy, modulation, places)
        k, v = (torch.cat(pair, dim=2) for pair in zip(keys_values, own, strict=True))
        return self._advance_image(noisy, modulation, attend(q, k, v, bias))

    def _image_qkv(
        self, tokens: Tensor, modulation: Modulation, places: Places
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.attn.image_qkv(modulate(tokens, modulation.scale1, modulation.shift1))
        sine, cosine = self.attn.heads(modulation.sine), self.attn.heads(modulation.cosine)
        return places.add_turned(q, sine, cosine), k + places.here, v

    def _advance_image(self, tokens: Tensor, modulation: Modulation, mixed: Tensor) -> Tensor:
        tokens = torch.addcmul(tokens, modulation.gate1, self.attn.to_out[0](mixed))
        changed = self.img_mlp(modulate(tokens, modulation.scale2, modulation.shift2))
        return torch.addcmul(tokens, modulation.gate2, changed)


class PixelHead(nn.Module):
    """Patch tokens and pixels to an image: convolutions modulated by the tokens, plus a linear output."""

    def __init__(self, config: NanoConfig):
        super().__init__()
        self.patch, width = config.patch, config.pixel_width
        self.pixel_in = nn.Conv2d(6, width, 3, padding=1)
        self.pixel_mod = nn.ModuleList(
            nn.Linear(config.width, 2 * width) for _ in range(config.pixel_depth + 1)
        )
        self.pixel_mix = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for _ in range(config.pixel_depth)
        )
        self.pixel_out = nn.Conv2d(width, 3, 3, padding=1)
        self.proj_out = nn.Linear(config.width, 3 * config.patch**2)

    def forward(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """`tokens` `[B, N, D]` and `pixels` `[B, 6, H, W]` to `[B, 3, H, W]`."""
        rows, columns = pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch

        def modulated(x: Tensor, layer: nn.Module) -> Tensor:
            grid = layer(tokens).unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
            scale, shift = F.interpolate(grid, scale_factor=self.patch, mode="bilinear").chunk(2, dim=1)
            return F.silu(torch.addcmul(shift, x, 1 + scale))

        hidden = self.pixel_in(pixels.contiguous(memory_format=torch.channels_last))
        for mod, mix in zip(self.pixel_mod[:-1], self.pixel_mix, strict=True):
            hidden = hidden + mix(modulated(hidden, mod))
        image = self.pixel_out(modulated(hidden, self.pixel_mod[-1]))
        patches = self.proj_out(tokens).transpose(1, 2).unflatten(2, (rows, columns))
        return image + F.pixel_shuffle(patches, self.patch)


@dataclass(frozen=True)
class EncodedCondition:
    """The condition's keys and values in every block, and what else the noisy pass needs."""

    keys_values: list[KeysValues]
    bias: Tensor
    pooled: Tensor
    places: Places
    source: Tensor


class NanoTransformer(nn.Module):
    """The velocity of `x_sigma` `[B, 3, H, W]` given text and source photo; H and W are multiples of 8."""

    def __init__(self, config: NanoConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.img_in = nn.Conv2d(3, width, config.patch, stride=config.patch)
        self.source_in = nn.Conv2d(3, width, config.patch, stride=config.patch)
        self.txt_in = nn.Linear(config.text_width, width)
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.position_in = nn.Linear(width, width)
        blocks = [NanoBlock(config) for _ in range(config.depth)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.norm_out = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = PixelHead(config)
        self._initialise()

    @property
    def blocks(self) -> list[NanoBlock]:
        return cast(list[NanoBlock], list(self.transformer_blocks))

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.img_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the network computes."""
        return self.img_in.weight.dtype

    def _initialise(self) -> None:
        """Modulations and outputs start at zero, so that training starts from the linear estimate."""
        modulations = [block.img_mod[1] for block in self.blocks]
        outputs = [self.norm_out[1], self.head.proj_out, self.head.pixel_out, *self.head.pixel_mod]
        for layer in [*modulations, *outputs]:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def _time(self, sigma: Tensor) -> Tensor:
        return self.time_in(sinusoids(sigma, self.config.width, 100.0, 1.0).to(self.dtype))

    def _patchify(self, layer: nn.Module, image: Tensor) -> Tensor:
        tokens = layer(image.to(self.dtype))
        rows, columns = tokens.shape[-2:]
        positions = patch_positions(rows, columns, self.config.width, 2.0, 0.05, tokens.device).to(self.dtype)
        return tokens.flatten(2).transpose(1, 2) + self.position_in(positions)

    def encode_condition(self, text: Tensor, text_mask: Tensor, source: Tensor) -> EncodedCondition:
        """The condition streams alone.

        `text` `[B, T, text_width]`, `text_mask` `[B, T]`, `source` `[B, 3, H, W]`.
        """
        source_tokens = self._patchify(self.source_in, source)
        text = self.txt_in(text.to(self.dtype))
        order = torch.arange(text.shape[1], device=text.device)
        text = text + sinusoids(order, self.config.width, 1.0, 0.01).to(self.dtype)
        num_words = text_mask.sum(1, keepdim=True).clamp_min(1)
        pooled = self.pooled_in((text * text_mask[..., None]).sum(1) / num_words)
        bias = text.new_zeros(text_mask.shape).masked_fill(~text_mask, float("-inf"))
        bias = F.pad(bias, (0, source_tokens.shape[1]))[:, None, None]
        clean = self._time(source.new_zeros(len(source))) + pooled
        rows, columns = (side // self.config.patch for side in source.shape[-2:])
        places = Places.of_grid(rows, columns, self.config.width // self.config.num_heads, like=text)
        keys_values: list[KeysValues] = []
        for block in self.blocks:
            modulation = block.modulation(clean)
            queries, pair = block.read_condition(text, source_tokens, modulation, places)
            keys_values.append(pair)
            if len(keys_values) < len(self.blocks):  # nothing reads what the last would make of its tokens
                mixed = attend(queries, *pair, bias)
                text, source_tokens = block.advance_condition(text, source_tokens, modulation, mixed)
        return EncodedCondition(keys_values, bias, pooled, places, source)

    def forward(self, x_sigma: Tensor, sigma: Tensor, condition: EncodedCondition) -> Tensor:
        """The velocity `[B, 3, H, W]` at `sigma` `[B]`."""
        level = expand_sigma(sigma, x_sigma)
        offset = x_sigma - (1 - level) * condition.source
        variance = level**2 + ((1 - level) * RESIDUAL_STD) ** 2
        scaled = offset / variance.sqrt()

        tokens = self._patchify(self.img_in, scaled)
        time = self._time(sigma) + condition.pooled
        bias = F.pad(condition.bias, (0, tokens.shape[1]))
        for block, keys_values in zip(self.blocks, condition.keys_values, strict=True):
            tokens = block(tokens, time, condition.places, keys_values, bias)
        scale, shift = self.norm_out(time)[:, None].chunk(2, dim=-1)
        tokens = modulate(tokens, scale, shift)
        pixels = torch.cat([scaled, condition.source], dim=1).to(self.dtype)
        residual = self.head(tokens, pixels).to(x_sigma.dtype)

        estimate = (level - (1 - level) * RESIDUAL_STD**2) / variance * offset - condition.source
        return estimate + RESIDUAL_STD / variance.sqrt() * residual
