"""Points in the plane instead of images: the method in seconds, judged by exact distances.

A latent is one point `[B, 2, 1, 1]`, the source photo is another point, and a prompt is the normalised sum of
fixed random vectors, one for each word. The network is a residual perceptron.
"""

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collectionlora.backbones.base import Condition, Prompt, Shapes
from collectionlora.flow import few_step_sigmas
from collectionlora.objectives import guided

PROMPT_SIZE, NUM_FREQUENCIES = 16, 16


class ToyNetwork(nn.Module):
    """velocity(x_sigma, sigma, source, prompt) for points `[B, 2]`."""

    def __init__(self, width: int = 128, depth: int = 4):
        super().__init__()
        self.stem = nn.Linear(2 + 2 + PROMPT_SIZE + 2 * NUM_FREQUENCIES, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x_sigma: Tensor, sigma: Tensor, source: Tensor, prompt: Tensor) -> Tensor:
        angles = sigma[:, None] * torch.linspace(0, 4, NUM_FREQUENCIES, device=sigma.device).exp()
        hidden = F.silu(self.stem(torch.cat([x_sigma, source, prompt, angles.sin(), angles.cos()], dim=1)))
        for block in self.blocks:
            hidden = hidden + F.silu(block(hidden))
        return self.head(hidden)


def word_vector(word: str) -> Tensor:
    """A fixed random direction of length 1, the same on every machine; `[PROMPT_SIZE]`."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
    vector = torch.randn(PROMPT_SIZE, generator=torch.Generator().manual_seed(seed))
    return F.normalize(vector, dim=0)


def encode_prompt(prompts: Sequence[str]) -> Prompt:
    """One token for each prompt: the sum of its words' vectors, of length about 2; the empty prompt is 0."""
    rows = []
    for prompt in prompts:
        words = prompt.split()
        total = sum((word_vector(w) for w in words), torch.zeros(PROMPT_SIZE))
        rows.append(2 * total / max(1, len(words)) ** 0.5)
    return Prompt(torch.stack(rows)[:, None], torch.ones(len(rows), 1, dtype=torch.bool))


class ToyBackbone:
    """The toy network behind the `Backbone` protocol."""

    lora_targets: tuple[str, ...] = ("stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "head")
    side_multiple, prompts_see_photos, fuses_lora, guides_in_one_batch = 1, False, False, True
    dtype = computes_in = torch.float32

    def __init__(self, seed: int = 0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = ToyNetwork()

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def encode_prompt(self, prompts: Sequence[str], photos: Sequence[Tensor] = ()) -> Prompt:
        return encode_prompt(prompts)

    def encode_image(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def release_encoders(self) -> None:
        """Nothing is large."""

    def release_network(self) -> None:
        """Nothing is large."""

    def shapes(self, size: tuple[int, int]) -> Shapes:
        return Shapes((2, 1, 1), (1, PROMPT_SIZE))

    def max_batch(self, condition: Condition) -> int:
        return len(condition.source)

    def prepare(self, condition: Condition) -> Condition:
        return condition.to(self.device)

    def begin_trajectory(self, prepared: Condition) -> Condition:
        return prepared

    def velocity(self, x_sigma: Tensor, sigma: Tensor, prepared: Condition) -> Tensor:
        prompt = prepared.prompt.tokens[:, 0]
        points, sigma = x_sigma.flatten(1).to(self.device), sigma.to(self.device)
        out = self.network(points, sigma, prepared.source.flatten(1), prompt)
        return out.view_as(x_sigma).to(x_sigma.device)

    def guide(self, cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
        return guided(cond, uncond, guidance_scale)

    def teacher_sigmas(self, num_steps: int, noise: Tensor) -> Tensor:
        return few_step_sigmas(num_steps)
