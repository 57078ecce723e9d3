"""The toy world asked: how many teachers fit into one student, and does the gradient vanish far from them?"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from collectionlora.adapters.roles import critic_role
from collectionlora.config import Overrides, Settings, replace_settings
from collectionlora.distillation import Distillation
from collectionlora.flow import add_noise, shift_sigma
from collectionlora.sampling import Denoiser, noise_like
from collectionlora.streams import Batch
from collectionlora.toy.world import COLD, ToyWorld, run_to_end, toy_settings

NUM_STEPS = 8
BATCHES, UNSEEN = 8, 10**6  # batches that a pull is measured on, and the first of their numbers
FOLLOW_EVERY = 25
OBJECTIVES: dict[str, Overrides] = {
    "plain": {"distill": {"target_weight": 0, "anchor_weight": 0}},
    "with target simulation": {"distill": {"anchor_weight": 0}},
    "with target simulation and anchoring": {},
}
# The toy's own recipe was made for so many effects; updates per effect are counted from it.
USUAL_EFFECTS = 4


def scaling_settings(num_effects: int, seed: int, per_effect: bool, *layers: Overrides) -> Settings:
    """The toy's recipe; with `per_effect` as many updates for each effect, not in all, as for 4 effects."""
    settings = toy_settings(*layers, {"distill": {"seed": seed}})
    if not per_effect:
        return settings
    times = num_effects / USUAL_EFFECTS
    match = {"updates": round(settings.match.updates * times)}
    return replace_settings(
        settings, match=match, distill={"student_updates": round(settings.distill.student_updates * times)}
    )


def measure_scaling(world: ToyWorld, settings: Settings) -> dict[str, float]:
    """Distances of one student to all teachers of a world, and of the teachers in as few steps."""
    run = run_to_end(world.distillation(settings))
    return {**world.judge(run, NUM_STEPS), "undistilled": world.judge_undistilled(NUM_STEPS)}


def follow(
    world: ToyWorld, objective: str, num_updates: int, seed: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train from the base by one of `OBJECTIVES`; before the first and after every `FOLLOW_EVERY` updates
    yield their number, the distance to the teachers, and the mean pull of the gradient (see `pull`).

    `backward` is the pull on the student's own images (L_BS), `target` on those of target simulation (L_TS),
    whether they are trained on or not.
    """
    updates: Overrides = {"distill": {"student_updates": num_updates, "effect_ratio": 1, "seed": seed}}
    run = world.distillation(toy_settings(COLD, OBJECTIVES[objective], updates))
    for step in range(num_updates + 1):
        if step % FOLLOW_EVERY == 0:
            yield step, {**mean_pulls(world, run), **world.judge(run, NUM_STEPS)}
        if step < num_updates:
            run(step)


@torch.no_grad()
def mean_pulls(world: ToyWorld, run: Distillation) -> dict[str, float]:
    """The mean pull on both kinds of images, over batches that no update sees."""
    pulls: dict[str, list[Tensor]] = {"backward": [], "target": []}
    for step in range(UNSEEN, UNSEEN + BATCHES):
        batch, generator = run.batch(run.streams, step), run.generator(run.streams, step)
        simulation = run.simulate(run.streams, batch, generator, step, NUM_STEPS).simulation
        own = run.student(batch).x0(*simulation.chosen())
        pulls["backward"].append(pull(world, run, batch, own, 0.0, generator))
        targeted = run.student_on_target(batch, simulation.sigmas, generator)
        pulls["target"].append(pull(world, run, batch, targeted, 0.5, generator))
    return {name: float(torch.cat(values).mean()) for name, values in pulls.items()}


def pull(
    world: ToyWorld, run: Distillation, batch: Batch, x0: Tensor, lowest: float, generator: torch.Generator
) -> Tensor:
    """How far the DMD gradient pulls each image, as a share of its way to the truth, `[B]`.

    `<x0_teacher - x0_critic, centre - x0> / |centre - x0|^2`, renoised as in training, `centre` being the
    middle of the effect's answers: 1 reaches it, 0 has vanished. `lowest` bounds the renoising sigma before
    its shift.
    """
    settings = run.settings
    u = lowest + (1 - lowest) * torch.rand(len(x0), generator=generator, device=generator.device)
    sigma = shift_sigma(u, settings.sampling.shift)
    x_sigma = add_noise(x0, noise_like(x0, generator), sigma)
    with run.roles.use(critic_role(NUM_STEPS)):
        x0_critic = Denoiser(run.backbone, batch.student).x0(x_sigma, sigma)
    with run.teachers.use(batch.effect):
        x0_teacher = Denoiser(run.backbone, batch.teacher).x0(x_sigma, sigma)
    effect = next(e for e in world.effects if e.name == batch.effect)
    centre, _ = effect.centres(batch.teacher.source.flatten(1))
    way = centre - x0.flatten(1)
    return ((x0_teacher - x0_critic).flatten(1) * way).sum(1) / way.square().sum(1)


def mean_and_range(rows: Sequence[dict[str, Any]], key: str) -> tuple[float, float, float]:
    """Mean, smallest and largest over seeds."""
    values = [row[key] for row in rows]
    return sum(values) / len(values), min(values), max(values)
