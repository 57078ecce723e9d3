"""The type of a photo effect: a named image function whose set of right answers is known."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

UInt8Image: TypeAlias = npt.NDArray[np.uint8]
FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PhotoEffect:
    """An image effect on photographs of any size, deterministic or random.

    Attributes:
        name: unique kebab-case name, such as `pencil-sketch`.
        description: one line on what the edited picture looks like.
        teacher_prompt: generic instruction, shared by several effects.
        num_outcomes: 1 for a deterministic effect; n > 1 when the result is one of n equally likely
            pictures; None when the result comes from a continuous random family.
        function: maps a float image [H, W, 3] in [0, 1] to one of the same shape (clipped later).
            It takes `(image)` when num_outcomes is 1, `(image, mode)` with mode in 0..n-1 when it is
            n > 1, and `(image, rng)` when it is None.
    """

    name: str
    description: str
    teacher_prompt: str
    num_outcomes: int | None
    function: Callable[..., FloatArray]

    def __call__(self, image: UInt8Image, rng: np.random.Generator | None = None) -> UInt8Image:
        """Apply the effect to a uint8 RGB image [H, W, 3] and return a new one of the same shape.

        A random effect draws from `rng` only; a deterministic one ignores it.

        Raises:
            ValueError: if the image is not uint8 [H, W, 3] with H, W >= 1, or if the effect is random
                and `rng` is None.
        """
        photo = _to_float(image)
        if self.num_outcomes == 1:
            return _to_uint8(self.function(photo))
        if rng is None:
            raise ValueError(f"The effect '{self.name}' is random: pass a numpy.random.Generator.")
        if self.num_outcomes is None:
            return _to_uint8(self.function(photo, rng))
        return _to_uint8(self.function(photo, int(rng.integers(self.num_outcomes))))

    def outcomes(self, image: UInt8Image) -> list[UInt8Image]:
        """Return every valid result for a uint8 RGB image [H, W, 3], `num_outcomes` of them.

        Raises:
            ValueError: if the image is not uint8 [H, W, 3] with H, W >= 1, or if the effect has a
                continuous family of results, which can only be sampled.
        """
        photo = _to_float(image)
        if self.num_outcomes is None:
            raise ValueError(
                f"The effect '{self.name}' has a continuous family of outcomes: sample it instead."
            )
        if self.num_outcomes == 1:
            return [_to_uint8(self.function(photo))]
        return [_to_uint8(self.function(photo, mode)) for mode in range(self.num_outcomes)]

    def variants(self) -> list["PhotoEffect"]:
        """Each of several outcomes as a deterministic effect of its own, `NAME-1` to `NAME-n`."""
        if self.num_outcomes in (1, None):
            return []
        return [
            replace(
                self,
                name=f"{self.name}-{mode + 1}",
                description=f"{self.description}: the one numbered {mode + 1}",
                num_outcomes=1,
                function=partial(_in_mode, self.function, mode),
            )
            for mode in range(self.num_outcomes)
        ]


def _in_mode(function: Callable[..., FloatArray], mode: int, image: FloatArray) -> FloatArray:
    return function(image, mode)


def _to_float(image: UInt8Image) -> FloatArray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"Expected a non-empty uint8 RGB image [H, W, 3], got {image.dtype} with shape {image.shape}."
        )
    return image.astype(np.float32, order="C") / np.float32(255)


def _to_uint8(image: FloatArray) -> UInt8Image:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
