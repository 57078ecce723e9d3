"""Samplers: the teacher's many guided steps, the student's few stochastic ones, and its truncated rollout."""

import torch
from torch import Tensor

from collectionlora.backbones.base import Backbone, Condition
from collectionlora.flow import add_noise, few_step_sigmas, x0_from_velocity
from collectionlora.objectives import guided


def predict_velocity(
    backbone: Backbone,
    x_sigma: Tensor,
    sigma: float | Tensor,
    condition: Condition,
    uncond: Condition | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """The velocity of the active role at `x_sigma` `[B, C, H, W]`; with guidance both branches are one batch.

    Guidance costs nothing when the scale is 1 or `uncond` is None.
    """
    sigma = torch.as_tensor(sigma, dtype=x_sigma.dtype, device=x_sigma.device).expand(len(x_sigma))
    if uncond is None or guidance_scale == 1.0:
        return backbone.velocity(x_sigma, sigma, condition)
    both = backbone.velocity(x_sigma.repeat(2, 1, 1, 1), sigma.repeat(2), Condition.cat([condition, uncond]))
    return guided(*both.chunk(2), guidance_scale)


def predict_x0(
    backbone: Backbone,
    x_sigma: Tensor,
    sigma: float | Tensor,
    condition: Condition,
    uncond: Condition | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """The clean image that the active role sees in `x_sigma`, same shape."""
    velocity = predict_velocity(backbone, x_sigma, sigma, condition, uncond, guidance_scale)
    return x0_from_velocity(x_sigma, velocity, sigma)


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `x`, drawn on the generator's device."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)


@torch.no_grad()
def sample_many_steps(
    backbone: Backbone,
    noise: Tensor,
    condition: Condition,
    uncond: Condition | None,
    num_steps: int = 40,
    guidance_scale: float = 1.0,
    shift: float = 3.0,
) -> Tensor:
    """The teacher's sampler: Euler steps along the guided velocity from `noise` `[B, C, H, W]` to an image."""
    sigmas = [*few_step_sigmas(num_steps, shift).tolist(), 0.0]
    x = noise
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        velocity = predict_velocity(backbone, x, sigma, condition, uncond, guidance_scale)
        x = x + (sigma_next - sigma) * velocity
    return x


@torch.no_grad()
def rollout(
    backbone: Backbone, condition: Condition, sigmas: Tensor, stop: int, generator: torch.Generator
) -> Tensor:
    """The student's noisy state at `sigmas[stop]` on its own trajectory, `[B, C, H, W]`.

    Stochastic, consistency-like: at each sigma predict x0, then add FRESH noise to reach the next sigma.
    Steps after `stop` are not run; with the same generator seed the states are those of the full trajectory.
    """
    x = noise_like(condition.source, generator)
    for sigma, sigma_next in zip(sigmas[:stop].tolist(), sigmas[1 : stop + 1].tolist(), strict=True):
        x0 = predict_x0(backbone, x, sigma, condition)
        x = add_noise(x0, noise_like(x0, generator), sigma_next)
    return x


@torch.no_grad()
def sample_few_steps(
    backbone: Backbone,
    condition: Condition,
    num_steps: int,
    generator: torch.Generator,
    shift: float = 3.0,
) -> Tensor:
    """The student's image after `num_steps` stochastic steps without guidance, `[B, C, H, W]`."""
    sigmas = few_step_sigmas(num_steps, shift)
    x = rollout(backbone, condition, sigmas, num_steps - 1, generator)
    return predict_x0(backbone, x, float(sigmas[-1]), condition)
