"""The losses of C2F-DO, the coarse-to-fine distillation objective, as pure functions of tensors.

Formulas: docs/method.md#the-objective-c2f-do.

No model and no setting is known here; shapes are `[B, ...]` with the batch first.
"""

import torch
from torch import Tensor

# Where the student sits on the teacher's prediction the normaliser vanishes; the gradient stays finite.
MIN_DISTANCE = 1e-6


def guided(cond: Tensor, uncond: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance in the standard form `uncond + w * (cond - uncond)`; w = 1 is `cond`."""
    return uncond + guidance_scale * (cond - uncond)


def dmd_gradient(x0: Tensor, x0_critic: Tensor, x0_teacher: Tensor) -> Tensor:
    """`g = (x0_critic - x0_teacher) / mean|x0 - x0_teacher|`, the mean over each sample's own elements.

    The direction in which the student's distribution (critic, the paper's fake score) exceeds the teacher's
    (real score); shape of `x0`.
    """
    distance = (x0 - x0_teacher).abs().flatten(1).mean(1).clamp_min(MIN_DISTANCE)
    return (x0_critic - x0_teacher) / distance.view(-1, *[1] * (x0.ndim - 1))


def dmd_loss(x0: Tensor, x0_critic: Tensor, x0_teacher: Tensor) -> Tensor:
    """Distribution matching loss whose gradient in `x0` is `dmd_gradient / x0.numel()`.

    `0.5 * mean((x0 - stopgrad(x0 - g))^2)`; `x0` `[B, ...]` is the student's (generator's) image, the other
    two are predictions at a renoised `x0` and receive no gradient. Returns a scalar.
    """
    with torch.no_grad():
        gradient = dmd_gradient(x0, x0_critic, x0_teacher)
        moved = x0 - gradient
    return 0.5 * (x0 - moved).square().mean()


def flow_matching_loss(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """`mean((velocity - (noise - x0))^2)`: the critic's loss, teacher training, and trajectory anchoring."""
    return (velocity - (noise - x0)).square().mean()


def velocity_matching_loss(velocity: Tensor, velocity_teacher: Tensor) -> Tensor:
    """`mean((velocity - velocity_teacher)^2)` at the same noisy point: the warm start.

    The teacher receives no gradient.
    """
    return (velocity - velocity_teacher.detach()).square().mean()
