"""Buckets: images of several sizes, of which one batch holds one size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# N images, latents, or samples of them: of one size as one tensor `[N, ...]`, else one tensor for each.
Images = Tensor | list[Tensor]


def gather_images(images: Sequence[Tensor]) -> Images:
    """One tensor of images if they have one size, else a list of them."""
    return torch.stack(list(images)) if len({image.shape for image in images}) == 1 else list(images)


def take(images: Images, index: Tensor) -> Tensor:
    """The images at `index` `[B]`, which have one size: `[B, ...]`."""
    return images[index] if isinstance(images, Tensor) else torch.stack([images[i] for i in index.tolist()])


def chain_images(parts: Sequence[Images]) -> Images:
    """Images of several parts, one part after the other; nothing is copied."""
    return parts[0] if len(parts) == 1 else [image for part in parts for image in part]


def list_shapes(images: Images) -> list[torch.Size]:
    """The shape of every image, without a look at its values."""
    if isinstance(images, Tensor):
        return [images.shape[1:]] * len(images)
    return [image.shape for image in images]


def find_buckets(images: Sequence[Any] | Tensor) -> list[list[int]]:
    """The positions of the images of each size; what is grouped are tensors or arrays."""
    buckets: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        buckets.setdefault(tuple(image.shape), []).append(position)
    return list(buckets.values())


class Buckets:
    """Which of N images have one size: found once from their shapes, for there may be thousands of images."""

    def __init__(self, images: Images):
        shapes = list_shapes(images)
        self.numbers = {shape: number for number, shape in enumerate(dict.fromkeys(shapes))}
        self.of_image = np.array([self.numbers[shape] for shape in shapes])  # `[N]`, numbers of shapes

    def holds(self, size: Sequence[int]) -> bool:
        """Whether there is an image of this shape."""
        return torch.Size(size) in self.numbers

    def draw(self, rng: np.random.Generator, count: int, size: Sequence[int] | None = None) -> Tensor:
        """Positions `[count]` of images of one size: the first is drawn from all, the others from its bucket.

        So every image is drawn equally often as a first one, whatever the number of its size.

        Args:
            size: the shape of the images that are drawn from, by default of all; there must be one.
        """
        if len(self.numbers) == 1:
            return torch.from_numpy(rng.integers(len(self.of_image), size=count))
        asked = None if size is None else self.numbers[torch.Size(size)]
        alike = np.arange(len(self.of_image)) if asked is None else np.flatnonzero(self.of_image == asked)
        first = alike[rng.integers(len(alike))]
        bucket = np.flatnonzero(self.of_image == self.of_image[first])
        others = bucket[rng.integers(len(bucket), size=count - 1)]
        return torch.from_numpy(np.array([first, *others]))


def name_images(name: str, images: Images) -> dict[str, Tensor]:
    """Images as named tensors for a file: `name`, or `name.0`, `name.1` and so on."""
    if isinstance(images, Tensor):
        return {name: images}
    return {f"{name}.{position}": image.contiguous() for position, image in enumerate(images)}


def find_images(name: str, tensors: Mapping[str, Tensor]) -> Images:
    """What `name_images` gave."""
    if name in tensors:
        return tensors[name]
    count = sum(key.rpartition(".")[0] == name for key in tensors)
    return [tensors[f"{name}.{position}"] for position in range(count)]
