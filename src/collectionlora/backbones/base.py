"""What the method asks of an image editing model: the `Backbone` protocol and the tensors it exchanges."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """Encoded prompts: `tokens` `[B, T, D]`, `mask` `[B, T]`, True where a token is real.

    `pooled` `[B, E]` is the one vector for the whole text that some models read beside the tokens. `places`
    `[B, N]` is for models that read images inside the text: how many tokens stand before each image.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor | None = None
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> "Prompt":
        """Tokens and vector on a device. The rest stays: backbones look at its values, and would wait."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return replace(self, tokens=self.tokens.to(device), pooled=pooled)

    def _of_each(self, change: Callable[[Tensor], Tensor]) -> "Prompt":
        """The same change of every part's rows."""
        parts = (self.tokens, self.mask, self.pooled, self.places)
        tokens, mask, *rest = (None if part is None else change(part) for part in parts)
        assert tokens is not None
        assert mask is not None
        return Prompt(tokens, mask, *rest)

    def __getitem__(self, index: Tensor | slice) -> "Prompt":
        return self._of_each(lambda part: part[index])

    def trim(self) -> "Prompt":
        """Without the last tokens that are padding in every row."""
        length = int(self.mask.sum(dim=1).max())
        return replace(self, tokens=self.tokens[:, :length], mask=self.mask[:, :length])

    def expand(self, batch: int) -> "Prompt":
        """One prompt repeated for a batch, without copying."""
        return self._of_each(lambda part: part.expand(batch, *part.shape[1:]))

    def of_photos(self, index: Tensor) -> "Prompt":
        """The prompts of the photos at `index` `[B]`; a prompt that stands alone is every photo's."""
        return self.expand(len(index)) if len(self) == 1 else self[index]

    @staticmethod
    def cat(prompts: Sequence["Prompt"]) -> "Prompt":
        """Join along the batch; shorter prompts are padded with masked tokens."""
        length = max(p.mask.shape[1] for p in prompts)
        tokens = [F.pad(p.tokens, (0, 0, 0, length - p.mask.shape[1])) for p in prompts]
        masks = [F.pad(p.mask, (0, length - p.mask.shape[1])) for p in prompts]
        pooled = [p.pooled for p in prompts if p.pooled is not None]
        places = [p.places for p in prompts if p.places is not None]
        return Prompt(
            torch.cat(tokens),
            torch.cat(masks),
            torch.cat(pooled) if pooled else None,
            torch.cat(places) if places else None,
        )

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The prompt as named tensors for a file."""
        parts = {"tokens": self.tokens, "mask": self.mask, "pooled": self.pooled, "places": self.places}
        return {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}

    @staticmethod
    def from_tensors(name: str, tensors: Mapping[str, Tensor]) -> "Prompt":
        """What `tensors` gave."""
        return Prompt(
            tensors[f"{name}.tokens"],
            tensors[f"{name}.mask"],
            tensors.get(f"{name}.pooled"),
            tensors.get(f"{name}.places"),
        )


@dataclass(frozen=True)
class Condition:
    """What the network reads beside the noisy latents.

    The prompt, the photo's latents `source` `[B, C, H, W]`, and those of further reference images, each of a
    size of its own.
    """

    prompt: Prompt
    source: Tensor
    references: tuple[Tensor, ...] = ()

    def __getitem__(self, index: Tensor | slice) -> "Condition":
        references = tuple(latents[index] for latents in self.references)
        return Condition(self.prompt[index], self.source[index], references)

    def to(self, device: torch.device) -> "Condition":
        references = tuple(latents.to(device) for latents in self.references)
        return Condition(self.prompt.to(device), self.source.to(device), references)

    def with_prompt(self, prompt: Prompt) -> "Condition":
        return replace(self, prompt=prompt)

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """Join along the batch; all have reference images of the same number and sizes."""
        return Condition(
            Prompt.cat([c.prompt for c in conditions]),
            torch.cat([c.source for c in conditions]),
            tuple(torch.cat(same) for same in zip(*(c.references for c in conditions), strict=True)),
        )


def repeat_references(references: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    """Reference images or their latents, each of one image, shown beside every photo of a batch."""
    return tuple(reference.expand(batch, -1, -1, -1) for reference in references)


@dataclass(frozen=True)
class Shapes:
    """What a base's network reads for one photo: latents (C, H, W), prompt (T, D), pooled vector's length."""

    latents: tuple[int, int, int]
    tokens: tuple[int, int]
    pooled: int | None = None

    def empty_condition(self, batch: int, references: int = 0) -> Condition:
        """A condition without values, on the meta device; every token is real, references are like photos."""
        with torch.device("meta"):
            pooled = None if self.pooled is None else torch.empty(batch, self.pooled)
            tokens, source = torch.empty(batch, *self.tokens), torch.empty(batch, *self.latents)
        # Backbones look at the mask's values: this one exists.
        prompt = Prompt(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device="cpu"), pooled)
        return Condition(prompt, source, (source,) * references)


def free_memory() -> None:
    """Give back what nothing refers to, also in circles, as those between a network and its roles are."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Backbone(Protocol):
    """An instruction-editing flow-matching model, adapted once at the border.

    Latents are `[B, C, H, W]` here and float32, whatever the network packs, casts and moves inside.
    What is encoded comes to the CPU. `network` is what carries LoRA; prompts and images are encoded outside
    it.

    Attributes:
        device: where the network computes. It takes latents from anywhere and returns them there; a
            trajectory or a training step that keeps them on this device copies nothing between its calls.
        side_multiple: heights and widths of images are multiples of it.
        prompts_see_photos: a text is encoded together with the photo it is about, so that an encoded prompt
            belongs to one photo.
        fuses_lora: the weights that carry LoRA are small enough to be held twice (`Roles.use`).
        dtype: of the network's weights, and of the teachers over it.
        computes_in: the dtype of the network's products.
        guides_in_one_batch: both branches of guidance run as one forward. Apart they need half the memory
            and no mask, for each has prompts of one length: right where one image fills a device.
    """

    network: Any
    side_multiple: int
    prompts_see_photos: bool
    fuses_lora: bool
    dtype: torch.dtype
    guides_in_one_batch: bool

    @property
    def device(self) -> torch.device: ...

    @property
    def computes_in(self) -> torch.dtype: ...

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Names, or the ends of names, of the network's modules that carry LoRA."""
        ...

    def encode_prompt(self, prompts: Sequence[str], photos: Sequence[Tensor] = ()) -> Prompt:
        """Texts to a `Prompt` of the same batch; the empty text is the unconditional prompt.

        Args:
            photos: the photo, then further reference images, in [0, 1], each `[B, 3, height, width]`. Read
                only if `prompts_see_photos`; without them the texts are encoded alone.
        """
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """Images in [0, 1], `[B, 3, height, width]`, to latents `[B, C, H, W]`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images clipped to [0, 1]."""
        ...

    def release_encoders(self) -> None:
        """Free what only `encode_prompt`, `encode_image` and `decode` need; they load it again."""
        ...

    def release_network(self) -> None:
        """Free the network, after the last picture that is drawn with it."""
        ...

    def shapes(self, size: tuple[int, int]) -> Shapes:
        """Shapes of what the network reads for a photo of a height and width and a text of common length."""
        ...

    def max_batch(self, condition: Condition) -> int:
        """How many images, each with a condition of these sizes, a forward without gradient takes at once."""
        ...

    def prepare(self, condition: Condition) -> Any:
        """What `velocity` needs of a condition in the active role: work that a whole trajectory shares."""
        ...

    def begin_trajectory(self, prepared: Any) -> Any:
        """`prepared` for a trajectory that begins, without gradient and in one role.

        What every further step would compute again may be kept in it, which costs memory.
        """
        return prepared

    def velocity(self, x_sigma: Tensor, sigma: Tensor, prepared: Any) -> Tensor:
        """The predicted `noise - x0` in the active role, like `x_sigma` `[B, C, H, W]`; `sigma` `[B]`."""
        ...

    def guide(self, cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
        """The guided velocity by the model's own rule, from two velocities `[B, C, H, W]`."""
        ...

    def teacher_sigmas(self, num_steps: int, noise: Tensor) -> Tensor:
        """The model's own many-step schedule for latents like `noise`: `[num_steps]`, falling from 1."""
        ...


def encode_condition(
    backbone: Backbone, prompts: Sequence[str], images: Tensor, references: Sequence[Tensor] = ()
) -> Condition:
    """What the network reads for a batch of texts and photos.

    Args:
        images: `[B, 3, H, W]` in [0, 1].
        references: reference images that are shown beside every photo, each `[1, 3, height, width]`.
    """
    batch = len(images)
    latents = [backbone.encode_image(reference) for reference in references]
    prompt = backbone.encode_prompt(prompts, [images, *repeat_references(references, batch)])
    return Condition(prompt, backbone.encode_image(images), repeat_references(latents, batch))
