"""The algebra of rectified flow, in one convention.

Formulas: docs/method.md#flow.

`sigma` in [0, 1] is the noise level, `x_sigma = (1 - sigma) * x0 + sigma * noise`, and the network predicts
`velocity = noise - x0`. Sigmas are continuous floats, never snapped to a grid of timesteps. Every function
takes tensors with the batch first and `sigma` as a scalar or a tensor `[B]`.
"""

from typing import TypeVar

import torch
from torch import Tensor

SigmaT = TypeVar("SigmaT", float, Tensor)


def expand_sigma(sigma: float | Tensor, like: Tensor) -> Tensor:
    """`sigma` (scalar or `[B]`) shaped to broadcast over `like` `[B, ...]`, in its dtype and device."""
    sigma = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
    if sigma.ndim == 0:
        return sigma
    if sigma.shape != like.shape[:1]:
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}; give a scalar or one value for each of {len(like)}"
        )
    return sigma.view(-1, *[1] * (like.ndim - 1))


def shift_sigma(sigma: SigmaT, shift: float) -> SigmaT:
    """`shift * sigma / (1 + (shift - 1) * sigma)`: moves noise levels up for shift > 1; fixes 0 and 1."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def few_step_sigmas(num_steps: int, shift: float = 3.0) -> Tensor:
    """The student's schedule `sigma_i = shift(1 - i / num_steps)`, i = 0 .. num_steps - 1, falling from 1.

    For 8 steps, in timesteps of 1000 * sigma: 1000, 954.5, 900, 833.3, 750, 642.9, 500, 300.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1")
    uniform = 1 - torch.arange(num_steps, dtype=torch.float64) / num_steps
    return shift_sigma(uniform, shift).float()


def add_noise(x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """`x_sigma = (1 - sigma) * x0 + sigma * noise`, shapes `[B, ...]`."""
    sigma = expand_sigma(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def x0_from_velocity(x_sigma: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """`x0 = x_sigma - sigma * velocity`, shapes `[B, ...]`."""
    return x_sigma - expand_sigma(sigma, x_sigma) * velocity


def velocity_from_x0(x0: Tensor, x_sigma: Tensor, sigma: float | Tensor) -> Tensor:
    """`velocity = (x_sigma - x0) / sigma`, shapes `[B, ...]`; sigma must be above 0."""
    return (x_sigma - x0) / expand_sigma(sigma, x_sigma)
