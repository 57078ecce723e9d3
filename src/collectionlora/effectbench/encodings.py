"""What a benchmark's networks read, each photo and text encoded once, before anything is sampled."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from collectionlora.backbones.base import Condition, Prompt
from collectionlora.effectbench.bench import GENERAL
from collectionlora.pictures.photos import chunks
from collectionlora.runs.session import Session


class Encodings:
    """Conditions of pictures to be made; what was encoded before is not encoded again."""

    def __init__(self, session: Session):
        self.backbone = session.backbone
        self.references = cache(session.references)
        self._known: dict[tuple[Any, ...], Any] = {}

    def in_parts(
        self, effect: str, texts: Sequence[str], images: Tensor
    ) -> Iterator[tuple[slice, Condition]]:
        """Conditions of as many images at a time as the network takes, and which images they are.

        Args:
            effect: whose reference images are shown beside every photo, or `GENERAL`.
            images: `[N, 3, H, W]` in [0, 1], with a text for each.
        """
        rows = [
            self.condition(effect, text, image) for text, image in zip(texts, images[:, None], strict=True)
        ]
        for part in chunks(len(rows), self.backbone.max_batch(rows[0])):
            yield part, Condition.cat(rows[part])

    @torch.no_grad()
    def condition(self, effect: str, text: str, image: Tensor) -> Condition:
        """The condition of one image `[1, 3, H, W]`."""
        shown = [] if effect == GENERAL else self.references(effect)
        latents = tuple(self._latents(picture) for picture in (image, *shown))
        return Condition(self._prompt(text, [image, *shown]), latents[0], latents[1:])

    def forget(self) -> None:
        """Free what was encoded: for a large base gigabytes."""
        self._known.clear()

    def _latents(self, image: Tensor) -> Tensor:
        key = ("latents", digest(image))
        if key not in self._known:
            self._known[key] = self.backbone.encode_image(image)
        return self._known[key]

    def _prompt(self, text: str, photos: Sequence[Tensor]) -> Prompt:
        seen = photos if self.backbone.prompts_see_photos else []
        key = ("prompt", text, *(digest(photo) for photo in seen))
        if key not in self._known:
            self._known[key] = self.backbone.encode_prompt([text], seen)
        return self._known[key]


def digest(image: Tensor) -> bytes:
    """A hash of an image's values."""
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()
