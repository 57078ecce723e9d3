"""What the method asks of an image editing model: the `Backbone` protocol and the tensors it exchanges."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """Encoded prompts: `tokens` `[B, T, D]` and `mask` `[B, T]`, True where a token is real."""

    tokens: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Tensor | slice) -> "Prompt":
        return Prompt(self.tokens[index], self.mask[index])

    def expand(self, batch: int) -> "Prompt":
        """One prompt repeated for a batch, without copying."""
        return Prompt(self.tokens.expand(batch, -1, -1), self.mask.expand(batch, -1))

    @staticmethod
    def cat(prompts: Sequence["Prompt"]) -> "Prompt":
        """Join along the batch; shorter prompts are padded with masked tokens."""
        length = max(p.mask.shape[1] for p in prompts)
        tokens = [F.pad(p.tokens, (0, 0, 0, length - p.mask.shape[1])) for p in prompts]
        masks = [F.pad(p.mask, (0, length - p.mask.shape[1])) for p in prompts]
        return Prompt(torch.cat(tokens), torch.cat(masks))


@dataclass(frozen=True)
class Condition:
    """What the network reads beside the noisy latents: the prompt, and the photo's latents `[B, C, H, W]`."""

    prompt: Prompt
    source: Tensor

    def with_prompt(self, prompt: Prompt) -> "Condition":
        return Condition(prompt, self.source)

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        return Condition(
            Prompt.cat([c.prompt for c in conditions]), torch.cat([c.source for c in conditions])
        )


class Backbone(Protocol):
    """An instruction-editing flow-matching model, adapted once at the border.

    Latents are `[B, C, H, W]` here whatever the network packs inside. `network` is what carries LoRA, in the
    modules whose names end in one of `lora_targets`; prompts and images are encoded outside it.
    """

    network: Any
    lora_targets: tuple[str, ...]

    def encode_prompt(self, prompts: Sequence[str]) -> Prompt:
        """Texts to a `Prompt` of the same batch; the empty text is the unconditional prompt."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """Images in [0, 1], `[B, 3, height, width]`, to latents `[B, C, H, W]`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images clipped to [0, 1]."""
        ...

    def prepare(self, condition: Condition) -> Any:
        """What `velocity` needs of a condition in the active role: work that a whole trajectory shares."""
        ...

    def velocity(self, x_sigma: Tensor, sigma: Tensor, prepared: Any) -> Tensor:
        """The predicted `noise - x0` in the active role, like `x_sigma` `[B, C, H, W]`; `sigma` `[B]`."""
        ...
