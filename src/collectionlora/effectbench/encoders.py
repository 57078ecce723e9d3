"""Embeddings of pictures and texts by models of transformers: CLIP (2103.00020) and DINOv2 (2304.07193).

A model is a folder or a name on the hub; only safetensors are read and no code comes with it. This file is
the only one of the benchmark that knows transformers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, Dinov2Model

from collectionlora.pictures.photos import Photo, chunks
from collectionlora.system.errors import UserError


class ImageEncoder(ABC):
    """A model that embeds pictures, which its processor prepares."""

    processor: Any

    @abstractmethod
    def embed(self, **pixels: Tensor) -> Tensor:
        """What the processor made of some pictures to vectors `[N, D]` of any length."""

    @torch.no_grad()
    def images(self, photos: Sequence[Photo]) -> Tensor:
        """Unit vectors `[N, D]`."""
        parts = []
        for part in chunks(len(photos)):
            pictures = [Image.fromarray(photo) for photo in photos[part]]
            parts.append(self.embed(**self.processor(images=pictures, return_tensors="pt")))
        return F.normalize(torch.cat(parts), dim=1)


class Clip(ImageEncoder):
    """Pictures and texts in one space, as CLIP's own projections put them there.

    Raises:
        UserError: the model cannot be opened.
    """

    def __init__(self, name: str):
        try:
            self.model = CLIPModel.from_pretrained(name, use_safetensors=True).eval()
            self.processor = AutoImageProcessor.from_pretrained(name)
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise _explain("bench.clip", name, error) from None

    def embed(self, **pixels: Tensor) -> Tensor:
        return self.model.get_image_features(**pixels).pooler_output

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `[N, D]`; a text is cut at the model's 77 tokens."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        return F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=1)


class Dino(ImageEncoder):
    """Pictures as the class token of DINOv2's last layer.

    Raises:
        UserError: the model cannot be opened.
    """

    def __init__(self, name: str):
        try:
            self.model = Dinov2Model.from_pretrained(name, use_safetensors=True).eval()
            self.processor = AutoImageProcessor.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise _explain("bench.dino", name, error) from None

    def embed(self, **pixels: Tensor) -> Tensor:
        return self.model(**pixels).last_hidden_state[:, 0]


def _explain(field: str, name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    hint = "give a folder with safetensors and a processor, or a name on the hub"
    return UserError("--set", field, f"{name!r} cannot be opened ({reason})", hint)
