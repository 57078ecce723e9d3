"""Samplers: the teacher's many guided steps, and the student's few."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor

from collectionlora.backbones.base import Backbone, Condition
from collectionlora.config import Sampler
from collectionlora.flow import add_noise, few_step_sigmas, x0_from_velocity

Guide = Callable[[Tensor, Tensor, float], Tensor]  # (cond, uncond, w) to the guided velocity
Role = Callable[[], AbstractContextManager[None]]  # makes the context in which the network plays a role


class Denoiser:
    """The network in one role, for one condition, with or without guidance.

    What depends on the condition alone is computed here once.

    Args:
        condition: what the network reads.
        uncond: the same with the empty prompt; both branches run as one batch, or one after the other
            (`Backbone.guides_in_one_batch`).
        guidance_scale: w of the backbone's rule, `uncond + w * (cond - uncond)` in its plain form; 1 is
            unguided and costs one branch.
        guide: the rule, by default the backbone's own.
        role: makes the context in which the network plays the role (`Roles.use`, `Roles.frozen`,
            `TeacherLibrary.use`); by default the network is taken as it is.
    """

    def __init__(
        self,
        backbone: Backbone,
        condition: Condition,
        uncond: Condition | None = None,
        guidance_scale: float = 1.0,
        guide: Guide | None = None,
        role: Role = nullcontext,
    ):
        self.backbone, self.guidance_scale, self.role = backbone, guidance_scale, role
        self.guide = guide or backbone.guide
        self.guided = uncond is not None and guidance_scale != 1.0
        branches = [condition, uncond] if uncond is not None and self.guided else [condition]
        if len(branches) > 1 and backbone.guides_in_one_batch:
            branches = [Condition.cat(branches)]
        with role():
            self.prepared = [backbone.prepare(branch) for branch in branches]

    def begin_trajectory(self) -> None:
        """Further velocities, without gradient, are those of one trajectory."""
        with self.role():
            self.prepared = [self.backbone.begin_trajectory(prepared) for prepared in self.prepared]

    def velocity(self, x_sigma: Tensor, sigma: float | Tensor) -> Tensor:
        """The velocity at `x_sigma` `[B, C, H, W]`; `sigma` a scalar or `[B]`."""
        sigma = torch.as_tensor(sigma, dtype=x_sigma.dtype, device=x_sigma.device).expand(len(x_sigma))
        if self.guided and self.backbone.guides_in_one_batch:
            x_sigma, sigma = x_sigma.repeat(2, 1, 1, 1), sigma.repeat(2)
        with self.role():
            found = [self.backbone.velocity(x_sigma, sigma, prepared) for prepared in self.prepared]
        if not self.guided:
            return found[0]
        cond, uncond = found if len(found) > 1 else found[0].chunk(2)
        return self.guide(cond, uncond, self.guidance_scale)

    def x0(self, x_sigma: Tensor, sigma: float | Tensor) -> Tensor:
        """The clean image seen in `x_sigma`, same shape."""
        return x0_from_velocity(x_sigma, self.velocity(x_sigma, sigma), sigma)


# One for a whole batch, or one for each sample, so that a sample's noise does not depend on its batch.
Generators = torch.Generator | Sequence[torch.Generator]


def noise_like(x: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `x`, drawn on the generator's device."""
    if isinstance(generator, torch.Generator):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
    return torch.stack([noise_like(sample, g) for sample, g in zip(x, generator, strict=True)])


@torch.no_grad()
def sample_many_steps(denoiser: Denoiser, noise: Tensor, num_steps: int = 40) -> Tensor:
    """The teacher's sampler: Euler steps on the base's own schedule, `noise` `[B, C, H, W]` to image.

    The trajectory runs on the base's device; the image comes back to that of `noise`.
    """
    denoiser.begin_trajectory()
    x = noise.to(denoiser.backbone.device)
    sigmas = denoiser.backbone.teacher_sigmas(num_steps, noise)
    for sigma, sigma_next in pairwise([*sigmas.tolist(), 0.0]):
        x = x + (sigma_next - sigma) * denoiser.velocity(x, sigma)
    return x.to(noise.device)


@torch.no_grad()
def rollout(
    denoiser: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    stop: int,
    generator: Generators,
    sampler: Sampler = "stochastic",
) -> list[Tensor]:
    """The student's noisy states at `sigmas[0 .. stop]` on its own trajectory from `noise` `[B, C, H, W]`.

    `stochastic`, consistency-like: at each sigma predict x0, then add FRESH noise to reach the next sigma.
    `euler`: follow the velocity to the next sigma, which keeps the noise that the prediction implies.
    Steps after `stop` are not run; from the same generator the states are those of the full trajectory.
    """
    denoiser.begin_trajectory()
    states = [noise]
    for sigma, sigma_next in pairwise(sigmas[: stop + 1].tolist()):
        x0 = denoiser.x0(states[-1], sigma)
        if sampler == "euler":
            noise_left = (states[-1] - (1 - sigma) * x0) / sigma
        else:
            noise_left = noise_like(x0, generator)
        states.append(add_noise(x0, noise_left, sigma_next))
    return states


@torch.no_grad()
def sample_few_steps(
    denoiser: Denoiser,
    noise: Tensor,
    num_steps: int,
    generator: Generators,
    shift: float = 3.0,
    sampler: Sampler = "stochastic",
) -> Tensor:
    """The student's image after `num_steps` steps from `noise` `[B, C, H, W]`.

    The trajectory runs on the base's device; the image comes back to that of `noise`.
    """
    sigmas, first = few_step_sigmas(num_steps, shift), noise.to(denoiser.backbone.device)
    last = rollout(denoiser, first, sigmas, num_steps - 1, generator, sampler)[-1]
    return denoiser.x0(last, float(sigmas[-1])).to(noise.device)


def noise_of_seeds(source: Tensor, seeds: Sequence[int]) -> tuple[Tensor, list[torch.Generator]]:
    """Noise like `source` `[B, C, H, W]`, and what draws the rest of it: each sample from its own seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return noise_like(source, generators), generators


def sample_student(
    denoiser: Denoiser,
    source: Tensor,
    seeds: Sequence[int],
    num_steps: int,
    shift: float,
    sampler: Sampler = "stochastic",
) -> Tensor:
    """The few-step images of photos' latents `source` `[B, C, H, W]`, each from its own seed; latents."""
    noise, generators = noise_of_seeds(source, seeds)
    return sample_few_steps(denoiser, noise, num_steps, generators, shift, sampler)
